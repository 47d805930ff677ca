"""Batches that are held out: who has them, when they are prepared for, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lora_autotune import cli
from lora_autotune.errors import EvaluatorError
from lora_autotune.job import Job
from lora_autotune.provenance import find_provenance
from lora_autotune.result import write_result
from lora_autotune.task import BETWEEN, DECODE, PREFILL, default_workload
from lora_autotune.trial import Measurement
from lora_autotune.tuner import LAST, tune, tune_all
from tests.tuner_doubles import BEST, DEFAULT, PLATFORM, SPACE, TASK, Bench, time_us


class Between:
    """Measures on what is held out: a loser takes three times as long; ready after some looks."""

    def __init__(self, task=TASK, *, losers=(), looks=0) -> None:
        self.task = task
        self.workload = BETWEEN
        self.losers = losers
        self.looks = looks
        self.begun: list = []

    @property
    def prepared(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def prepare(self, configs, /) -> None:
        self.begun.append(list(configs))

    def remeasure(self, configs, /, *, rounds):
        times = [time_us(config) * (3 if config in self.losers else 1) for config in configs]
        return [[(one,) * len(BETWEEN)] * rounds for one in times]


def run(held_out):
    return tune(TASK, evaluator=Bench(), held_out=held_out, space=SPACE, strategy="grid")


def test_the_winner_is_prepared_for_and_wins_where_it_loses_nothing():
    between = Between()
    result = run(between)
    assert (result.selection.config, result.selection.held_out) == (BEST, BETWEEN)
    assert set(map(tuple, between.begun)) == {(DEFAULT, BEST)}


def test_a_loser_does_not_win():
    result = run(Between(losers=[BEST]))
    assert result.selection.config not in (BEST, DEFAULT)
    assert result.selection.held_out == BETWEEN


def test_where_nothing_seems_better_than_the_default_nothing_is_prepared():
    between = Between()
    slow = {config: Bench().outcome(DEFAULT) for config in SPACE}
    tune(TASK, evaluator=Bench(slow), held_out=between, space=SPACE, strategy="grid")
    assert between.begun == []


def test_what_leads_is_prepared_for_while_the_last_candidates_are_under_way():
    bench, under_way = Bench(capacity=8), []

    class Watched(Between):
        def prepare(self, configs, /) -> None:
            super().prepare(configs)
            under_way.append(len(bench._in_flight))

    between = Watched()
    result = tune(TASK, evaluator=bench, held_out=between, space=SPACE, strategy="grid")
    assert result.selection.config == BEST
    assert under_way[0] == LAST
    assert between.begun[-1] == [DEFAULT, BEST]


def test_a_winner_that_is_just_ahead_is_prepared_for_once_it_has_won():
    between, bench = Between(), Bench()
    times = {config: 99.0 if config == BEST else 120.0 for config in SPACE}
    bench._outcomes = {config: Measurement(times_us=(one,)) for config, one in times.items()}
    began: list[int] = []
    real = bench.remeasure

    def remeasure(configs, /, *, rounds):
        began.append(len(between.begun))
        return real(configs, rounds=rounds)

    bench.remeasure = remeasure
    result = tune(TASK, evaluator=bench, held_out=between, space=SPACE, strategy="grid")
    assert (result.selection.config, began, len(between.begun)) == (BEST, [0], 1)


def test_what_measures_another_task_is_refused():
    with pytest.raises(EvaluatorError, match="cannot hold out"):
        run(Between(replace(TASK, K=2048)))


def test_tasks_that_are_ready_do_not_wait_for_one_that_is_not():
    jobs = []
    for K, looks in ((1024, 3), (1040, 0), (1056, 0)):
        bench = Bench()
        bench.task = replace(TASK, K=K)
        between = Between(bench.task, looks=looks)
        jobs.append(Job(evaluator=bench, held_out=between, space=SPACE))
    results = list(tune_all(jobs, at_once=3, strategy="grid"))
    assert all(result.selection.held_out == BETWEEN for result in results)
    assert [result.task.K for result in results] != [1024, 1040, 1056]
    assert sorted(result.task.K for result in results) == [1024, 1040, 1056]


def test_one_that_is_never_ready_is_measured_once_nothing_else_is_left():
    assert run(Between(looks=10**6)).selection.config == BEST


def test_what_a_winner_lost_nothing_on_is_written(tmp_path):
    path = write_result(run(Between()), tmp_path)
    entry = find_provenance(path, 64, BEST.as_dict())
    assert entry.held_out == ("512:1", "2048:1", "8192:8,zipf")
    path = write_result(run(None), tmp_path)
    assert find_provenance(path, 64, BEST.as_dict()).held_out == ()


class Machine:
    """A CudaMachine that says whose winners it holds batches out for."""

    platform = PLATFORM

    def __init__(self) -> None:
        self.held: list = []

    def evaluator(self, task, workload, **_options):
        bench = Bench()
        bench.task, bench.workload = task, workload
        return bench

    def held_out(self, task, workload, *, seed):
        self.held.append((task.chunk_size, workload, seed))

    def wait_until_open(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (["--chunk-sizes", "16", "64"], [16, 64]),
        (["--max-lora-chunk-size", "16"], [16]),
        (["--tokens", "32:8", "30720:1", "--chunk-sizes", "16"], []),
        (["--workload", "prefill", "--max-lora-chunk-size", "16"], []),
    ],
)
def test_who_says_what_is_served_has_nothing_held_out(monkeypatch, tmp_path, words, held):
    pytest.importorskip("torch")
    from lora_autotune.cli import tuning
    from lora_autotune.evaluators import cuda, head_start

    machine = Machine()
    monkeypatch.setattr(cuda, "CudaMachine", lambda **_: machine)
    monkeypatch.setattr(head_start, "start_early", lambda: None)
    monkeypatch.setattr(tuning, "tune_all", lambda jobs, **_: iter(list(jobs)[:0]))
    named = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64", "--seed", "5"]
    assert cli.main(["tune", *named, *words, "--out", str(tmp_path)]) == 0
    assert machine.held == [(size, default_workload(size), 5) for size in held]


@pytest.mark.parametrize(
    ("workload", "expected"), [(default_workload(64), BETWEEN), ((DECODE,), None)]
)
def test_a_machine_holds_them_out_for_the_default_workload_alone(workload, expected):
    pytest.importorskip("torch")
    from lora_autotune.evaluators.cuda import CudaMachine

    machine = SimpleNamespace(platform=PLATFORM, _pipeline=None)
    found = CudaMachine.held_out(machine, TASK, workload, seed=7)
    assert (found and (found.task, found.workload)) == (expected and (TASK, expected))
    assert found is None or {part.subject.seed for part in found._parts} == {7}


def held_out_on(stage):
    from lora_autotune.evaluators.cuda import CudaMachine

    machine = SimpleNamespace(platform=PLATFORM, _pipeline=stage.pipeline)
    return CudaMachine.held_out(machine, TASK, default_workload(64))


def test_each_batch_is_compiled_by_itself():
    pytest.importorskip("torch")
    from tests.pipeline_doubles import Stage

    stage = Stage(compilers=3)
    held_out = held_out_on(stage)
    held_out.prepare([BEST])
    jobs = [job for worker in stage.compilers for job in worker.jobs]
    assert {(job.args[1], job.args[2]) for job in jobs} == {((one,), BEST) for one in BETWEEN}
    for place in range(3):
        assert not held_out.prepared
        stage.compiled(worker=place)
    assert held_out.prepared


@pytest.mark.parametrize("waits", [True, False])
def test_nothing_is_compiled_twice_whether_it_is_waited_for_or_not(waits):
    pytest.importorskip("torch")
    from tests.pipeline_doubles import automatic

    stage = automatic()
    held_out = held_out_on(stage)
    held_out.prepare([DEFAULT, BEST])
    while waits and not held_out.prepared:
        stage.pipeline.pump(0)
    rounds = held_out.remeasure([DEFAULT, BEST, DEFAULT], rounds=2)
    assert [len(results) for results in rounds] == [2, 2, 2]
    jobs = [job for worker in stage.compilers for job in worker.jobs]
    assert [len(job.args[1]) for job in jobs] == [1] * 6


def test_what_cannot_be_compiled_for_one_of_them_fails():
    pytest.importorskip("torch")
    from lora_autotune.evaluators.compiling import Compiled
    from tests.pipeline_doubles import REFUSED, automatic

    stage = automatic(compiled={BEST: Compiled(compile_s=1.0, failure=REFUSED)})
    held_out = held_out_on(stage)
    first, failed, last = held_out.remeasure([DEFAULT, BEST, DEFAULT], rounds=2)
    assert failed == [REFUSED] * 2
    assert all(isinstance(times, tuple) for times in (*first, *last))
    assert len(stage.given) == 6  # what is refused once is


def test_one_that_was_overtaken_is_not_waited_for():
    pytest.importorskip("torch")
    from tests.pipeline_doubles import Stage

    stage = Stage(compilers=7)
    held_out = held_out_on(stage)
    held_out.prepare([BEST])
    held_out.prepare([DEFAULT])
    for worker in range(3, 6):
        assert not held_out.prepared
        stage.compiled(worker=worker)
    assert held_out.prepared
    assert [worker.busy for worker in stage.compilers] == [True] * 3 + [False] * 4


def test_what_is_begun_can_be_abandoned():
    pytest.importorskip("torch")
    from tests.pipeline_doubles import Stage

    stage = Stage()
    held_out = held_out_on(stage)
    held_out.prepare([DEFAULT, BEST])
    held_out.close()
    assert held_out.prepared
    assert stage.compilers[0].replaced == 1
    assert not stage.compilers[0].busy


def test_they_lie_between_those_of_the_default_workload():
    assert all(DECODE.tokens < batch.tokens < PREFILL.tokens for batch in BETWEEN)


def test_what_one_kernel_does_for_all_batches_is_tuned_on_those_between(capsys):
    named = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64", "--chunk-sizes", "64"]
    assert cli.main(["tune", "--dry-run", "--json", *named, "--kernels", "sglang"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [one["tokens"] for one in line["instances"]] == [512, 2048, 8192, 30720]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 3),
        (["--workload", "prefill"], 0),
        (["--tokens", "30720"], 0),
        (["--kernels", "sglang"], 0),
    ],
)
def test_a_plan_says_what_is_held_out(words, count, capsys):
    named = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64", "--chunk-sizes", "128"]
    assert cli.main(["tune", "--dry-run", "--json", *named, *words]) == 0
    printed = capsys.readouterr()
    (line,) = map(json.loads, printed.out.splitlines())
    assert len(line["held_out"]) == count
    assert ("512:1, 2048:1, 8192:8,zipf" in printed.err) is bool(count)
