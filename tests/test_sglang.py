"""The plug-in in the real SGLang: its plug-in loader, hook registry, LoRA backend, config loader.

Run by .ci/sglang, which installs SGLang's wheel and ours. What patches SGLang happens in fresh
processes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

import torch
import triton

import lora_autotune
from lora_autotune import loader
from lora_autotune.config_file import FOLDER, config_file_path, merge_config_file
from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.worker import Worker
from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.launcher import launcher
from lora_autotune.provenance import is_provenance, read_provenance_file, write_with_provenance
from lora_autotune.sglang import MODE_VARIABLE, activate, coverage, forwards, lookups
from lora_autotune.sglang.batches import batch_view
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task, default_workload

H200 = "NVIDIA H200"
HOME = "sglang.kernels.ops.lora.dense"
CONFIGS = Path(lora_autotune.__file__).parent / "configs"
NAME = re.compile(r"lora_(\w+),K=(\d+),R=(\d+),S=(\d+),device=(.+)\.json")
TABLE = {16: {"BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 2}, 64: {"BLOCK_N": 64, "BLOCK_K": 32}}

# torchvision's compiled half does not load beside a CPU build of torch, and this module of its
# Python half then fails on import. SGLang needs torchvision for pictures only.
PREAMBLE = """
import logging, sys, types, warnings
warnings.simplefilter("ignore")
import torch
if not torch.cuda.is_available():
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
from types import SimpleNamespace
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.kernels.ops.lora.dense import chunked_sgmv_expand as expand_module
from sglang.kernels.ops.lora.dense import chunked_sgmv_shrink as shrink_module
from sglang.kernels.ops.lora.dense import lora_tuning_config as tuning
from sglang.srt.lora.backend import chunked_backend as backend
from sglang.srt.lora.utils import LoRABatchInfo
"""


def server(code: str, **environment: str) -> tuple[str, str]:
    """What a fresh process with SGLang's plug-ins loaded prints and logs."""
    kept = {k: v for k, v in os.environ.items() if k not in (MODE_VARIABLE, loader.ROOT_VARIABLE)}
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def module(name: str) -> Any:
    """A module of SGLang, in this process, unhooked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            stub = "torchvision._meta_registrations"
            sys.modules.setdefault(stub, types.ModuleType(stub))
        return importlib.import_module(name)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    monkeypatch.delenv(loader.ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    caplog.set_level(logging.INFO, logger="lora_autotune")
    loader.clear_cache()
    forwards.forget()
    yield
    loader.clear_cache()
    forwards.forget()


def said(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == level]


# --- found, loaded, hooked -----------------------------------------------------------------------

STATE = """
import json
torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
tuning.get_device_name = lambda: "NVIDIA H200"
functions = (
    tuning.get_lora_shrink_config, tuning.get_lora_expand_config,
    shrink_module.get_lora_shrink_config, expand_module.get_lora_expand_config,
    shrink_module.chunked_sgmv_lora_shrink_forward, expand_module.chunked_sgmv_lora_expand_forward,
    backend.chunked_sgmv_lora_shrink_forward, backend.chunked_sgmv_lora_expand_forward,
)
print("".join(str(int(hasattr(function, "__wrapped__"))) for function in functions))
print(json.dumps([
    shrink_module.get_lora_shrink_config(K=1024, R=64, num_slices=3, chunk_size=64),
    shrink_module.get_lora_shrink_config(K=1000, R=64, num_slices=3, chunk_size=64),
    expand_module.get_lora_expand_config(K=4096, R=64, num_slices=3, chunk_size=16),
    expand_module.get_lora_expand_config(K=1000, R=64, num_slices=1, chunk_size=16),
]))
"""


@functools.cache
def state(mode: str, **environment: str) -> tuple[str, list[dict[str, int]], str]:
    """What is hooked, what four lookups answer, and the log, in one mode."""
    output, log = server(STATE, **{MODE_VARIABLE: mode}, **environment)
    hooked, answers = output.splitlines()
    return hooked, json.loads(answers), log


def test_the_entry_point_is_installed() -> None:
    (found,) = (
        entry
        for entry in metadata.entry_points(group="sglang.srt.plugins")
        if entry.value.startswith("lora_autotune.")
    )
    assert found.load() is activate


@pytest.mark.parametrize(
    ("mode", "hooked"),
    [("kernels", "11111111"), ("configs", "11110000"), ("", "11111111"), ("off", "00000000")],
)
def test_what_is_hooked(mode: str, hooked: str) -> None:
    found, _, log = state(mode)
    assert found == hooked
    assert "WARNING lora_autotune" not in log
    assert "Failed to" not in log


def test_another_sglang_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = module("sglang.srt.plugins.hook_registry").HookRegistry
    registered: list[str] = []
    monkeypatch.setattr(registry, "register", lambda target, *rest: registered.append(target))
    expand = module(f"{HOME}.chunked_sgmv_expand")
    monkeypatch.setenv(MODE_VARIABLE, "kernels")
    with monkeypatch.context() as patch:
        patch.setattr(expand, "chunked_sgmv_lora_expand_forward", lambda x, weights: None)
        activate()
        patch.delattr(expand, "chunked_sgmv_lora_expand_forward")
        activate()
    assert registered == []
    assert [line.partition(":")[0] for line in said(caplog, "WARNING")] == [
        "LoRA is left to SGLang"
    ] * 2
    for mode, count in (("kernels", 4), ("configs", 2), ("off", 0), ("", 4)):
        registered.clear()
        monkeypatch.setenv(MODE_VARIABLE, mode)
        activate()
        assert len(registered) == count


def test_an_unknown_mode_is_said_and_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = module("sglang.srt.plugins.hook_registry").HookRegistry
    monkeypatch.setattr(registry, "register", None)
    monkeypatch.setenv(MODE_VARIABLE, "kernel")
    activate()
    (warning,) = said(caplog, "WARNING")
    assert warning.startswith("LORA_AUTOTUNE_SGLANG=kernel is none of off, configs, kernels")


# --- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob(f"{FOLDER}/*/*.json")) if not is_provenance(path)],
    ids=lambda path: path.relative_to(CONFIGS).as_posix(),
)
def test_its_own_loader_reads_what_we_ship(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = module(f"{HOME}.lora_tuning_config")
    match = NAME.fullmatch(path.name)
    assert match
    kernel, device = match[1], match[5]
    K, R, S = map(int, match.groups()[1:4])
    version = path.parent.name.removeprefix("triton_").replace("_", ".")
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(path.parents[2]))
    monkeypatch.setattr(tuning, "get_device_name", lambda: device)
    monkeypatch.setattr(tuning, "triton", SimpleNamespace(__version__=version))
    tuning.get_lora_configs.cache_clear()
    who = {"device_name": device, "triton_version": version}
    theirs = tuning.get_lora_configs(kernel, K, R, S)
    assert theirs == loader.get_lora_configs(kernel, K, R, S, **who)
    assert theirs == {int(k): v for k, v in json.loads(path.read_text()).items()}
    for chunk_size in (1, 16, 17, 32, 48, 64, 96, 128, 999):
        name = f"get_lora_{kernel}_config"
        ours = getattr(loader, name)(K, R, S, chunk_size, **who)
        assert getattr(tuning, name)(K, R, S, chunk_size) == ours
    tuning.get_lora_configs.cache_clear()


def test_in_mode_configs_its_kernels_get_what_the_variable_names(tmp_path: Path) -> None:
    def path(kernel: str, K: int, version: str, S: int = 3) -> Path:
        return config_file_path(
            tmp_path, kernel, K, 64, S, device_name=H200, triton_version=version
        )

    # By number 3.10.0 is newer than 3.9.0, by text it isn't; and SGLang's reader raises on "{".
    merge_config_file(path("shrink", 1024, "3.10.0"), TABLE)
    merge_config_file(path("shrink", 1024, "3.9.0"), {64: {"BLOCK_N": 16, "BLOCK_K": 16}})
    path("expand", 4096, "3.9.0").write_text("{")
    merge_config_file(path("expand", 1000, "3.9.0", 1), {16: {"BLOCK_N": 48, "BLOCK_K": 16}})
    hooked, answers, log = state("configs", **{loader.ROOT_VARIABLE: str(tmp_path)})
    assert hooked == "11110000"
    shrink, expand = loader.DEFAULT_SHRINK_CONFIG, loader.DEFAULT_EXPAND_CONFIG
    assert answers == [TABLE[64], shrink, expand, expand]
    assert "is not JSON" in log
    assert "BLOCK_N=48 is not a power of two" in log


def test_its_kernels_get_what_ships_for_them_else_its_own_files() -> None:
    (_, hooked, _), (_, plain, _) = state("kernels"), state("off")
    who: dict[str, Any] = {"device_name": H200, "triton_version": triton.__version__}
    shapes = [("shrink", 1024, 3, 64), ("shrink", 1000, 3, 64)]
    shapes += [("expand", 4096, 3, 16), ("expand", 1000, 1, 16)]
    for (kernel, K, S, chunk), found, own in zip(shapes, hooked, plain, strict=True):
        shipped = loader.explain_lookup(kernel, K, 64, S, chunk, kernels="sglang", **who)
        assert found == (own if shipped.path is None else shipped.config)
    ours = loader.get_lora_shrink_config(1024, 64, 3, 64, **who)
    assert hooked[0] != ours


def test_what_ships_for_its_kernels_is_read_before_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def original(*shape: int) -> dict[str, int]:
        return {"BLOCK_N": 128, "BLOCK_K": 64}

    monkeypatch.setattr(loader, "_PACKAGED", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: H200)
    for root, table in ((tmp_path, {16: original()}), (tmp_path / "sglang", TABLE)):
        path = config_file_path(
            root, "shrink", 1024, 64, 3, device_name=H200, triton_version=triton.__version__
        )
        merge_config_file(path, table)
    assert lookups.around_shrink_lookup(original, 1024, 64, 3, 64) == TABLE[64]
    assert lookups.around_shrink_lookup(original, 2048, 64, 3, 64) == original()
    assert lookups.around_expand_lookup(original, 1024, 64, 3, 64) == original()


def test_a_lookup_that_raises_is_the_defaults_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: H200)

    def broken(*shape: int) -> dict[str, int]:
        raise RuntimeError("no device")

    for _ in range(3):
        found = lookups.around_shrink_lookup(broken, 1000, 64, 3, 16)
        assert found == loader.DEFAULT_SHRINK_CONFIG
    assert len(said(caplog, "WARNING")) == 1


# --- its kernels, to be tuned --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("kernel", "K"), [("shrink", 1024), ("expand", 4096)])
def test_its_kernels_compile_for_a_hopper_as_tuning_does_it(
    kernel: Any, K: int, dtype: Any, tmp_path: Path
) -> None:
    gpu = Gpu(
        name=H200,
        capability=90,
        multiprocessors=132,
        smem_bytes=232_448,
        l2_bytes=60 << 20,
        triton="any",
    )
    offsets = (0, 2048, 3072, 4096) if kernel == "expand" else None
    task = Task(kernel=kernel, K=K, R=64, S=3, chunk_size=16, dtype=dtype, slice_offsets=offsets)
    assert launcher("sglang").name == f"sglang-{metadata.version('sglang')}"
    worker = Worker(compiling.set_up, gpu, str(tmp_path))
    try:
        for config in (DEFAULT_CONFIGS[kernel], Config(BLOCK_N=32, BLOCK_K=32, num_warps=4)):
            job = (task, default_workload(16), config, "sglang")
            compiled = worker.call(compiling.compile_config, *job, timeout_s=120)
            assert compiled.failure is None
            assert compiled.smem_bytes > 0
    finally:
        worker.close()


CHECK = """
import torch
from lora_autotune.evaluators.correctness import difference_from_reference
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.space import Config
from lora_autotune.task import Task
rest = dict(K=72, R=16, S=3, chunk_size=16)
for task in (Task(kernel="shrink", **rest),
             Task(kernel="expand", slice_offsets=(0, 40, 56, 72), **rest)):
    generator, config = torch.Generator().manual_seed(0), Config(BLOCK_N=32, BLOCK_K=16)
    print(difference_from_reference(task, config, Schedule(), generator, kernels="sglang"))
"""


def test_its_kernels_pass_the_check_that_candidates_go_through() -> None:
    output, _ = server(CHECK, TRITON_INTERPRET="1", **{MODE_VARIABLE: "off"})
    assert output.split() == ["None", "None"]


# --- forward functions, on the CPU ---------------------------------------------------------------


def batch_info(rows: int = 40, *, graph: bool = False, surplus: int = 0, **changes: Any) -> Any:
    batch = make_batch(
        [row % 3 for row in range(rows)],
        ranks=[16, 0, 7],
        scalings=[0.5, 1.0, 2.0],
        chunk_size=16,
        grid_segments=6 + surplus,
    )
    values = {
        "use_cuda_graph": graph,
        "bs": rows,
        "num_segments": batch.num_segs,
        "seg_indptr": batch.seg_indptr,
        "weight_indices": batch.weight_indices,
        "lora_ranks": batch.lora_ranks,
        "scalings": batch.scalings,
        "max_len": batch.chunk_size,
        "seg_lens": None,
        "permutation": batch.permutation,
    }
    return module("sglang.srt.lora.utils").LoRABatchInfo(**{**values, **changes})


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
    info = batch_info(graph=True, surplus=10, permutation=torch.zeros(100, dtype=torch.int32))
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
