"""The kernels of an installed SGLang, read from its files: two made-up ones in the styles of 0.5.12
and 0.5.23, which cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.plan import (
    empty_operands,
    schedule_of,
    task_launch,
    task_offsets,
)
from lora_autotune.evaluators.worker import Worker
from lora_autotune.kernels import sglang
from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.launcher import launcher
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Instance, Task
from tests.gpus import H200

SHRINK = Task(kernel="shrink", K=72, R=16, S=3, chunk_size=16)
EXPAND = Task(kernel="expand", K=72, R=16, S=3, chunk_size=16, slice_offsets=(0, 40, 56, 72))
TUNED = Config(BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=3)

HEAD = """
from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl

from sglang.srt.utils import cached_triton_kernel


@cached_triton_kernel(lambda _, kwargs: kwargs["K"])
"""

SHRINK_SOURCE = (
    HEAD
    + """@triton.jit(do_not_specialize=["num_segs"])
def _chunked_lora_shrink_kernel(
    x, weights, output, seg_indptr, weight_indices, lora_ranks, permutation, num_segs,
    N: tl.constexpr, K: tl.constexpr, NUM_SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    segment = tl.program_id(1)
    if segment >= num_segs:
        return
    end = tl.load(seg_indptr + segment + 1)
    m = tl.load(seg_indptr + segment) + tl.arange(0, BLOCK_M)
    adapter = tl.load(weight_indices + segment)
    columns = tl.load(lora_ranks + adapter) * NUM_SLICES
    rows = tl.load(permutation + m, mask=m < end, other=0)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(x + rows[:, None] * K + k[None, :],
                    mask=(m[:, None] < end) & (k[None, :] < K), other=0.0)
        b = tl.load(weights + adapter * N * K + n[None, :] * K + k[:, None],
                    mask=(n[None, :] < columns) & (k[:, None] < K), other=0.0)
        sums += tl.dot(a, b)
    tl.store(output + rows[:, None] * N + n[None, :], sums.to(x.dtype.element_ty),
             mask=(m[:, None] < end) & (n[None, :] < columns))


def chunked_sgmv_lora_shrink_forward(x: Optional[torch.Tensor]):
    raise AssertionError("nobody calls this")
"""
)

EXPAND_SOURCE = (
    HEAD
    + """@triton.jit(do_not_specialize=["num_segs", "output_stride_0", "output_stride_1"])
def _chunked_lora_expand_kernel(
    x, weights, output, output_stride_0, output_stride_1, seg_indptr, weight_indices, lora_ranks,
    permutation, num_segs, scalings, slice_offsets,
    NUM_SLICES: tl.constexpr, OUTPUT_DIM: tl.constexpr, MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, MORE
):
    PLACE
    if segment >= num_segs:
        return
    end = tl.load(seg_indptr + segment + 1)
    m = tl.load(seg_indptr + segment) + tl.arange(0, BLOCK_M)
    adapter = tl.load(weight_indices + segment)
    rank = tl.load(lora_ranks + adapter)
    if rank == 0:
        return
    rows = tl.load(permutation + m, mask=m < end, other=0)
    n = tl.load(slice_offsets + slice_id) + tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n[None, :] < tl.load(slice_offsets + slice_id + 1)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, rank, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(x + rows[:, None] * (NUM_SLICES * MAX_RANK) + slice_id * rank + k[None, :],
                    mask=(m[:, None] < end) & (k[None, :] < rank), other=0.0)
        b = tl.load(weights + adapter * OUTPUT_DIM * MAX_RANK + n[None, :] * MAX_RANK + k[:, None],
                    mask=inside & (k[:, None] < rank), other=0.0)
        sums += tl.dot(a, b)
    to = output + rows[:, None] * output_stride_0 + n[None, :] * output_stride_1
    sums = (sums * tl.load(scalings + adapter)).to(x.dtype.element_ty)
    mask = (m[:, None] < end) & inside
    tl.store(to, sums + tl.load(to, mask=mask, other=0.0), mask=mask)
"""
)

OLD_PLACE = """tile = tl.program_id(0)
    slice_id = tl.program_id(1)
    segment = tl.program_id(2)"""

NEW_PLACE = """segment = tl.program_id(1)
    tile = tl.program_id(0)
    slice_id = 0
    left = tile
    for s in tl.static_range(NUM_SLICES):
        tiles = (SLICE_OFFSETS[s + 1] - SLICE_OFFSETS[s] + BLOCK_N - 1) // BLOCK_N
        slice_id += (left >= tiles).to(tl.int32) * (slice_id == s).to(tl.int32)
        moved = slice_id == s + 1
        left = tl.where(moved, left - tiles, left)
    tile = left"""

STYLES = {
    "0.5.12": (
        "srt/lora/triton_ops",
        EXPAND_SOURCE.replace("MORE", "").replace("PLACE", OLD_PLACE),
    ),
    "0.5.23": (
        "kernels/ops/lora/dense",
        EXPAND_SOURCE.replace("MORE", "SLICE_OFFSETS: tl.constexpr,").replace("PLACE", NEW_PLACE),
    ),
}


def install(site: Path, version: str, *, shrink=SHRINK_SOURCE, expand: str | None = None) -> Path:
    """A SGLang in a folder; returns that of its kernels."""
    home, usual = STYLES[version]
    folder = site / "sglang" / home
    folder.mkdir(parents=True)
    (site / "sglang" / "__init__.py").write_text("raise AssertionError('nobody imports this')\n")
    (folder / "chunked_sgmv_shrink.py").write_text(shrink)
    (folder / "chunked_sgmv_expand.py").write_text(expand or usual)
    info = site / f"sglang-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder in front of the path."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    launcher.cache_clear()
    sglang.installed_kernels.cache_clear()
    yield folder
    launcher.cache_clear()
    sglang.installed_kernels.cache_clear()


def launch_of(task, **config):
    batch = make_batch([0] * 40, ranks=[16], scalings=[1.0], chunk_size=16, grid_segments=7)
    operands = empty_operands(task, batch, device="meta")
    offsets = task_offsets(task, device="cpu")
    return task_launch(task, operands, batch, offsets, config, Schedule(), kernels="sglang")


@pytest.mark.parametrize("version", STYLES)
def test_what_is_installed_has_a_name_and_a_version_of_its_source(site, version):
    folder = install(site, version)
    found = launcher("sglang")
    assert found.name == f"sglang-{version}"
    assert launcher(found.name) == found  # what a worker is given
    launcher.cache_clear()
    sglang.installed_kernels.cache_clear()
    with (folder / "chunked_sgmv_shrink.py").open("a") as file:
        file.write("# another\n")
    assert launcher("sglang").version != found.version


def test_launches_are_those_of_the_version(site):
    install(site, "0.5.23")
    assert launch_of(SHRINK, BLOCK_N=32, BLOCK_K=32).grid == (2, 7)
    flat = launch_of(EXPAND, BLOCK_N=16, BLOCK_K=16, num_warps=4, maxnreg=96)
    assert flat.grid == (3 + 1 + 1, 7)
    assert flat.args[-1] == EXPAND.slice_offsets
    assert flat.variant.constants == {"num_warps": 4, "maxnreg": 96}
    assert flat.args[3:5] == (72, 1)


def test_an_older_version_has_slices_as_an_axis(site):
    install(site, "0.5.12")
    launch = launch_of(EXPAND, BLOCK_N=16, BLOCK_K=16)
    assert launch.grid == (3, 3, 7)
    assert EXPAND.slice_offsets not in launch.args


def test_their_schedule_is_one_tile_a_program(site):
    install(site, "0.5.23")
    batch = make_batch([0] * 4096, ranks=[16], scalings=[1.0], chunk_size=16)
    config = {"BLOCK_N": 16, "BLOCK_K": 16}
    assert schedule_of(SHRINK, batch, config, Target(132, 90), kernels="sglang") == Schedule()


@pytest.mark.parametrize("version", STYLES)
def test_they_compile_for_another_gpu_as_tuning_does_it(site, version, tmp_path):
    install(site, version)
    worker = Worker(compiling.set_up, H200, str(tmp_path / "cache"))
    try:
        for task in (SHRINK, EXPAND):
            for config in (DEFAULT_CONFIGS[task.kernel], TUNED):
                compiled = worker.call(
                    compiling.compile_config,
                    task,
                    (Instance(tokens=32, adapters=8), Instance(tokens=4096)),
                    config,
                    f"sglang-{version}",
                    timeout_s=120,
                )
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
    for config in (Config(BLOCK_N=16, BLOCK_K=16), Config(BLOCK_N=64, BLOCK_K=32, num_warps=4)):
        generator = torch.Generator().manual_seed(0)
        print(difference_from_reference(task, config, Schedule(), generator, kernels="sglang"))
"""


def checked(site: Path) -> list[str]:
    """What the correctness check says of four candidates, in the interpreter."""
    root = Path(lora_autotune.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={"PYTHONPATH": f"{site}:{root}", "TRITON_INTERPRET": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", STYLES)
def test_they_are_checked_against_the_reference(tmp_path, version):
    install(tmp_path, version)
    assert checked(tmp_path) == ["None"] * 4


def test_what_they_get_wrong_is_found(tmp_path):
    shrink = SHRINK_SOURCE.replace("sums += tl.dot(a, b)", "sums = tl.dot(a, b)")
    expand = STYLES["0.5.23"][1].replace("* tl.load(scalings + adapter)", "* 1.0")
    install(tmp_path, "0.5.23", shrink=shrink, expand=expand)
    said = checked(tmp_path)
    assert all(line.startswith("relative error") for line in said)


# --- what cannot be tuned ------------------------------------------------------------------------


def refused() -> str:
    with pytest.raises(EvaluatorError) as caught:
        launcher("sglang")
    return str(caught.value)


def test_without_sglang_it_is_said(monkeypatch):
    sglang.installed_kernels.cache_clear()
    launcher.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refused().startswith("SGLang is not installed here: ")


def test_an_argument_that_nobody_knows_is_named(site):
    install(
        site, "0.5.23", shrink=SHRINK_SOURCE.replace("num_segs,\n", "num_segs, max_len, SPLIT,\n")
    )
    words = "SGLang 0.5.23: nobody knows what _chunked_lora_shrink_kernel takes as max_len, SPLIT"
    assert words in refused()


def test_a_kernel_of_another_name_is_said(site):
    install(site, "0.5.12", shrink=SHRINK_SOURCE.replace("_chunked_lora_shrink", "_shrink"))
    assert "SGLang 0.5.12 has no _chunked_lora_shrink_kernel" in refused()


def test_files_elsewhere_are_said(site):
    install(site, "0.5.12").rename(site / "sglang" / "elsewhere")
    assert "SGLang 0.5.12 has no CSGMV kernels where they were" in refused()


def test_a_checkout_on_the_path_has_no_version(site):
    install(site, "0.5.23")
    for file in (site / "sglang-0.5.23.dist-info").iterdir():
        file.unlink()
    (site / "sglang-0.5.23.dist-info").rmdir()
    assert launcher("sglang").name == "sglang-unknown"


def test_other_kernels_are_none():
    with pytest.raises(UsageError, match=r"no kernels 'vllm-1\.0' here"):
        launcher("vllm-1.0")
