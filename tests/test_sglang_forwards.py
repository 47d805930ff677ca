"""Forward functions in the real SGLang, on the CPU: when ours run, and when the originals do."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

import torch
import triton

from lora_autotune import loader
from lora_autotune.config_file import config_file_path
from lora_autotune.provenance import read_provenance_file, write_with_provenance
from lora_autotune.sglang import MODE_VARIABLE, coverage, forwards
from lora_autotune.sglang.batches import batch_view
from tests.loader_cases import said
from tests.sglang_cases import CONFIGS, H200, batch_info, server

pytestmark = pytest.mark.usefixtures("fresh")


class Spy:
    """In the place of an original: counts its calls and returns its name."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self


def shrink_arguments(dtype: torch.dtype = torch.float16, rows: int = 40) -> tuple[Any, ...]:
    return (torch.zeros(rows, 64, dtype=dtype), torch.zeros(3, 48, 64, dtype=dtype))


def test_what_is_on_the_cpu_runs_the_originals_decided_and_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    gap = forwards.shrink_gap
    monkeypatch.setattr(forwards, "shrink_gap", lambda *a: asked.append("") or gap(*a))
    original = Spy()
    for rows in (40, 41, 42):
        x, weights = shrink_arguments(rows=rows)
        info = batch_info(rows)
        assert forwards.around_shrink(original, x, weights, info, num_slices=3) is original
        assert original.calls[-1] == (x, weights, info, 3, None)
    assert len(original.calls) == 3
    assert len(asked) == 1
    assert said(caplog, "INFO") == [
        "LoRA shrink K=64 R=16 S=3 chunk size 16: SGLang's kernel (tensors are on cpu)"
    ]
    x, weights = torch.zeros(40, 48).half(), torch.zeros(3, 96, 16).half()
    offsets = torch.tensor([0, 32, 64, 96])
    for base in (None, torch.zeros(40, 96).half()):
        arguments = (x, weights, batch_info(), offsets, 32, base, offsets)
        assert forwards.around_expand(original, *arguments) is original
        assert all(a is b for a, b in zip(original.calls[-1], arguments, strict=True))
    assert not said(caplog, "WARNING")


@pytest.mark.parametrize("where", ["shrink_gap", "batch_view", "explain_lookup", "_ours"])
def test_whatever_fails_the_originals_run_after_one_warning(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(forwards, where, fail)
    original = Spy()
    x, weights = shrink_arguments()
    for _ in range(3):
        assert forwards.around_shrink(original, x, weights, batch_info(), 3) is original
    (warning,) = (line for line in said(caplog, "WARNING") if "goes back" in line)
    assert warning == "LoRA shrink goes back to SGLang's kernel: ValueError: a bug of ours"


def test_configs_that_were_tuned_on_its_kernels_are_said_where_ours_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = sorted(CONFIGS.rglob("lora_shrink*.provenance.json"))[0]
    ours = read_provenance_file(shipped)[16]
    path = config_file_path(
        tmp_path, "shrink", 64, 16, 3, device_name=H200, triton_version=triton.__version__
    )
    write_with_provenance(path, 16, dataclasses.replace(ours, kernels="sglang-0.5.23"))
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: H200)
    x, weights = shrink_arguments()
    forwards.around_shrink(Spy(), x, weights, batch_info(), 3)
    warning = said(caplog, "WARNING")[0]
    assert warning.endswith(f"{path} was tuned on sglang-0.5.23 kernels, and ours run")


