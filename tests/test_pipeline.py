"""The pipeline: what goes first, what waits, and what becomes of a worker's death.

Its workers are fakes that finish when a test says so; tests/test_faults_*.py have real ones.
"""

from __future__ import annotations

import inspect
import math
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Platform
from lora_autotune.evaluators import bench_jobs, candidate, compiling, measuring
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.cuda import CudaEvaluator
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.pipeline import Pipeline
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.evaluators.worker import Died
from lora_autotune.pruning import Standings
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.testing import check_evaluator
from lora_autotune.trial import Failure, Measurement
from tests.gpus import H200

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
OTHER = Task(kernel="expand", K=1024, R=64, S=1, chunk_size=16)
WORKLOAD = (DECODE, PREFILL)
DEFAULT = DEFAULT_CONFIGS["shrink"]
A, B, C, D = CONFIGS = [Config(BLOCK_N=n, BLOCK_K=64) for n in (16, 32, 64, 128)]
REFUSED = Failure(kind="compile", message="no")
TIMED_OUT = Died(timed_out=True, message="over its limit")
KILLED = Died(timed_out=False, killed=True, message="the process died: killed by SIGKILL")
CRASHED = Died(timed_out=False, message="the process died: killed by SIGSEGV")
FINE = Compiled(compile_s=0.25)


class Worker:
    """A worker whose job is done when a test says so, or at once where it has an answer ready."""

    remaining_s = 20.0
    overdue = False

    def __init__(self, answer=None) -> None:
        self.connection, self._theirs = Pipe()
        self.busy = False
        self.warm = True
        self.jobs: list = []
        self.replaced = 0
        self._answer = answer

    def submit(self, job, *args, timeout_s, cpu_limit_s=math.inf):
        assert not self.busy
        self.busy = True
        self.jobs.append(SimpleNamespace(name=job.__name__, args=args, cpu_limit_s=cpu_limit_s))
        if self._answer is not None:
            self.finish(self._answer(self.jobs[-1]))

    def finish(self, result) -> None:
        self._theirs.send(result)

    def result(self):
        self.busy = False
        return self.connection.recv()

    def replace(self) -> None:
        self.replaced += 1
        self.busy = False
        while self.connection.poll():
            self.connection.recv()

    @property
    def configs(self) -> list:
        """The config of each job, in turn; those of a contest together."""
        return [job.args[1] if job.name != "compile_config" else job.args[2] for job in self.jobs]


def reply(*times_us: float) -> Reply:
    return Reply(outcome=Measurement(times_us=times_us or (5.0, 200.0)))


class Stage:
    def __init__(self, compilers: int = 1, compiled=None, measured=None) -> None:
        self.bench = Worker(measured)
        self.compilers = [Worker(compiled) for _ in range(compilers)]
        self.pipeline = Pipeline(self.bench, self.compilers)

    def lane(self, task=TASK, *, patient=False) -> Lane:
        return Lane(Subject(task=task, workload=WORKLOAD, seed=0, prune=True), patient)

    def submit(self, lane, *configs) -> None:
        for config in configs:
            self.pipeline.submit(lane, config)

    def compiled(self, result=FINE, worker=0) -> None:
        self.compilers[worker].finish(result)
        self.pipeline.pump(0)

    def measured(self, result=None) -> None:
        self.bench.finish(result or reply())
        self.pipeline.pump(0)


def outcomes(lane: Lane) -> dict:
    return {trial.config: trial.outcome for trial in lane.finished}


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
    stage.compiled(Compiled(compile_s=9.0, compute_s=8.0), worker=1)
    stage.compiled(TIMED_OUT)
    (trial,) = lane.finished
    assert trial.compile_s == stage.compilers[0].jobs[0].cpu_limit_s < 16.0


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


def test_what_is_prepared_is_compiled_once_and_first_and_measured_only_in_a_contest():
    stage = Stage()
    lane, other = stage.lane(), stage.lane(OTHER)
    stage.submit(other, C, D)
    assert lane.prepared
    stage.pipeline.prepare(lane, [A, B, A])
    stage.pipeline.prepare(lane, [B])
    assert not lane.prepared
    stage.compiled()
    stage.compiled()
    stage.compiled()
    assert lane.prepared
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
    compiled = [config for worker in stage.compilers for config in worker.configs]
    assert sorted(map(str, compiled)) == sorted(map(str, [A, B]))


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


def automatic(*, compiled=None, contest=None) -> Stage:
    """A stage whose workers answer at once."""
    results = compiled or {}

    def compile_config(job):
        return results.get(job.args[2], FINE)

    def bench(job):
        if job.name == "measure":
            return reply()
        if contest is not None:
            return contest
        _, configs, rounds = job.args
        return [[(float(config.BLOCK_N), 1.0)] * rounds for config in configs]

    return Stage(compilers=2, compiled=compile_config, measured=bench)


def test_measuring_again_compiles_what_an_earlier_process_measured():
    stage = automatic()
    lane = stage.lane()
    lane.compiled.add(B)
    results = stage.pipeline.remeasure(lane, [A, B, C, A], 2)
    compiled = [config for worker in stage.compilers for config in worker.configs]
    assert sorted(compiled, key=str) == sorted([A, C], key=str)
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


def test_nothing_to_wait_for_is_an_error():
    with pytest.raises(EvaluatorError, match="nothing was submitted"):
        Stage().pipeline.pump(0)


def evaluator_of(stage: Stage, lane: Lane | None = None) -> CudaEvaluator:
    machine = SimpleNamespace(
        platform=Platform(device="made up", triton="3.6.0"),
        compilers=stage.compilers,
        gpu=H200,
    )
    return CudaEvaluator(machine, lane or stage.lane(), stage.pipeline)


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


class Opening(Stage):
    """The bench worker is still at its description of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []
        self.bench.submit(bench_jobs.describe, timeout_s=60)
        self.pipeline = Pipeline(self.bench, self.compilers, self.found.append)


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


def test_nothing_is_compiled_for_a_contest_before_the_gpu_is_known():
    stage = Opening()
    stage.pipeline = Pipeline(stage.bench, stage.compilers, refusing)
    stage.bench.finish("another GPU")
    with pytest.raises(EvaluatorError, match="another GPU"):
        stage.pipeline.remeasure(stage.lane(), [A], 1)
    assert stage.compilers[0].jobs == []


def refusing(found) -> None:
    raise EvaluatorError(f"not {found}")


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
