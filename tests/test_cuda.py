"""The evaluator on a GPU, with real faults; and what it says where there is none.

tests/test_faults_*.py have the faults that need no GPU, and more of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import correctness, measuring, pipeline, plan
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.job import Job
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import PREFILL, Instance, Task
from lora_autotune.testing import check_evaluator
from lora_autotune.trial import Failure, Measurement
from lora_autotune.tuner import tune_all

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TASK = Task(kernel="shrink", K=1024, R=16, S=3, chunk_size=16)
OTHER = Task(kernel="expand", K=1024, R=16, S=1, chunk_size=16)
WORKLOAD = (Instance(tokens=32, adapters=8), Instance(tokens=512))
DEFAULT = DEFAULT_CONFIGS["shrink"]
SPACE = SearchSpace(
    {"BLOCK_N": (16, 32), "BLOCK_K": (64, 128), "num_warps": (4,), "num_stages": (2, 3)}
)
GOOD = list(SPACE)
OTHER_SPACE = SearchSpace(
    {"BLOCK_N": (32, 64), "BLOCK_K": (16,), "num_warps": (4,), "num_stages": (1, 2)}
)

# What follows runs in the bench worker: machine.bench.call(...).

hoarded: list[torch.Tensor] = []


def illegal_access():
    """Leave the CUDA context unusable, as a candidate with a wild pointer does."""
    torch.zeros(4, device="cuda")[torch.tensor([1 << 30], device="cuda")]


def endless_kernel():
    """Occupy the stream for minutes."""
    torch.cuda._sleep(1 << 40)


def crash_at(task: Task, config: Config):
    """Let a candidate access what it must not, until the worker is replaced."""
    real = measuring._checked

    def checked(subject, its_config, prepared):
        if (subject.task, its_config) == (task, config):
            illegal_access()
        return real(subject, its_config, prepared)

    measuring._checked = checked


def spoil_everything(output: torch.Tensor):
    output.mul_(1.02)


def spoil_last_row(output: torch.Tensor):
    rows = (~output.isnan()).any(dim=1).nonzero().flatten()
    output[rows[-1], 0] = torch.nan


def compute_wrongly(spoil):
    """Spoil what every candidate that is checked from now on has computed."""

    def task_launch(task, operands, *rest, **options):
        launch = plan.task_launch(task, operands, *rest, **options)

        def run():
            launch()
            spoil(operands.output)

        return run

    correctness.task_launch = task_launch
    measuring._right.clear()


def compute_rightly():
    correctness.task_launch = plan.task_launch


def hoard():
    """Leave no device memory to a candidate."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            hoarded.append(torch.empty(1 << 16, dtype=torch.uint8, device="cuda"))


def share():
    hoarded.clear()
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(scope="module")
def machine():
    with CudaMachine(compile_workers=4) as one:
        yield one


@pytest.fixture
def evaluator(machine):
    one = machine.evaluator(TASK, WORKLOAD, prune=False)
    assert isinstance(evaluate(one, DEFAULT), Measurement)
    yield one
    one.close()


def evaluate(evaluator, config):
    evaluator.submit(config)
    return evaluator.collect().outcome


