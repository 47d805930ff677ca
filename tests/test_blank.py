"""Blanks stand for tensors so well that Triton makes the same binary of a launch, without torch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import empty_operands, schedule_of, task_launch, task_offsets
from lora_autotune.evaluators.worker import Worker
from lora_autotune.kernels.batch import served_batch
from lora_autotune.kernels.blank import NOWHERE, Blank, empty, holding
from lora_autotune.kernels.launch import Launch
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Instance, Task
from tests.gpus import H200

DIVIDED = Task(kernel="shrink", K=4096, R=16, S=1, chunk_size=16)
SHRINK = Task(kernel="shrink", K=328, R=20, S=1, chunk_size=128, dtype="bfloat16")
EXPAND = Task(kernel="expand", K=1024, R=16, S=2, chunk_size=16)
UNEVEN = Task(
    kernel="expand",
    K=328,
    R=24,
    S=3,
    chunk_size=64,
    dtype="bfloat16",
    slice_offsets=(0, 200, 264, 328),
)
DECODE, PREFILL, ONE = Instance(tokens=32, adapters=8), Instance(tokens=30720), Instance(tokens=1)
MIXED = Instance(tokens=300, adapters=3, spread="zipf", ranks=(16, 3, 0))
LIMITED = Config(BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2, maxnreg=96)
CASES = {
    "divided": (DIVIDED, DECODE, DEFAULT_CONFIGS["shrink"]),
    "divided, one row": (DIVIDED, ONE, LIMITED),
    "shrink": (DIVIDED, PREFILL, DEFAULT_CONFIGS["shrink"]),
    "odd shrink": (SHRINK, MIXED, LIMITED),
    "expand": (EXPAND, DECODE, DEFAULT_CONFIGS["expand"]),
    "tall expand": (EXPAND, PREFILL, DEFAULT_CONFIGS["expand"]),
    "odd expand": (UNEVEN, MIXED, LIMITED),
    "one row": (UNEVEN, ONE, DEFAULT_CONFIGS["expand"]),
}

TORCHLESS = """
import pickle, sys
from lora_autotune.evaluators import compiling
gpu, cache, cases = pickle.load(sys.stdin.buffer)
compiling.set_up(gpu, cache)
for task, instance, config in cases:
    compiled = compiling.compile_config(task, (instance,), config)
    assert compiled.failure is None, compiled
assert not sys.modules.get("torch")
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """What a process without torch compiles."""
    folder = tmp_path_factory.mktemp("cache")
    subprocess.run(
        [sys.executable, "-c", TORCHLESS],
        input=pickle.dumps((H200, str(folder), list(CASES.values()))),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    return folder


@pytest.fixture(scope="module")
def with_torch(cache):
    worker = Worker(set_up_with_torch, H200, str(cache))
    yield worker
    worker.close()


def set_up_with_torch(gpu: Gpu, cache_dir: str) -> None:
    torch.empty(1)
    compiling.set_up(gpu, cache_dir)


def launch_on(device: str, task: Task, instance: Instance, config: Config) -> Launch:
    """A launch as the bench worker makes it."""
    batch = served_batch(instance, rank=task.R, chunk_size=task.chunk_size, device=device)
    options = config.as_dict()
    schedule = schedule_of(task, batch, options, H200.target)
    operands = empty_operands(task, batch, device=device)
    offsets = task_offsets(task, device=device)
    return task_launch(task, operands, batch, offsets, options, schedule)


def compile_with_tensors(task: Task, instance: Instance, config: Config) -> bool:
    """Returns whether the sum was divided."""
    launch = launch_on("meta", task, instance, config)
    assert isinstance(launch.args[0], torch.Tensor)
    launch.compile()
    return launch.variant.constants.get("SPLIT", False)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_tensors_find_what_was_compiled_for_blanks(cache, with_torch, name):
    before = files_in(cache)
    assert any(file.endswith(".cubin") for file in before)
    divided = with_torch.call(compile_with_tensors, *CASES[name], timeout_s=120)
    assert files_in(cache) == before
    assert divided == name.startswith("divided")


def test_what_nobody_compiled_would_show(cache, with_torch):
    before = files_in(cache)
    other = Config(BLOCK_N=16, BLOCK_K=16, num_warps=2, num_stages=1)
    with_torch.call(compile_with_tensors, EXPAND, PREFILL, other, timeout_s=120)
    assert files_in(cache) > before


def compare_with_tensors(task: Task, instance: Instance, config: Config) -> None:
    blank, real = (launch_on(device, task, instance, config) for device in (NOWHERE, "cpu"))
    assert (blank.variant.kernel, blank.grid) == (real.variant.kernel, real.grid)
    for ours, theirs in zip(blank.args, real.args, strict=True):
        if isinstance(ours, Blank):
            assert f"torch.{ours.dtype}" == str(theirs.dtype)
            assert ours.shape[1:] == theirs.shape[1:]
            assert tuple(map(ours.stride, range(len(ours.shape)))) == theirs.stride()
            assert ours.data_ptr() % 16 == theirs.data_ptr() % 16
        else:
            assert ours == theirs


@pytest.mark.parametrize("name", [name for name in CASES if name != "shrink"])
def test_a_launch_differs_in_its_tensors_only(with_torch, name):
    assert with_torch.call(compare_with_tensors, *CASES[name], timeout_s=120) is None


def test_blanks_are_made_nowhere_only():
    assert empty((2, 3), "float16", NOWHERE) == Blank((2, 3), "float16")
    assert holding([1, 2], "int32", NOWHERE) == Blank((2,), "int32")
    assert empty((2, 3), "float16", "cpu").dtype == torch.float16
    assert torch.equal(holding([1, 2], "int32", "cpu"), torch.tensor([1, 2], dtype=torch.int32))
    assert Blank((2, 3), "float16").device == NOWHERE
