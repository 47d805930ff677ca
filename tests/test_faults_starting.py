"""A machine that opens no GPU, or is interrupted as it starts: one clear error, nothing is left."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from lora_autotune import cli
from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, driver
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.evaluators.torch_build import TorchBuild
from lora_autotune.evaluators.worker import Worker
from lora_autotune.tuner import tune_all
from tests import fault_jobs
from tests.fault_stage import (
    DECODE,
    FILES,
    SHRINK,
)
from tests.gpus import H200


def play_the_driver(monkeypatch, named, opened, *, cuda="13.0") -> None:
    """A driver that names a GPU at once, and a torch that says later what it opens."""
    monkeypatch.setattr(driver, "first_gpu", functools.partial(fault_jobs.answer, named))
    monkeypatch.setattr(bench_jobs, "describe", opened)
    built = TorchBuild(version="2.11.0", cuda=cuda)
    monkeypatch.setattr("lora_autotune.evaluators.cuda.torch_build", lambda: built)


def test_compilers_work_before_the_bench_worker_has_opened_the_gpu(stage, monkeypatch):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.wait, stage.notes))
    stage.play()
    with CudaMachine(compile_workers=1) as machine:
        assert machine.platform.torch == "2.11.0"
        evaluator = machine.evaluator(SHRINK.task, SHRINK.workload)
        for config in SHRINK.space:
            evaluator.submit(config)
        while len(evaluator._lane.compiled) < len(SHRINK.space):
            assert evaluator.poll(20) is None
        (stage.notes / "go").touch()
        trials = [evaluator.collect() for _ in SHRINK.space]
    assert {trial.config for trial in trials} == set(SHRINK.space)


@pytest.mark.parametrize("other", [{}, {"multiprocessors": 16}, {"smem_bytes": 101_376}])
def test_the_winner_is_the_same_where_the_driver_named_another_gpu(stage, monkeypatch, other):
    opened = functools.partial(fault_jobs.answer, H200)
    play_the_driver(monkeypatch, replace(H200, **other), opened)
    seen = []
    stage.tune([SHRINK], watch=lambda machine, progress: seen.append(machine.gpu))
    assert stage.results[SHRINK.task].failures == {}
    assert seen[-1] == H200


@pytest.mark.parametrize(
    ("opened", "words"),
    [
        ("torch 2.11.0 sees no CUDA device", "no CUDA device to tune on: torch 2.11.0 sees no"),
        (replace(H200, name="NVIDIA L4"), "torch opens a NVIDIA L4, and the driver's first"),
    ],
)
def test_a_gpu_that_torch_does_not_open_is_one_clear_error(stage, monkeypatch, opened, words):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.answer, opened))
    stage.play()
    with CudaMachine(compile_workers=1) as machine:
        for landscape in [SHRINK, DECODE]:  # what is tuned next is not measured either
            with pytest.raises(EvaluatorError) as caught:
                list(tune_all(stage.jobs(machine, [landscape]), strategy="grid"))
            (line,) = str(caught.value).splitlines()
            assert words in line
    assert all(record.trials == [] for record in stage.records.values())


def test_a_torch_without_cuda_is_an_error_at_once(stage, monkeypatch):
    opened = functools.partial(fault_jobs.answer, "torch 2.11.0 has no CUDA in it")
    play_the_driver(monkeypatch, H200, opened, cuda=None)
    with pytest.raises(EvaluatorError, match="has no CUDA in it"):
        CudaMachine(compile_workers=1)


def test_a_run_that_opens_no_gpu_leaves_an_earlier_record_where_it_is(
    stage, monkeypatch, tmp_path, capsys
):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.answer, "torch sees none"))
    monkeypatch.setattr("lora_autotune.evaluators.cores.compile_workers", lambda: 1)
    stage.play()
    waited = []
    wait_until_open = CudaMachine.wait_until_open
    monkeypatch.setattr(
        CudaMachine, "wait_until_open", lambda self: waited.append(1) or wait_until_open(self)
    )
    words = ["tune", "--out", str(tmp_path / "out"), "--trials", "3"]
    task = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64", "--chunk-sizes", "64"]
    record = tmp_path / "out" / "tune.journal"

    assert cli.main([*words, *task]) == 1  # none is there: nobody waits before compiling begins
    assert "torch sees none" in capsys.readouterr().err
    assert waited == []
    record.unlink()

    assert cli.main([*words, "--replay", str(FILES[SHRINK.task])]) == 0
    before = record.read_bytes()
    capsys.readouterr()
    assert cli.main([*words, *task]) == 1
    assert "torch sees none" in capsys.readouterr().err
    assert waited == [1]
    assert record.read_bytes() == before
    assert not record.with_name("tune-1.journal").exists()


@pytest.mark.parametrize("started", range(4))
def test_ctrl_c_while_a_machine_starts_leaves_nothing(stage, monkeypatch, started):
    play_the_driver(monkeypatch, H200, fault_jobs.describe)
    left = iter(range(started))  # the bench worker, the driver's, and compilers
    start = Worker._start

    def interrupted(worker, *ready) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        start(worker, *ready)

    monkeypatch.setattr(Worker, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CudaMachine(compile_workers=3)
    stage.check_traces()


def test_an_error_while_a_machine_starts_leaves_nothing(stage, monkeypatch):
    monkeypatch.setattr(driver, "first_gpu", functools.partial(fault_jobs.answer, None))
    monkeypatch.setattr(bench_jobs, "describe", functools.partial(fault_jobs.answer, "none here"))
    with pytest.raises(EvaluatorError, match="none here"):
        CudaMachine()
    stage.check_traces()
