"""Compile-only tests: every config family for sm_90, in real worker processes, without a GPU."""

import pytest

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Instance, Task

H200 = Gpu(
    name="NVIDIA H200",
    capability=90,
    multiprocessors=132,
    smem_bytes=232_448,
    l2_bytes=60 << 20,
    triton="any",
)
WORKLOAD = (Instance(tokens=4096),)
SHRINK = Task(kernel="shrink", K=256, R=32, S=3, chunk_size=32)
EXPAND = Task(kernel="expand", K=512, R=32, S=2, chunk_size=32)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    worker = Worker(compiling.set_up, H200, str(tmp_path_factory.mktemp("cache")))
    yield worker
    worker.close()


def compile_one(worker, task, config):
    return worker.call(compiling.compile_config, task, WORKLOAD, config, timeout_s=120)


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


@pytest.mark.parametrize(
    "config",
    [
        Config(BLOCK_N=16, BLOCK_K=32, num_warps=1, num_stages=1),
        Config(BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3),
        Config(BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=2),
    ],
    ids=str,
)
def test_every_family_of_shrink_compiles(compiler, config):
    assert compile_one(compiler, SHRINK, config).failure is None


@pytest.mark.parametrize(
    "config",
    [
        Config(BLOCK_N=16, BLOCK_K=16, num_warps=2, num_stages=1),
        Config(BLOCK_N=64, BLOCK_K=16, num_warps=4, num_stages=3, maxnreg=96),
        Config(BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=4, maxnreg=255),
    ],
    ids=str,
)
def test_every_family_of_expand_compiles(compiler, config):
    assert compile_one(compiler, EXPAND, config).failure is None


def test_too_much_shared_memory_is_a_failure_before_the_gpu_sees_it(compiler):
    task = Task(kernel="shrink", K=4096, R=64, S=3, chunk_size=128)
    config = Config(BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=5)
    failure = compile_one(compiler, task, config).failure
    assert failure is not None
    assert failure.kind == "resources"
    assert "shared memory" in failure.message


def test_what_the_compiler_refuses_is_a_failure(compiler):
    failure = compile_one(compiler, SHRINK, Config(BLOCK_N=24, BLOCK_K=64)).failure
    assert failure is not None
    assert failure.kind == "compile"


def test_a_compile_over_its_limit_is_killed_and_the_next_one_works(compiler):
    slow = Config(BLOCK_N=128, BLOCK_K=512, num_warps=1, num_stages=2)
    died = compiler.call(compiling.compile_config, SHRINK, WORKLOAD, slow, timeout_s=0.05)
    assert isinstance(died, Died)
    assert died.timed_out
    assert compile_one(compiler, SHRINK, DEFAULT_CONFIGS["shrink"]).failure is None
