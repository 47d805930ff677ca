"""The evaluator on a GPU, with real faults; and what it says where there is none."""

import pytest
import torch

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import cuda
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Instance, Task
from lora_autotune.trial import Failure, Measurement

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TASK = Task(kernel="shrink", K=1024, R=16, S=3, chunk_size=16)
WORKLOAD = (Instance(tokens=32, adapters=8), Instance(tokens=512))
GOOD = [
    Config(BLOCK_N=16, BLOCK_K=128, num_warps=4, num_stages=3),
    Config(BLOCK_N=32, BLOCK_K=64, num_warps=2, num_stages=2),
    Config(BLOCK_N=16, BLOCK_K=64, num_warps=2, num_stages=2),
    Config(BLOCK_N=32, BLOCK_K=128, num_warps=4, num_stages=2),
]


def illegal_access():
    """Leave the CUDA context unusable, as a candidate with a wild pointer does."""
    torch.zeros(4, device="cuda")[torch.tensor([1 << 30], device="cuda")]


def endless_kernel():
    """Occupy the stream for minutes."""
    torch.cuda._sleep(1 << 40)


def evaluate(evaluator, config):
    evaluator.submit(config)
    return evaluator.collect().outcome


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(EvaluatorError, match="--replay"):
        CudaMachine()


@pytest.mark.gpu
@on_gpu
def test_faults_become_failures_and_the_next_candidate_is_measured(monkeypatch):
    monkeypatch.setattr(cuda, "MEASURE_TIMEOUT_S", 15.0)
    with CudaMachine(compile_workers=2) as machine:
        evaluator = machine.evaluator(TASK, WORKLOAD)
        default = evaluate(evaluator, DEFAULT_CONFIGS["shrink"])
        assert isinstance(default, Measurement)
        assert len(default.times_us) == 2

        machine.bench.call(illegal_access, timeout_s=60)
        crashed = evaluate(evaluator, GOOD[0])
        assert isinstance(crashed, Failure)
        assert crashed.kind == "crash"
        assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)

        machine.bench.call(endless_kernel, timeout_s=60)
        hung = evaluate(evaluator, GOOD[2])
        assert isinstance(hung, Failure)
        assert hung.kind == "timeout"
        assert isinstance(evaluate(evaluator, GOOD[3]), Measurement)

        rounds = evaluator.remeasure([DEFAULT_CONFIGS["shrink"], GOOD[3]], rounds=3)
        assert [len(result) for result in rounds] == [3, 3]
        evaluator.close()
    assert not machine.bench.busy


@pytest.mark.gpu
@on_gpu
def test_a_task_too_large_for_the_gpu_is_an_error():
    with CudaMachine(compile_workers=1) as machine:
        huge = (Instance(tokens=1 << 28),)
        with pytest.raises(EvaluatorError, match="--tokens"):
            machine.evaluator(Task(kernel="shrink", K=65536, R=64, S=3, chunk_size=128), huge)
