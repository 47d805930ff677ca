"""Compile-only tests: every config family for sm_90, in real worker processes, without a GPU."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import triton

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.bounds import foretold_failure, pipeline_bytes, served_smem_bytes
from lora_autotune.evaluators.plan import planned_batch, schedule_of
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.space import DEFAULT_CONFIGS, SPACE_NAMES, Config, named_space
from lora_autotune.task import (
    CHUNK_SIZES,
    DECODE,
    KERNELS,
    SMALL_BATCH,
    Instance,
    Task,
    default_workload,
)
from lora_autotune.testing import covering_configs
from tests.gpus import H200, L40S

WORKLOAD = (Instance(tokens=4096),)
SHRINK = Task(kernel="shrink", K=256, R=32, S=3, chunk_size=32)
EXPAND = Task(kernel="expand", K=512, R=32, S=2, chunk_size=32)


def compile_one(worker, task, config, workload=WORKLOAD):
    return worker.call(compiling.compile_config, task, workload, config, timeout_s=120)


def least_smem_bytes(task, config):
    """What the pipeline of shrink is known to need on WORKLOAD."""
    if task.kernel != "shrink":
        return 0
    batch = planned_batch(task, *WORKLOAD)
    schedule = schedule_of(task, batch, config.as_dict(), H200.target)
    launched = Config.from_dict(schedule.applied_to(config.as_dict()))
    tile = launched.BLOCK_N, launched.BLOCK_K
    return pipeline_bytes(schedule.group * batch.sizes.piece_rows, tile, launched, H200)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("task", [SHRINK, EXPAND], ids=lambda task: task.kernel)
@pytest.mark.parametrize("chunk_size", [16, 64, 128])
def test_the_default_compiles(compiler, task, chunk_size, dtype):
    sized = Task(
        kernel=task.kernel, K=task.K, R=task.R, S=task.S, chunk_size=chunk_size, dtype=dtype
    )
    compiled = compile_one(compiler, sized, DEFAULT_CONFIGS[task.kernel])
    assert compiled.failure is None
    assert compiled.smem_bytes > 0
    assert compiled.compute_s > 0


FAMILIES = [
    pytest.param(kernel, CHUNK_SIZES[place % 4], config, id=f"{name}-{kernel}-{config}")
    for name in SPACE_NAMES
    for kernel in KERNELS
    for place, config in enumerate(dict.fromkeys(covering_configs(named_space(name, kernel))))
]


@pytest.mark.parametrize("name", SPACE_NAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_families_hold_every_value_of_every_axis(name, kernel):
    space = named_space(name, kernel)
    configs = [config for one, _, config in (param.values for param in FAMILIES) if one == kernel]
    for axis, values in space.axes.items():
        assert {getattr(config, axis) for config in configs if config in space} == set(values)


@pytest.mark.parametrize(("kernel", "chunk_size", "config"), FAMILIES)
def test_every_family_compiles(compiler, kernel, chunk_size, config):
    task = Task(kernel=kernel, K=2048, R=64, S=2, chunk_size=chunk_size)
    compiled = compile_one(compiler, task, config)
    assert compiled.smem_bytes >= max(1, least_smem_bytes(task, config))
    if compiled.failure is not None:
        assert compiled.smem_bytes > H200.smem_bytes
        assert compiled.failure.kind == "resources"
        assert f"needs {compiled.smem_bytes} bytes of shared memory" in compiled.failure.message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("S", "R"), [(1, 1), (2, 24), (3, 20), (3, 128)])
def test_any_rank_and_number_of_slices_compiles(compiler, S, R, dtype):
    shape = {"R": R, "S": S, "chunk_size": 16, "dtype": dtype}
    shrink = Task(kernel="shrink", K=328, **shape)
    config = Config(BLOCK_N=32, BLOCK_K=64, num_warps=4, num_stages=3)
    workload = DECODE, *WORKLOAD
    assert compile_one(compiler, shrink, config, workload).failure is None

    offsets = [(0, 328), (0, 200, 328), (0, 200, 264, 328)][S - 1]
    expand = Task(kernel="expand", K=328, slice_offsets=offsets, **shape)
    config = Config(BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2, maxnreg=96)
    assert compile_one(compiler, expand, config, workload).failure is None


def test_too_much_shared_memory_is_a_failure_before_the_gpu_sees_it(compiler):
    task = Task(kernel="shrink", K=4096, R=64, S=3, chunk_size=128)
    config = Config(BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=5)
    failure = compile_one(compiler, task, config, default_workload(128)).failure
    assert failure is not None
    assert failure.kind == "resources"
    assert "shared memory" in failure.message


def test_what_needs_too_much_for_more_rows_than_measured_is_foretold(compiler):
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
    config = Config(BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=5)
    assert compile_one(compiler, task, config, (Instance(tokens=2048),)).failure is None
    more = compile_one(compiler, task, config, default_workload(64))
    assert more.failure.kind == "resources"
    assert more.smem_bytes >= served_smem_bytes(task, config, H200) > H200.smem_bytes
    assert foretold_failure(task, config, H200).kind == "resources"


def test_the_default_is_measured_wherever_it_runs():
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=128)
    small = replace(H200, smem_bytes=90 << 10)
    default = DEFAULT_CONFIGS["shrink"]
    assert served_smem_bytes(task, default, small) > small.smem_bytes
    assert foretold_failure(task, default, small) is None
    assert foretold_failure(task, replace(default, num_stages=3), small) is not None


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """A compile worker for a GPU of less shared memory."""
    worker = Worker(compiling.set_up, L40S, str(tmp_path_factory.mktemp("smaller")))
    yield worker
    worker.close()


@pytest.mark.parametrize("rank", [20, 64, 72, 128, 256])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_default_fits_a_smaller_gpu_at_few_rows(smaller, kernel, rank):
    for chunk_size, instance in ((16, DECODE), (32, SMALL_BATCH)):
        task = Task(kernel=kernel, K=2048, R=rank, S=2, chunk_size=chunk_size)
        assert compile_one(smaller, task, DEFAULT_CONFIGS[kernel], (instance,)).failure is None


@pytest.mark.parametrize(("rank", "chunk_size"), [(16, 16), (64, 16), (16, 128), (64, 64)])
@pytest.mark.parametrize(
    ("block_n", "block_k", "warps", "stages"),
    [(16, 256, 4, 3), (32, 256, 4, 3), (64, 128, 8, 2), (64, 256, 4, 4), (64, 64, 2, 5)],
)
def test_the_shared_memory_that_is_foretold_is_that_of_the_batch_that_needs_most(
    compiler, block_n, block_k, warps, stages, rank, chunk_size
):
    task = Task(kernel="shrink", K=1024, R=rank, S=2, chunk_size=chunk_size)
    config = Config(BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=stages)
    needed = [
        compile_one(compiler, task, config, (Instance(tokens=tokens),)).smem_bytes
        for tokens in (2048, 30_720)
    ]
    foretold = served_smem_bytes(task, config, H200)
    assert 0.98 * foretold <= max(needed) <= 1.02 * foretold + 2048


def test_what_the_compiler_refuses_is_a_failure(compiler):
    failure = compile_one(compiler, SHRINK, Config(BLOCK_N=64, BLOCK_K=48)).failure
    assert failure is not None
    assert failure.kind == "compile"


def test_a_compile_over_its_limit_is_killed_and_the_next_one_works(compiler):
    slow = Config(BLOCK_N=128, BLOCK_K=512, num_warps=1, num_stages=2)
    died = compiler.call(compiling.compile_config, SHRINK, WORKLOAD, slow, timeout_s=0.05)
    assert isinstance(died, Died)
    assert died.timed_out
    assert compile_one(compiler, SHRINK, DEFAULT_CONFIGS["shrink"]).failure is None


def test_a_compile_killed_from_outside_is_a_death_and_the_next_one_works(tmp_path):
    worker = Worker(compiling.set_up, H200, str(tmp_path))
    try:
        pid = worker.call(os.getpid, timeout_s=60)
        task = Task(kernel="shrink", K=2048, R=64, S=3, chunk_size=128)
        slow = Config(BLOCK_N=128, BLOCK_K=512, num_warps=1, num_stages=2)  # some 40 s
        worker.submit(compiling.compile_config, task, WORKLOAD, slow, timeout_s=120)
        wait_for(lambda: any(tmp_path.glob("*/*.ttgir")))
        os.kill(pid, signal.SIGKILL)
        died = worker.result()
        assert isinstance(died, Died)
        assert not died.timed_out
        assert "SIGKILL" in died.message
        assert not any(tmp_path.rglob("*.cubin"))
        assert compile_one(worker, SHRINK, DEFAULT_CONFIGS["shrink"]).failure is None
    finally:
        worker.close()


def wait_for(condition):
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def set_up_with_ptxas(ptxas, gpu, cache_dir):
    os.environ["TRITON_PTXAS_PATH"] = str(ptxas)
    compiling.set_up(gpu, cache_dir)


def test_a_compiler_that_crashes_is_a_failure_and_the_worker_lives_on(tmp_path):
    real = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    fake = tmp_path / "ptxas"
    fake.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ] || [ -e "{tmp_path}/mended" ]; then exec "{real}" "$@"; fi\n'
        "kill -SEGV $$\n"
    )
    fake.chmod(0o755)
    worker = Worker(set_up_with_ptxas, fake, H200, str(tmp_path / "cache"))
    try:
        pid = worker.call(os.getpid, timeout_s=60)
        failure = compile_one(worker, SHRINK, DEFAULT_CONFIGS["shrink"]).failure
        assert failure is not None
        assert failure.kind == "compile"
        assert "ptxas" in failure.message
        assert "-11" in failure.message or "SIGSEGV" in failure.message

        (tmp_path / "mended").touch()
        assert compile_one(worker, SHRINK, DEFAULT_CONFIGS["shrink"]).failure is None
        assert worker.call(os.getpid, timeout_s=60) == pid
    finally:
        worker.close()