def test_what_is_not_even_a_batch_is_for_the_original_to_refuse() -> None:
    original = Spy()
    assert forwards.around_shrink(original, None, None, None, 3) is original
    assert forwards.around_expand(original, None, None, None, None, 1, None) is original


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"x": torch.zeros(40, 64)}, "dtype torch.float32"),
        ({"x": torch.zeros(64, 40).half().T}, "a matrix is not contiguous"),
        ({"weights": torch.zeros(3, 48, 64).bfloat16()}, "weights are torch.bfloat16 on cpu"),
        ({"weights": torch.zeros(3, 48, 32).half()}, "differ"),
        ({"weights": torch.zeros(3, 3 * 513, 64).half()}, "rank 513"),
        ({"split_k": 4}, "split-K"),
        ({"info": {"max_len": None}}, "chunk size None"),
        ({"info": {"max_len": 24}}, "chunk size 24"),
        ({"info": {"max_len": 256}}, "chunk size 256"),
        ({"info": {"permutation": None}}, "no permutation"),
        ({"info": {"num_segments": torch.tensor(6)}}, "number of segments"),
        ({"info": {"scalings": torch.ones(3).half()}}, "scalings is torch.float16"),
    ],
)
def test_what_is_covered(
    changes: dict[str, Any], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, weights = shrink_arguments()
    gap = coverage.shrink_gap(
        changes.get("x", x),
        changes.get("weights", weights),
        batch_info(**changes.get("info", {})),
        3,
        changes.get("split_k"),
    )
    assert gap is None if why is None else why in str(gap)


def test_a_batch_is_viewed_and_not_copied() -> None:
    info = batch_info(graph=True, segments=16, permutation=torch.zeros(100, dtype=torch.int32))
    batch = batch_view(info, 40)
    assert batch.permutation.shape == (40,)
    assert batch.permutation.data_ptr() == info.permutation.data_ptr()
    assert batch.seg_indptr is info.seg_indptr
    # A graph is replayed with other batches: the launch covers the buffer.
    assert (batch.num_segs, batch.sizes.grid_segments) == (16, 16)
    assert batch_view(batch_info(), 40).num_segs == batch_info().num_segments


IN_THE_INTERPRETER = """
torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
import lora_autotune.kernels.forward as ours
from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.reference import expand_reference, shrink_reference

launched = []
for name in ("shrink_forward", "expand_forward"):
    def counted(*a, name=name, real=getattr(ours, name), **k):
        launched.append(name)
        return real(*a, **k)
    setattr(ours, name, counted)

def close(output, reference, what):
    error = (output.double() - reference).norm() / reference.norm()
    assert error < 2e-3, (what, float(error))

def fresh(*shape):
    return torch.randn(shape, generator=generator).half()

for graph, rows, chunk, ranks, offsets, wider in (
    (False, 53, 16, [16, 0, 7, 12], [0, 40, 56, 72], None),
    (True, 9, 16, [32, 16, 0, 5], [0, 48, 96], 8),
    (False, 70, 32, [16, 16, 8, 0], [0, 64], 0),
):
    generator = torch.Generator().manual_seed(rows)
    R, S = max(ranks), len(offsets) - 1
    batch = make_batch(
        torch.randint(0, 4, (rows,), generator=generator), ranks=ranks, chunk_size=chunk,
        scalings=[0.5, 1.0, 2.0, 1.5], grid_segments=12 if graph else None,
    )
    padded = torch.cat([batch.permutation, batch.permutation.new_zeros(20 if graph else 0)])
    info = LoRABatchInfo(
        use_cuda_graph=graph, bs=rows, num_segments=batch.num_segs, seg_indptr=batch.seg_indptr,
        weight_indices=batch.weight_indices, lora_ranks=batch.lora_ranks, scalings=batch.scalings,
        max_len=chunk, seg_lens=None, permutation=padded,
    )
    x, a, b = fresh(rows, 72), fresh(4, S * R, 72), fresh(4, offsets[-1], R)
    middle = backend.chunked_sgmv_lora_shrink_forward(x=x, weights=a, batch_info=info, num_slices=S)
    reference = shrink_reference(x, a, batch, S)
    owed = ~reference.isnan()
    close(middle[owed], reference[owed], "shrink")
    boundaries = torch.tensor(offsets)
    middle = middle.nan_to_num(0.0, 0.0, 0.0)
    base = None if wider is None else fresh(rows, offsets[-1] + wider)
    start = torch.zeros(rows, offsets[-1]).half() if base is None else base
    reference = expand_reference(middle, b, batch, boundaries, start)
    def expand(function, base):
        return function(x=middle, weights=b, batch_info=info, slice_offsets=boundaries,
                        slice_offsets_cpu=boundaries, max_slice_size=offsets[-1], base_output=base)
    theirs = expand(
        expand_module.chunked_sgmv_lora_expand_forward.__wrapped__,
        None if base is None else base.clone(),
    )
    output = expand(backend.chunked_sgmv_lora_expand_forward, base)
    assert base is None or output is base
    close(output, reference, "expand")
    close(output, theirs.double(), "SGLang's expand")
print(*launched)
"""


def test_hooked_on_a_real_batch_our_kernels_compute_the_reference() -> None:
    output, log = server(IN_THE_INTERPRETER, TRITON_INTERPRET="1", **{MODE_VARIABLE: "kernels"})
    assert output.split() == ["shrink_forward", "expand_forward"] * 3
    assert "goes back" not in log
    assert "LoRA expand K=72 R=16 S=3 chunk size 16: lora_autotune's kernel with" in log
