"""Finalists that are measured again: what is compiled for them, and how they fail."""

from __future__ import annotations

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import candidate
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.pipeline import Pipeline
from lora_autotune.trial import Failure
from tests.pipeline_doubles import (
    CRASHED,
    FINE,
    KILLED,
    OTHER,
    REFUSED,
    TIMED_OUT,
    A,
    B,
    C,
    D,
    Opening,
    Stage,
    automatic,
    outcomes,
    refusing,
    reply,
)


def test_what_is_prepared_is_compiled_once_and_first_and_measured_only_in_a_contest():
    stage = Stage()
    lane, other = stage.lane(), stage.lane(OTHER)
    stage.submit(other, C, D)
    assert lane.prepared([A, B])
    stage.pipeline.prepare(lane, [A, B, A])
    stage.pipeline.prepare(lane, [B])
    assert not lane.prepared([A, B])
    stage.compiled()
    stage.compiled()
    stage.compiled()
    assert lane.prepared([A, B])
    (worker,) = stage.compilers
    assert worker.configs == [C, B, A, D]
    assert lane.in_flight == 0
    assert not lane.finished


def test_a_contest_takes_what_was_prepared_and_what_that_failed_with():
    stage = automatic(compiled={B: Compiled(compile_s=1.0, failure=REFUSED)})
    lane = stage.lane()
    stage.pipeline.prepare(lane, [A, B])
    results = stage.pipeline.remeasure(lane, [A, B], 2)
    assert results[1] == [REFUSED] * 2
    assert isinstance(results[0][0], tuple)
    assert sorted(map(str, stage.given)) == sorted(map(str, [A, B]))


def test_measuring_again_compiles_what_an_earlier_process_measured():
    stage = automatic()
    lane = stage.lane()
    lane.compiled.add(B)
    results = stage.pipeline.remeasure(lane, [A, B, C, A], 2)
    assert sorted(stage.given, key=str) == sorted([A, C], key=str)
    assert all(
        job.cpu_limit_s == candidate.PATIENT_COMPILE_LIMIT_S
        for worker in stage.compilers
        for job in worker.jobs
    )
    assert [job.name for job in stage.bench.jobs] == ["remeasure"]
    assert results == [[(16.0, 1.0)] * 2, [(32.0, 1.0)] * 2, [(64.0, 1.0)] * 2, [(16.0, 1.0)] * 2]
    assert lane.compiled == {A, B, C}
    assert (lane.in_flight, list(lane.finished)) == (0, [])


def test_measuring_again_gives_failures_for_what_cannot_be_compiled():
    stage = automatic(compiled={A: Compiled(compile_s=1.0, failure=REFUSED), C: TIMED_OUT})
    lane = stage.lane(patient=True)
    results = stage.pipeline.remeasure(lane, [A, B, C], 2)
    slow = Failure(kind="timeout", message="while compiling: over its limit")
    assert results == [[REFUSED] * 2, [(32.0, 1.0)] * 2, [slow] * 2]
    assert stage.bench.configs == [[B]]


@pytest.mark.parametrize(
    ("died", "kind", "tries"),
    [(TIMED_OUT, "timeout", 1), (CRASHED, "crash", 1), (KILLED, "crash", 2)],
)
def test_a_contest_that_dies_is_a_failure_of_all_in_every_round(died, kind, tries):
    stage = automatic(contest=died)
    results = stage.pipeline.remeasure(stage.lane(), [A, B], 3)
    failure = Failure(kind=kind, message=f"while measuring again: {died.message}")
    assert results == [[failure] * 3] * 2
    assert len(stage.bench.jobs) == tries


def test_a_contest_that_does_not_fit_is_an_error_with_a_hint():
    with pytest.raises(EvaluatorError, match=r"does not fit.*--tokens"):
        automatic(contest="does not fit").pipeline.remeasure(automatic().lane(), [A], 3)


def test_a_contest_goes_before_the_candidates_and_they_go_on_after_it():
    stage = Stage(measured=lambda job: reply() if job.name == "measure" else [[(1.0, 1.0)]])
    one, two = stage.lane(), stage.lane(OTHER)
    one.compiled.add(A)
    stage.submit(two, B, C)
    stage.compiled()
    stage.compilers[0].finish(FINE)
    assert stage.pipeline.remeasure(one, [A], 1) == [[(1.0, 1.0)]]
    while two.in_flight:
        stage.pipeline.pump(0)
    assert set(outcomes(two)) == {B, C}


def test_a_contest_is_not_charged_for_a_bench_worker_that_does_not_start():
    answers = iter([CRASHED, None])

    def bench(job):
        if job.name != "warm_up":
            return [[(1.0, 1.0)]]
        answer = next(answers)
        stage.bench.warm = answer is None
        return answer

    stage = Stage(measured=bench)
    stage.bench.warm = False
    lane = stage.lane()
    lane.compiled.add(A)
    assert stage.pipeline.remeasure(lane, [A], 1) == [[(1.0, 1.0)]]
    assert [job.name for job in stage.bench.jobs] == ["warm_up", "warm_up", "remeasure"]


def test_nothing_is_compiled_for_a_contest_before_the_gpu_is_known():
    stage = Opening()
    stage.pipeline = Pipeline(stage.bench, stage.compilers, refusing)
    stage.bench.finish("another GPU")
    with pytest.raises(EvaluatorError, match="another GPU"):
        stage.pipeline.remeasure(stage.lane(), [A], 1)
    assert stage.compilers[0].jobs == []
