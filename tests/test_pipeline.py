"""The pipeline: what goes first, what waits, and what becomes of a worker's death.

Its workers are fakes that finish when a test says so; tests/test_faults_*.py have real ones.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, candidate, compiling, measuring
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.cuda import CudaEvaluator
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.pruning import Standings
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE
from lora_autotune.testing import check_evaluator
from lora_autotune.trial import Failure, Measurement
from tests.pipeline_doubles import (
    CONFIGS,
    CRASHED,
    DEFAULT,
    KILLED,
    OTHER,
    REFUSED,
    TASK,
    TIMED_OUT,
    A,
    B,
    C,
    D,
    Stage,
    automatic,
    evaluator_of,
    outcomes,
    reply,
)


def test_the_default_overtakes_what_is_waiting_also_that_of_other_tasks():
    stage = Stage()
    one, two = stage.lane(), stage.lane(OTHER)
    stage.submit(one, A, B)
    stage.submit(two, C, DEFAULT_CONFIGS["expand"])
    stage.submit(one, DEFAULT)
    for _ in range(5):
        stage.compiled(Compiled(compile_s=0.1, failure=REFUSED))
    assert stage.compilers[0].configs == [A, DEFAULT, DEFAULT_CONFIGS["expand"], B, C]


def test_as_many_compile_as_there_are_workers_while_one_is_measured():
    stage = Stage(compilers=2)
    lane = stage.lane()
    stage.submit(lane, *CONFIGS)
    assert [len(worker.jobs) for worker in stage.compilers] == [1, 1]
    stage.compiled(worker=1)
    assert stage.compilers[1].configs == [B, C]
    assert stage.bench.configs == [B]
    stage.compiled(worker=0)
    assert stage.bench.configs == [B]
    stage.measured()
    assert stage.bench.configs == [B, A]
    assert lane.in_flight == 3


def test_a_slow_candidate_of_a_patient_lane_waits_until_nothing_else_does():
    stage = Stage()
    patient, other = stage.lane(patient=True), stage.lane(OTHER)
    stage.submit(patient, A, B)
    stage.submit(other, C)
    stage.compiled(TIMED_OUT)
    stage.submit(other, D)
    for _ in range(3):
        stage.compiled(Compiled(compile_s=0.1, failure=REFUSED))
    worker = stage.compilers[0]
    assert worker.configs == [A, B, C, D, A]
    limits = [job.cpu_limit_s for job in worker.jobs]
    of_two_kernels_s = 2 * candidate.COMPILE_LIMIT_S
    assert limits == [2 * of_two_kernels_s] * 4 + [candidate.PATIENT_COMPILE_LIMIT_S]
    stage.compiled()
    stage.measured()
    assert isinstance(outcomes(patient)[A], Measurement)
    assert patient.in_flight == 0


@pytest.mark.parametrize(
    ("kernels", "batches", "count"),
    [("builtin", 1, 1), ("builtin", 2, 2), ("builtin", 5, 3), ("sglang-0.5.23", 5, 1)],
)
def test_a_candidate_may_compile_for_as_long_as_its_kernels_take(kernels, batches, count):
    workload = tuple(replace(DECODE, weight=1.0 + i) for i in range(batches))
    subject = Subject(task=TASK, workload=workload, seed=0, prune=True, kernels=kernels)
    one = candidate.Candidate(Lane(subject, patient=False), A)
    assert one.compile_limit_s == 2 * count * candidate.COMPILE_LIMIT_S


@pytest.mark.parametrize(
    ("default_s", "limit_s"),
    [
        (None, 4 * candidate.COMPILE_LIMIT_S),
        (0.0, 2 * candidate.COMPILE_LIMIT_S),
        (1.2, 2 * candidate.COMPILE_LIMIT_S),
        (5.0, 5.0 * candidate.COMPILE_LIMIT_TO_DEFAULT),
    ],
)
def test_on_a_slow_host_which_the_default_tells_compiling_may_take_longer(default_s, limit_s):
    stage = Stage()
    lane, other = stage.lane(), stage.lane(OTHER)
    if default_s is not None:
        stage.submit(lane, DEFAULT)
        stage.compiled(Compiled(compile_s=9.0, compute_s=default_s))
    stage.submit(lane, A)
    stage.compiled()
    stage.submit(other, B)
    *_, own, others = [job.cpu_limit_s for job in stage.compilers[0].jobs]
    assert own == limit_s
    assert others == 4 * candidate.COMPILE_LIMIT_S  # another task's says nothing of its own


def test_what_a_candidate_was_given_is_what_it_is_said_to_have_taken():
    stage = Stage(compilers=2)
    lane = stage.lane()
    stage.submit(lane, A, DEFAULT)
    stage.compiled(Compiled(compile_s=0.2, compute_s=0.1), worker=1)
    stage.compiled(TIMED_OUT)
    (trial,) = lane.finished
    assert trial.compile_s == stage.compilers[0].jobs[0].cpu_limit_s
    assert trial.compile_s > 2 * candidate.COMPILE_LIMIT_S  # those of two kernels, by now


@pytest.mark.parametrize(
    ("again", "limit_s"),
    [
        (Compiled(compile_s=0.1, compute_s=0.1), 10.0),
        (Compiled(compile_s=0.1, failure=REFUSED), 10.0),
    ],
)
def test_a_default_that_comes_out_of_the_cache_or_fails_later_tells_nothing_new(again, limit_s):
    stage = Stage()
    lane = stage.lane()
    for result in (Compiled(compile_s=5.0, compute_s=5.0), again):
        stage.submit(lane, DEFAULT)
        stage.compiled(result)
    stage.submit(lane, A)
    assert stage.compilers[0].jobs[-1].cpu_limit_s == limit_s


@pytest.mark.parametrize("patient", [False, True])
def test_a_candidate_over_its_last_limit_is_a_timeout_of_that_length(patient):
    stage = Stage()
    lane = stage.lane(patient=patient)
    stage.submit(lane, A)
    for _ in range(1 + patient):
        stage.compiled(TIMED_OUT)
    (trial,) = lane.finished
    assert trial.outcome == Failure(kind="timeout", message="while compiling: over its limit")
    limit_s = candidate.PATIENT_COMPILE_LIMIT_S if patient else 4 * candidate.COMPILE_LIMIT_S
    assert trial.compile_s == limit_s


@pytest.mark.parametrize(("died", "tries"), [(KILLED, 2), (CRASHED, 1)])
def test_a_killed_compile_worker_is_excused_once_and_a_crashed_one_never(died, tries):
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A, B)
    for _ in range(tries):
        assert lane.in_flight == 2
        stage.compiled(died)
    assert stage.compilers[0].configs == [A] * tries + [B]
    assert outcomes(lane) == {
        A: Failure(kind="compile", message=f"while compiling: {died.message}")
    }


@pytest.mark.parametrize(("died", "tries"), [(KILLED, 2), (CRASHED, 1)])
def test_a_killed_bench_worker_is_excused_once_and_a_crashed_one_never(died, tries):
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A)
    stage.compiled()
    for _ in range(tries):
        assert lane.in_flight == 1
        stage.measured(died)
    assert stage.bench.configs == [A] * tries
    assert outcomes(lane) == {A: Failure(kind="crash", message=f"while measuring: {died.message}")}


def test_a_lost_context_costs_the_bench_worker():
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A)
    stage.compiled()
    crash = Failure(kind="crash", message="illegal address")
    stage.measured(Reply(outcome=crash, context_lost=True))
    assert stage.bench.replaced == 1
    assert outcomes(lane) == {A: crash}


def test_abandoning_a_task_leaves_the_others_alone():
    stage = Stage(compilers=2)
    gone, kept = stage.lane(), stage.lane(OTHER)
    stage.submit(gone, A)
    stage.submit(kept, A)
    stage.compiled(worker=0)  # of the one that goes: it is on the bench now
    stage.submit(gone, B, C)  # B compiles
    stage.submit(kept, D)
    stage.pipeline.abandon(gone)
    assert (stage.bench.replaced, [w.replaced for w in stage.compilers]) == (1, [1, 0])
    assert (gone.in_flight, kept.in_flight) == (0, 2)
    assert [worker.configs[-1] for worker in stage.compilers] == [D, A]
    stage.compiled(worker=1)
    stage.measured()
    stage.compiled(worker=0)
    stage.measured()
    assert set(outcomes(kept)) == {A, D}
    assert not gone.finished


def test_abandoning_a_task_that_has_the_bench_lets_the_next_one_on():
    stage = Stage()
    gone, kept = stage.lane(), stage.lane(OTHER)
    stage.submit(gone, A)
    stage.submit(kept, B)
    stage.compiled()
    stage.compiled()
    stage.pipeline.abandon(gone)
    assert stage.bench.configs == [A, B]


def test_an_abandoned_task_forgets_what_nobody_collected():
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A)
    stage.compiled(Compiled(compile_s=0.1, failure=REFUSED))
    stage.pipeline.abandon(lane)
    assert not lane.finished


def test_trouble_of_one_task_is_not_that_of_another():
    stage = Stage()
    one, two = stage.lane(), stage.lane(OTHER)
    stage.submit(one, A)
    stage.submit(two, B)
    stage.compiled()
    stage.compiled()
    stage.measured("does not fit")
    stage.measured()
    assert (one.trouble, two.trouble) == ("does not fit", None)
    assert set(outcomes(two)) == {B}


def test_nothing_to_wait_for_is_an_error():
    with pytest.raises(EvaluatorError, match="nothing was submitted"):
        Stage().pipeline.pump(0)


def test_the_evaluator_keeps_the_contract():
    failing = Config(BLOCK_N=256, BLOCK_K=64)
    foretold = Config(BLOCK_N=128, BLOCK_K=512, num_stages=5)

    def make() -> CudaEvaluator:
        return evaluator_of(automatic(compiled={failing: Compiled(compile_s=1.0, failure=REFUSED)}))

    check_evaluator(make, [*CONFIGS, failing, foretold])


@pytest.mark.parametrize("workers", [1, 3, 14])
def test_it_has_something_to_measure_while_every_compiler_works(workers):
    assert evaluator_of(Stage(compilers=workers)).capacity == workers + 4


def test_a_foretold_failure_reaches_no_worker():
    stage = Stage()
    evaluator = evaluator_of(stage)
    evaluator.submit(Config(BLOCK_N=128, BLOCK_K=512, num_stages=5))
    trial = evaluator.poll(0)
    assert trial.foretold
    assert trial.outcome.kind == "resources"
    assert stage.compilers[0].jobs == []
    assert evaluator.poll(math.inf) is None


def test_what_cannot_win_is_not_compiled_unless_everything_is_to_be_measured():
    hopeless = Config(BLOCK_N=256, BLOCK_K=32, num_warps=1)
    stage = Stage()
    evaluator = evaluator_of(stage)
    evaluator.submit(hopeless)
    trial = evaluator.poll(0)
    assert trial.foretold
    assert "registers" in trial.outcome.message
    patient = evaluator_of(stage, stage.lane(OTHER, patient=True))
    patient.submit(hopeless)
    assert patient.poll(0) is None
    assert patient._lane.in_flight == 1


def test_polling_does_not_wait_when_another_task_has_something_finished():
    stage = automatic()
    one, two = evaluator_of(stage), evaluator_of(stage, stage.lane(OTHER))
    one.submit(A)
    while two.poll(0) is None and one._lane.in_flight:
        stage.pipeline.pump(0)
    assert two.poll(10.0) is None  # nothing of its own is in flight
    assert one.poll(0).config == A


def test_the_first_candidates_are_timed_in_full_and_later_ones_against_the_best():
    stage = Stage()
    lane = stage.lane()
    stage.submit(lane, A, DEFAULT, B, C)
    for _ in range(4):
        stage.compiled()
    for times_us in [(4.0, 100.0), (10.0, 200.0), (5.0, 120.0), (6.0, 90.0)]:
        stage.measured(reply(*times_us))
    assert stage.bench.configs == [A, DEFAULT, B, C]
    first, second, third, fourth = (job.args[2] for job in stage.bench.jobs)
    assert first == Standings()
    assert second == Standings(fastest_us=(4.0, 100.0))
    assert third == Standings(default_us=(10.0, 200.0), fastest_us=(4.0, 100.0), best_cost=1.0)
    assert fourth == Standings(default_us=(10.0, 200.0), fastest_us=(4.0, 100.0), best_cost=0.55)
    assert lane.standings.fastest_us == (4.0, 90.0)


def test_the_default_has_time_to_compile():
    stage = Stage()
    stage.submit(stage.lane(), DEFAULT)
    assert stage.compilers[0].jobs[0].cpu_limit_s == candidate.PATIENT_COMPILE_LIMIT_S


def test_jobs_are_the_workers_own_functions():
    stage = Stage()
    stage.submit(stage.lane(), A)
    stage.compiled()
    assert stage.compilers[0].jobs[0].name == compiling.compile_config.__name__
    assert stage.bench.jobs[0].name == bench_jobs.measure.__name__


@pytest.mark.parametrize("name", ["set_up", "describe", "measure", "remeasure"])
def test_the_bench_workers_jobs_are_what_they_are_named_after(name):
    named, real = getattr(bench_jobs, name), getattr(measuring, name)
    assert inspect.signature(named) == inspect.signature(real)


def test_one_that_was_over_a_limit_that_the_default_raises_is_compiled_again():
    stage = Stage(compilers=2)
    lane = stage.lane()
    stage.submit(lane, DEFAULT, A)
    stage.compiled(TIMED_OUT, worker=1)  # the default is still at it
    stage.compiled(TIMED_OUT, worker=1)
    assert not lane.finished
    stage.compiled(Compiled(compile_s=9.0, compute_s=8.0), worker=0)
    stage.compiled(TIMED_OUT, worker=1)
    limits = [job.cpu_limit_s for worker in stage.compilers for job in worker.jobs[-1:]]
    assert 8.0 * candidate.COMPILE_LIMIT_TO_DEFAULT in limits
    assert not lane.finished
    for number, worker in enumerate(stage.compilers):
        if worker.busy:
            stage.compiled(TIMED_OUT, worker=number)
    (trial,) = lane.finished
    assert trial.compile_s == 8.0 * candidate.COMPILE_LIMIT_TO_DEFAULT


def test_a_search_that_goes_on_learns_how_long_the_default_takes():
    stage = Stage()
    lane = stage.lane()
    evaluator = evaluator_of(stage, lane)
    evaluator.submit(A)
    evaluator.submit(B)
    stage.compiled(Compiled(compile_s=9.0, compute_s=8.0))
    (worker,) = stage.compilers
    assert worker.configs == [DEFAULT, A]
    assert worker.jobs[-1].cpu_limit_s == 8.0 * candidate.COMPILE_LIMIT_TO_DEFAULT
    assert lane.in_flight == 2
