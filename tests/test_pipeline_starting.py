"""Workers that start: what they do first, who works meanwhile, and when they do not."""

from __future__ import annotations

import math

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators.pipeline import Pipeline
from lora_autotune.space import Config
from tests.pipeline_doubles import (
    CRASHED,
    FINE,
    KILLED,
    OTHER,
    TIMED_OUT,
    A,
    B,
    C,
    Opening,
    Stage,
    Worker,
    evaluator_of,
    outcomes,
    refusing,
    reply,
)


def test_a_new_worker_warms_up_before_its_first_candidate():
    stage = Stage()
    (worker,) = stage.compilers
    worker.warm = False
    stage.submit(stage.lane(), A, B)
    worker.warm = True
    stage.compiled(None)
    stage.compiled()
    names = [job.name for job in worker.jobs]
    assert names == ["warm_up", "compile_config", "compile_config"]
    assert worker.jobs[0].cpu_limit_s == math.inf
    assert stage.bench.configs == [A]


def test_a_new_bench_worker_opens_the_gpu_before_its_first_candidate():
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A, B)
    stage.bench.warm = False
    stage.compiled()
    stage.bench.warm = True
    stage.compiled()
    stage.bench.finish(None)
    stage.pipeline.pump(0)
    stage.measured()
    assert [job.name for job in stage.bench.jobs] == ["warm_up", "measure", "measure"]
    assert list(outcomes(lane)) == [A]


@pytest.mark.parametrize("died", [CRASHED, KILLED, TIMED_OUT])
def test_a_bench_worker_that_starts_at_the_second_try_costs_its_candidate_nothing(died):
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A)
    stage.bench.warm = False
    stage.compiled()
    for ending in (KILLED, reply()):  # the first one needs a third start, which fails too
        stage.measured(died)
        stage.bench.warm = True
        stage.bench.finish(None)
        stage.pipeline.pump(0)
        stage.bench.warm = False
        stage.measured(ending)
    names = [job.name for job in stage.bench.jobs]
    assert names == ["warm_up", "warm_up", "measure"] * 2
    assert outcomes(lane) == {A: reply().outcome}


@pytest.mark.parametrize("died", [CRASHED, KILLED, TIMED_OUT])
def test_a_bench_worker_that_does_not_start_twice_in_a_row_is_an_error(died):
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A, B)
    stage.bench.warm = False
    stage.compiled()
    stage.measured(died)
    with pytest.raises(EvaluatorError, match=f"measures does not start: {died.message}"):
        stage.measured(died)
    assert [job.name for job in stage.bench.jobs] == ["warm_up", "warm_up"]
    assert not lane.finished


def test_compilers_work_while_the_bench_worker_opens_the_gpu():
    stage = Opening()
    lane = stage.lane()
    stage.submit(lane, A, B)
    stage.compiled()
    stage.compiled()
    assert [job.name for job in stage.bench.jobs] == ["describe"]
    stage.measured("a GPU")
    assert stage.found == ["a GPU"]
    stage.measured()
    stage.measured()
    assert list(outcomes(lane)) == [A, B]


def test_a_task_that_is_given_up_meanwhile_leaves_the_bench_worker_alone():
    stage = Opening()
    lane = stage.lane()
    stage.submit(lane, A)
    stage.compiled()
    stage.pipeline.abandon(lane)
    assert stage.bench.replaced == 0
    stage.bench.finish("a GPU")
    stage.pipeline.wait_until_open()
    assert stage.found == ["a GPU"]
    assert not stage.bench.busy


def test_what_was_compiled_for_another_gpu_is_compiled_anew():
    stage = Opening()
    lane = stage.lane()
    stage.submit(lane, A, B, C)
    stage.compiled()
    assert lane.compiled == {A}
    other = Worker()
    stage.pipeline.compile_anew([other])
    assert lane.compiled == set()
    stage.measured("a GPU")
    for _ in range(3):
        other.finish(FINE)
        stage.pipeline.pump(0)
        stage.measured()
    assert sorted(map(str, other.configs)) == sorted(map(str, [A, B, C]))
    assert set(outcomes(lane)) == {A, B, C}


def test_so_is_what_was_prepared_for_a_contest():
    stage = Opening()
    lane = stage.lane()
    stage.pipeline.prepare(lane, [A, B])
    stage.compiled()
    assert lane.compiled == {B}
    other = Worker()
    stage.pipeline.compile_anew([other])
    assert lane.compiled == set()
    assert not lane.prepared([A, B])
    stage.measured("a GPU")
    for _ in range(2):
        other.finish(FINE)
        stage.pipeline.pump(0)
    assert sorted(map(str, other.configs)) == sorted(map(str, [A, B]))
    assert lane.prepared([A, B])


def test_a_gpu_that_was_refused_is_refused_ever_after():
    stage = Opening()
    stage.pipeline = Pipeline(stage.bench, stage.compilers, refusing)
    one, two = evaluator_of(stage), evaluator_of(stage, stage.lane(OTHER))
    one.submit(A)
    stage.bench.finish("another GPU")
    foretold = Config(BLOCK_N=128, BLOCK_K=512, num_stages=5)
    for refused in (
        one.collect,
        lambda: one.poll(0),
        lambda: one.submit(B),
        lambda: two.submit(foretold),
        lambda: two.poll(0),
        lambda: two.remeasure([A], rounds=1),
        stage.pipeline.wait_until_open,
    ):
        with pytest.raises(EvaluatorError, match="not another GPU"):
            refused()
    one.close()
    assert [job.name for job in stage.bench.jobs] == ["describe"]