def free_bytes() -> int:
    """Free device memory, as another process sees it."""
    code = "import torch; print(torch.cuda.mem_get_info()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def members(groups: set[int]) -> list[int]:
    """The living processes of some process groups."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) in groups and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(EvaluatorError, match="--replay"):
        CudaMachine()


@pytest.mark.gpu
@on_gpu
def test_it_keeps_the_contract(machine):
    check_evaluator(lambda: machine.evaluator(TASK, WORKLOAD), GOOD[:3])


@pytest.mark.gpu
@on_gpu
def test_an_illegal_address_is_a_crash_and_the_next_candidate_is_measured(machine, evaluator):
    machine.bench.call(crash_at, TASK, GOOD[0], timeout_s=60)
    crashed = evaluate(evaluator, GOOD[0])
    assert isinstance(crashed, Failure)
    assert crashed.kind == "crash"
    assert len(crashed.message.splitlines()) == 1
    assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)


@pytest.mark.gpu
@on_gpu
def test_an_endless_kernel_is_a_timeout_and_the_next_candidate_is_measured(
    machine, evaluator, monkeypatch
):
    monkeypatch.setattr(pipeline, "MEASURE_TIMEOUT_S", 15.0)
    machine.bench.call(endless_kernel, timeout_s=60)
    hung = evaluate(evaluator, GOOD[0])
    assert hung == Failure(kind="timeout", message="while measuring: over its limit of 15 s")
    assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)
    rounds = evaluator.remeasure([DEFAULT, GOOD[1]], rounds=3)
    assert [len(result) for result in rounds] == [3, 3]
    assert all(isinstance(one, tuple) for result in rounds for one in result)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    ("spoil", "words"),
    [(spoil_everything, "relative error 0.02"), (spoil_last_row, "relative error nan")],
)
def test_a_wrong_result_is_a_failure_though_only_one_element_is_nan(
    machine, evaluator, spoil, words
):
    machine.bench.call(compute_wrongly, spoil, timeout_s=60)
    wrong = evaluate(evaluator, GOOD[0])
    machine.bench.call(compute_rightly, timeout_s=60)
    assert isinstance(wrong, Failure)
    assert wrong.kind == "wrong"
    assert words in wrong.message
    assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)


@pytest.mark.gpu
@on_gpu
def test_a_candidate_without_device_memory_is_a_failure_and_the_next_is_measured(machine):
    # Of few rows all candidates are launched alike, and what is known to be right is not checked.
    evaluator = machine.evaluator(TASK, (PREFILL,), prune=False)
    assert isinstance(evaluate(evaluator, DEFAULT), Measurement)
    machine.bench.call(hoard, timeout_s=60)
    hungry = evaluate(evaluator, GOOD[0])
    machine.bench.call(share, timeout_s=60)
    assert isinstance(hungry, Failure)
    assert hungry.kind == "memory", hungry.message
    assert len(hungry.message.splitlines()) == 1
    assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)
    evaluator.close()


@pytest.mark.gpu
@on_gpu
def test_a_task_too_large_for_the_gpu_is_an_error_and_others_go_on(machine, evaluator):
    task = Task(kernel="shrink", K=65536, R=64, S=3, chunk_size=128)
    huge = machine.evaluator(task, (Instance(tokens=1 << 22),))
    huge.submit(DEFAULT)
    with pytest.raises(EvaluatorError, match="--tokens") as caught:
        huge.collect()
    assert len(str(caught.value).splitlines()) == 1
    huge.close()
    assert isinstance(evaluate(evaluator, GOOD[1]), Measurement)


@pytest.mark.gpu
@on_gpu
def test_a_bench_worker_that_somebody_kills_costs_its_candidate_nothing(machine, evaluator):
    machine.bench.call(endless_kernel, timeout_s=60)
    evaluator.submit(GOOD[0])
    killer = threading.Timer(2.0, os.kill, [machine.bench._process.pid, signal.SIGKILL])
    killer.start()
    trial = evaluator.collect()
    killer.join()
    assert isinstance(trial.outcome, Measurement)


@pytest.mark.gpu
@on_gpu
def test_a_crash_of_one_task_does_not_touch_another_that_is_tuned_at_once(machine):
    machine.bench.call(crash_at, TASK, GOOD[2], timeout_s=60)
    jobs = [
        Job(evaluator=machine.evaluator(task, WORKLOAD, patient=True), space=space)
        for task, space in ((TASK, SPACE), (OTHER, OTHER_SPACE))
    ]
    results = {result.task: result for result in tune_all(jobs, strategy="grid")}
    assert results[TASK].failures == {"crash": 1}
    assert results[OTHER].failures == {}
    assert results[TASK].trials == len(SPACE) + 1
    assert results[OTHER].trials == len(OTHER_SPACE) + 1
    assert all(result.selection.config is not None for result in results.values())


@pytest.mark.gpu
@on_gpu
def test_a_closed_machine_leaves_no_process_and_no_device_memory():
    before = free_bytes()
    with CudaMachine(compile_workers=2) as machine:
        evaluator = machine.evaluator(TASK, (Instance(tokens=1 << 16),))
        assert isinstance(evaluate(evaluator, DEFAULT), Measurement)
        machine.bench.call(endless_kernel, timeout_s=60)
        for config in GOOD[:4]:
            evaluator.submit(config)
        groups = {worker._process.pid for worker in [machine.bench, *machine.compilers]}
        assert set(members(groups)) >= groups
        assert free_bytes() < before - (64 << 20)
    assert members(groups) == []
    deadline_s = time.monotonic() + 10
    while (after := free_bytes()) < before - (64 << 20) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert after >= before - (64 << 20)
