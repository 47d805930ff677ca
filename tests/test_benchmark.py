"""One config at a time: the right task is evaluated, on this GPU or not at all."""

from __future__ import annotations

import pytest
import torch

from lora_autotune import benchmark_expand_config, benchmark_shrink_config
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.space import Config
from lora_autotune.task import DECODE, PREFILL, Instance, Task
from lora_autotune.trial import Failure, Measurement, Trial

SHAPE = {"K": 1024, "R": 64, "num_slices": 3, "chunk_size": 16}
CONFIG = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Machine:
    """Remembers what it is asked to evaluate, and answers."""

    def __init__(self, outcome) -> None:
        self.outcome = outcome
        self.asked: list = []
        self.closed = 0

    def evaluator(self, task, workload, *, prune, patient):
        assert not prune
        assert patient
        self.asked.append((task, workload))
        return self

    def submit(self, config):
        self.config = config

    def collect(self):
        return Trial(config=self.config, outcome=self.outcome)

    def close(self):
        self.closed += 1


def test_shrink_is_evaluated_on_the_batches_that_reach_the_chunk_size():
    machine = Machine(Measurement(times_us=(5.0, 90.0)))
    trial = benchmark_shrink_config(CONFIG, **SHAPE, machine=machine)
    assert trial.config == Config(**CONFIG)
    assert trial.outcome.times_us == (5.0, 90.0)
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
    assert machine.asked == [(task, (DECODE, PREFILL))]
    assert machine.closed == 1


def test_expand_takes_slices_a_dtype_and_batches_of_its_own():
    machine = Machine(Failure(kind="wrong", message="made up"))
    batches = (Instance(tokens=7),)
    offsets = [0, 512, 768, 1024]
    trial = benchmark_expand_config(
        {**CONFIG, "maxnreg": 96},
        **SHAPE,
        slice_offsets=offsets,
        dtype="bfloat16",
        workload=batches,
        machine=machine,
    )
    assert trial.outcome.kind == "wrong"
    ((task, workload),) = machine.asked
    assert (task.kernel, task.dtype, task.slice_offsets) == ("expand", "bfloat16", tuple(offsets))
    assert workload == batches


@pytest.mark.parametrize(
    ("config", "shape"),
    [({"BLOCK_N": 64}, SHAPE), ({**CONFIG, "warps": 4}, SHAPE), (CONFIG, {**SHAPE, "R": 0})],
)
@pytest.mark.parametrize("evaluate", [benchmark_shrink_config, benchmark_expand_config])
def test_what_makes_no_sense_is_refused_before_a_machine_is_started(evaluate, config, shape):
    with pytest.raises(UsageError):
        evaluate(config, **shape)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    with pytest.raises(EvaluatorError, match="no CUDA device"):
        benchmark_shrink_config(CONFIG, **SHAPE)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("evaluate", [benchmark_shrink_config, benchmark_expand_config])
def test_on_a_gpu_a_config_is_measured(evaluate):
    trial = evaluate(CONFIG, **{**SHAPE, "num_slices": 1}, workload=(Instance(tokens=64),))
    assert isinstance(trial.outcome, Measurement)
    assert 0 < trial.outcome.times_us[0] < 1e5
    assert trial.resources is not None
