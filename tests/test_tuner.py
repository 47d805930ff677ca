"""The loop: what it asks, what it tells, what it costs, and what survives."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from itertools import cycle

import pytest

import lora_autotune
from lora_autotune.budgets import HINTS, default_trials
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.journal import Journal
from lora_autotune.provenance import Provenance, find_provenance
from lora_autotune.result import TuningResult, write_result
from lora_autotune.search import MAX_FRUITLESS_ASKS
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace, named_space
from lora_autotune.starting_points import starting_points
from lora_autotune.task import PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Trial
from lora_autotune.tuner import Job, tune, tune_all
from tests.search_doubles import Memory, Script

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
PLATFORM = Platform(device="NVIDIA H200", triton="3.6.0")
DEFAULT = DEFAULT_CONFIGS["shrink"]
SPACE = SearchSpace(
    {"BLOCK_N": (16, 32, 64), "BLOCK_K": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3)}
)
CRASH = Failure(kind="crash", message="illegal address")
BUILT_IN = ("grid", "random", "tpe")


class Bench:
    """An evaluator of a made-up kernel: outcomes by config, finished in an order of choice."""

    def __init__(self, outcomes=None, *, capacity=4, order="first", fail_after=None) -> None:
        self.task = TASK
        self.workload = (PREFILL,)
        self.platform = PLATFORM
        self.replayed = False
        self.capacity = capacity
        self.evaluated: list[Config] = []
        self.most_in_flight = 0
        self._outcomes = outcomes or {}
        self._order = order
        self._fail_after = fail_after
        self._in_flight: list[Config] = []

    def outcome(self, config: Config):
        if config in self._outcomes:
            return self._outcomes[config]
        return Measurement(times_us=(time_us(config),))

    def submit(self, config, /):
        assert config not in self.evaluated, "evaluated twice"
        assert config not in self._in_flight, "submitted twice"
        self._in_flight.append(config)
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))

    def collect(self):
        if self._fail_after is not None and len(self.evaluated) >= self._fail_after:
            raise KeyboardInterrupt
        config = self._in_flight.pop({"first": 0, "last": -1}[self._order])
        self.evaluated.append(config)
        return Trial(config=config, outcome=self.outcome(config), compile_s=0.5)

    def poll(self, wait_s, /):
        return self.collect() if self._in_flight else None

    def remeasure(self, configs, /, *, rounds):
        outcomes = [self.outcome(config) for config in configs]
        return [[o if isinstance(o, Failure) else o.times_us] * rounds for o in outcomes]

    def close(self):
        pass


def time_us(config: Config) -> float:
    if config == DEFAULT:
        return 100.0
    stages = config.num_stages or 1
    return (
        50.0 + abs(config.BLOCK_N - 32) + config.BLOCK_K / 16 + stages + (config.num_warps or 4) / 4
    )


GRID = list(SPACE)
BEST = min(GRID, key=time_us)


def run(bench=None, strategy="grid", **options) -> TuningResult:
    return tune(TASK, evaluator=bench or Bench(), space=SPACE, strategy=strategy, **options)


@pytest.mark.parametrize("strategy", BUILT_IN)
def test_the_best_config_of_a_small_space_is_found(strategy):
    result = run(strategy=strategy)
    assert result.selection.config == BEST
    assert result.trials == len(GRID) + 1
    assert result.time_us == time_us(BEST)
    assert result.default_us == 100.0
    assert result.speedup == pytest.approx(100 / time_us(BEST))


@pytest.mark.parametrize("strategy", BUILT_IN)
@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_the_budget_counts_the_default_and_is_kept(strategy, capacity):
    bench = Bench(capacity=capacity)
    result = run(bench, strategy, trials=7)
    assert result.trials == len(bench.evaluated) == 7
    assert bench.evaluated[0] == DEFAULT
    assert bench.most_in_flight <= capacity
    assert result.stopped == "the budget is spent"


def test_the_evaluator_is_kept_busy():
    bench = Bench(capacity=5)
    run(bench)
    assert bench.most_in_flight == 5


def test_without_a_budget_a_strategy_other_than_grid_gets_the_default_one():
    endless = Script(Config(BLOCK_N=n, BLOCK_K=16) for n in range(1, 10_000))
    assert run(strategy=endless).trials == default_trials(SPACE)


def test_a_strategy_that_finishes_early_ends_the_search():
    result = run(strategy=Script(GRID[:3]))
    assert (result.trials, result.stopped) == (4, "the strategy has nothing more to ask")


def test_a_known_config_is_told_again_and_costs_nothing():
    strategy = Script([GRID[0], GRID[0], GRID[0], GRID[1]])
    bench = Bench(capacity=1)
    assert run(bench, strategy).trials == 3
    told = Counter(trial.config for trial in strategy.told)
    assert told == {DEFAULT: 1, GRID[0]: 3, GRID[1]: 1}
    assert {t.cost for t in strategy.told if t.config == GRID[0]} == {time_us(GRID[0]) / 100}


def test_a_config_in_flight_is_not_submitted_again():
    strategy = Script([DEFAULT, GRID[0], GRID[0], GRID[1]])
    assert run(Bench(capacity=8), strategy).trials == 3
    assert Counter(trial.config for trial in strategy.told)[GRID[0]] == 1


def test_a_strategy_that_repeats_itself_forever_is_stopped():
    strategy = Script(cycle([GRID[0]]))
    result = run(Bench(capacity=1), strategy)
    assert (result.trials, result.stopped) == (2, "the strategy asks for known configs only")
    assert len(strategy.told) <= MAX_FRUITLESS_ASKS + 3


def test_a_strategy_that_repeats_itself_now_and_then_is_not_stuck():
    fresh = [Config(BLOCK_N=n, BLOCK_K=16) for n in range(1, MAX_FRUITLESS_ASKS)]
    pairs = zip(fresh, cycle([DEFAULT]), cycle([DEFAULT]))
    asked = [config for group in pairs for config in group]
    result = run(Bench(capacity=1), Script(asked), trials=100)
    assert (result.trials, result.stopped) == (
        len(fresh) + 1,
        "the strategy has nothing more to ask",
    )


@pytest.mark.parametrize("order", ["first", "last"])
def test_everything_told_has_the_cost_against_the_default(order):
    strategy = Script(GRID)
    run(Bench(capacity=6, order=order), strategy)
    assert {t.config: t.cost for t in strategy.told} == {
        config: time_us(config) / 100 for config in [DEFAULT, *GRID]
    }
    assert len(strategy.told) == len(GRID) + 1


def test_a_config_that_waits_for_its_cost_is_not_told_without_it():
    strategy = Script([GRID[0], GRID[1], GRID[1], *GRID])  # the last of three finishes first
    run(Bench(capacity=3, order="last"), strategy, trials=5)
    assert all(trial.cost is not None for trial in strategy.told)


def test_a_late_default_delays_what_is_told_not_what_is_recorded():
    record = Memory()
    seen = []
    strategy = Script(GRID)
    run(
        Bench(capacity=4, order="last"),
        strategy,
        record=record,
        trials=9,
        on_progress=lambda p: seen.append((len(record.trials), len(strategy.told))),
    )
    before = [pair for pair in seen if pair[1] == 0]
    assert max(recorded for recorded, _ in before) > 1
    assert seen[-1] == (9, 9)


def test_a_trial_is_recorded_before_it_is_told():
    record = Memory()

    class Watching(Script):
        def tell(self, trial, /):
            assert trial.config in {known.config for known in record.trials}
            super().tell(trial)

    strategy = Watching(GRID)
    run(strategy=strategy, record=record)
    assert len(strategy.told) == len(GRID) + 1


@pytest.mark.parametrize("outcome", [CRASH, Pruned(rule="too large")])
def test_where_the_default_fails_costs_are_relative_to_the_first_measured(outcome):
    strategy = Script(GRID)
    bench = Bench({DEFAULT: outcome, GRID[0]: CRASH}, capacity=1)
    result = run(bench, strategy)
    costs = {trial.config: trial.cost for trial in strategy.told}
    assert (costs[DEFAULT], costs[GRID[0]], costs[GRID[1]]) == (None, None, 1.0)
    assert costs[BEST] == pytest.approx(time_us(BEST) / time_us(GRID[1]))
    assert (result.selection.config, result.default_us, result.speedup) == (BEST, None, None)


def test_when_everything_fails_the_result_says_so_and_nothing_is_written(tmp_path):
    bench = Bench(dict.fromkeys([DEFAULT, *GRID[:-1]], CRASH))
    bench._outcomes[GRID[-1]] = Failure(kind="wrong", message="off by one")
    result = run(bench)
    assert result.selection.config is None
    assert result.failures == {"crash": len(GRID), "wrong": 1}
    assert (result.time_us, result.default_us, result.speedup) == (None, None, None)
    assert write_result(result, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_failures_and_pruned_are_counted():
    bench = Bench({GRID[0]: CRASH, GRID[1]: Pruned(rule="spills", times_us=(1.0,))})
    result = run(bench)
    assert (result.failures, result.pruned) == ({"crash": 1}, 1)


def test_when_the_time_is_up_what_is_in_flight_is_still_kept():
    record = Memory()
    result = run(timeout_s=0, record=record)
    assert (result.stopped, result.trials) == ("the time is up", 1)
    assert [trial.config for trial in record.trials] == [DEFAULT]
    assert not result.selection.tuned


@pytest.mark.parametrize("strategy", BUILT_IN)
def test_resume_spends_nothing_on_what_is_known(strategy, tmp_path):
    def record(resume):
        journal = Journal(tmp_path / "a.journal")
        return journal.open(TASK, (PREFILL,), PLATFORM, space=SPACE, resume=resume)

    first, second, third = Bench(), Bench(), Bench()
    run(first, strategy, trials=9, record=record(resume=False))
    result = run(second, strategy, trials=15, record=record(resume=True))
    assert result.trials == 15
    assert len(second.evaluated) == 6
    assert not set(first.evaluated) & set(second.evaluated)
    again = run(third, strategy, trials=15, record=record(resume=True))
    assert third.evaluated == []
    assert again.selection == result.selection


def test_a_resumed_strategy_is_told_the_same_costs():
    strategy = Script([])
    known = [Trial(config=c, outcome=Measurement(times_us=(time_us(c),))) for c in GRID[:3]]
    run(strategy=strategy, record=Memory(known))
    assert {t.config: t.cost for t in strategy.told} == {
        config: time_us(config) / 100 for config in [DEFAULT, *GRID[:3]]
    }


@pytest.mark.parametrize("strategy", BUILT_IN)
def test_ctrl_c_leaves_what_was_measured(strategy, tmp_path):
    record = Journal(tmp_path / "a.journal").open(TASK, (PREFILL,), PLATFORM, space=SPACE)
    bench = Bench(fail_after=6)
    with pytest.raises(KeyboardInterrupt):
        run(bench, strategy, record=record)
    assert [trial.config for trial in record.trials] == bench.evaluated
    reopened = Journal(tmp_path / "a.journal").open(
        TASK, (PREFILL,), PLATFORM, space=SPACE, resume=True
    )
    assert reopened.trials == record.trials

    fresh = Bench()
    result = run(fresh, strategy, record=record, trials=0)
    assert fresh.evaluated == []
    assert result.selection.config == min(bench.evaluated, key=time_us)


def test_the_default_is_measured_without_a_budget():
    assert run(trials=0).trials == 1


@pytest.mark.parametrize("seed", range(3))
def test_equal_seeds_give_equal_runs(seed):
    def evaluated(number):
        bench = Bench()
        run(bench, "tpe", seed=number, trials=14)
        return bench.evaluated

    assert evaluated(seed) == evaluated(seed)
    assert evaluated(seed) != evaluated(seed + 1)


def test_progress_covers_the_start_every_trial_and_the_finalists():
    seen = []
    record = Memory([Trial(config=GRID[0], outcome=CRASH)])
    run(record=record, on_progress=seen.append)
    assert [p.done for p in seen] == [*range(1, len(GRID) + 2), len(GRID) + 1]
    assert [p.phase for p in seen] == ["search"] * (len(GRID) + 1) + ["finalists"]
    assert (seen[0].best_cost, seen[0].best_config, seen[0].failures) == (None, None, 1)
    assert seen[-1].best_config == BEST
    assert seen[-1].best_cost == pytest.approx(time_us(BEST) / 100)
    assert {p.budget for p in seen} == {len(GRID) + 1}


def test_an_exception_of_the_callback_is_not_swallowed():
    def stop(_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run(on_progress=stop)


def test_an_evaluator_of_another_task_is_refused():
    with pytest.raises(EvaluatorError, match=r"chunk 64.*chunk 128"):
        tune(replace(TASK, chunk_size=128), evaluator=Bench())


@pytest.mark.parametrize(
    "options",
    [
        {"trials": -1},
        {"timeout_s": -1.0},
        {"timeout_s": float("nan")},
        {"rounds": 6},
        {"finalists": 0},
    ],
)
def test_a_number_that_makes_no_sense_costs_nothing(options):
    bench = Bench()
    with pytest.raises(UsageError):
        run(bench, **options)
    assert bench.evaluated == []


def test_an_unknown_strategy_is_named():
    with pytest.raises(UsageError, match="no strategy 'tpee'"):
        run(strategy="tpee")


def test_the_winner_is_merged_into_its_file(tmp_path):
    path = write_result(run(), tmp_path)
    name = "lora_shrink,K=1024,R=64,S=3,device=NVIDIA_H200.json"
    assert path == tmp_path / "csgmv_configs" / "triton_3_6_0" / name
    other = replace(run(), task=replace(TASK, chunk_size=16))
    assert write_result(other, tmp_path) == path
    written = json.loads(path.read_text())
    assert written == {"16": BEST.as_dict(), "64": BEST.as_dict()}


def test_a_default_that_stands_is_written_too(tmp_path):
    result = run(Bench({config: Measurement(times_us=(200.0,)) for config in GRID}))
    assert (result.selection.config, result.selection.tuned) == (DEFAULT, False)
    path = write_result(result, tmp_path)
    assert json.loads(path.read_text()) == {"64": {"BLOCK_N": 16, "BLOCK_K": 256}}


def test_where_a_winner_is_from_is_written_beside_it(tmp_path):
    known = {"driver": "580.159.04", "torch": "2.11.0", "kernels_version": "0123"}
    result = replace(run(), platform=replace(PLATFORM, **known))
    path = write_result(result, tmp_path, command="lora-autotune tune")
    entry = find_provenance(path, 64, BEST.as_dict())
    assert entry == Provenance(
        config=BEST.as_dict(),
        command="lora-autotune tune",
        workload=tuple(f"{one} {one.weight}" for one in result.workload),
        dtype="float16",
        gpu="NVIDIA H200",
        triton="3.6.0",
        kernels="builtin",
        **known,
        package=lora_autotune.__version__,
        date=datetime.now(tz=timezone.utc).date().isoformat(),
        replayed=False,
        strategy=result.strategy,
        space=f"own ({len(result.space)})",
        trials=result.trials,
        times_us=result.selection.times_us,
        default_times_us=result.selection.default_times_us,
    )
    write_result(run(), tmp_path)
    assert find_provenance(path, 64, BEST.as_dict()).command is None


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_outcomes_keep_the_books(seed):
    rng = random.Random(seed)
    outcomes = {
        config: rng.choice([CRASH, Pruned(rule="behind"), Measurement(times_us=(rng.random(),))])
        for config in [DEFAULT, *GRID]
    }
    record, strategy = Memory(), Script(rng.choices(GRID, k=60))
    bench = Bench(outcomes, capacity=rng.randint(1, 9), order=rng.choice(["first", "last"]))
    budget = rng.randint(1, 30)
    result = run(bench, strategy, record=record, trials=budget)
    assert [trial.config for trial in record.trials] == bench.evaluated
    assert result.trials == len(bench.evaluated) <= budget
    assert {trial.config for trial in strategy.told} == set(bench.evaluated)
    measured = {c for c in bench.evaluated if isinstance(outcomes[c], Measurement)}
    assert {trial.config for trial in strategy.told if trial.cost is not None} == measured
    assert (result.selection.config in measured) if measured else result.selection.config is None


class Hall:
    """Evaluators of several tasks that are alike, and when each was asked and measured again.

    The last is the scout of those strategies that have one.
    """

    def __init__(self, count: int, **options) -> None:
        self.benches: list[Bench] = []
        self.begun: set[Task] = set()
        self.most_busy = 0
        self.busy_at_finals: list[int] = []
        self.first_in_flight: list[int] = []
        self._count = count
        self._options = options

    def jobs(self, records=None, fail_after=None):
        for number in range(self._count):
            options = self._options | ({} if number else {"fail_after": fail_after})
            bench = HallBench(self, replace(TASK, K=1024 + 16 * number), **options)
            self.benches.append(bench)
            yield Job(evaluator=bench, space=SPACE, record=records[number] if records else None)

    def busy(self) -> int:
        return sum(bool(bench._in_flight) for bench in self.benches)

    def progress(self, progress):
        self.begun.add(progress.task)


class HallBench(Bench):
    def __init__(self, hall: Hall, task: Task, **options) -> None:
        super().__init__(**options)
        self.task = task
        self._hall = hall

    def submit(self, config, /):
        super().submit(config)
        self._hall.most_busy = max(self._hall.most_busy, self._hall.busy())

    def poll(self, wait_s, /):
        if not self._hall.first_in_flight:
            self._hall.first_in_flight = [len(bench._in_flight) for bench in self._hall.benches]
        return super().poll(wait_s)

    def remeasure(self, configs, /, *, rounds):
        assert not self._in_flight
        self._hall.busy_at_finals.append(self._hall.busy())
        return super().remeasure(configs, rounds=rounds)


@pytest.mark.parametrize("strategy", BUILT_IN)
@pytest.mark.parametrize("at_once", [1, 2, 3, 8])
def test_several_tasks_at_once_all_get_their_winners(strategy, at_once):
    hall = Hall(5)
    results = list(tune_all(hall.jobs(), at_once=at_once, strategy=strategy, trials=100))
    assert sorted(r.task.K for r in results) == [1024 + 16 * n for n in range(5)]
    assert {r.selection.config for r in results} == {BEST}
    assert {r.trials for r in results} == {len(GRID) + 1}
    assert hall.most_busy == min(at_once, 5)


def test_a_task_is_begun_when_its_turn_comes():
    hall = Hall(9)
    results = tune_all(hall.jobs(), at_once=2, strategy="grid", on_progress=hall.progress)
    begun = [len(hall.begun) for _ in results]
    assert all(
        count <= number + 1 + 4 for number, count in enumerate(begun)
    )  # done, two under way, and two whose finalists wait
    assert begun[0] <= 4
    assert begun[-1] == 9


def test_tasks_that_a_record_knows_whole_are_not_all_begun_at_once():
    known = [Trial(config=c, outcome=Measurement(times_us=(time_us(c),))) for c in [DEFAULT, *GRID]]
    hall = Hall(40)
    records = [Memory(known) for _ in range(40)]
    results = tune_all(hall.jobs(records), at_once=2, strategy="grid", on_progress=hall.progress)
    next(results)
    assert len(hall.begun) <= 4
    assert len(list(results)) == 39
    assert all(bench.evaluated == [] for bench in hall.benches)


def test_finalists_are_measured_while_the_next_task_is_in_flight():
    hall = Hall(4)
    list(tune_all(hall.jobs(), at_once=1, strategy="grid"))
    assert hall.busy_at_finals == [1, 1, 1, 0]


@pytest.mark.parametrize("strategy", ["auto", "gp"])
@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_scout_is_searched_first_and_the_others_start_from_its_best(strategy, at_once):
    hall = Hall(4, capacity=2)
    results = list(tune_all(hall.jobs(), at_once=at_once, strategy=strategy, trials=16))
    *others, scout = hall.benches
    best = sorted(time_us(config) for config in scout.evaluated)[:HINTS]
    for bench in others:
        assert bench.evaluated[0] == DEFAULT
        hints = bench.evaluated[1 : 1 + HINTS]
        assert [time_us(config) for config in hints] == best
        assert set(hints) <= set(scout.evaluated)
    assert results[0].task == scout.task
    assert {result.trials for result in results} == {16}


@pytest.mark.parametrize("strategy", BUILT_IN)
def test_other_strategies_wait_for_nobody(strategy):
    hall = Hall(3, capacity=1)
    results = list(tune_all(hall.jobs(), at_once=1, strategy=strategy, trials=9))
    assert [result.task.K for result in results] == [1024, 1040, 1056]
    first, *others = [bench.evaluated for bench in hall.benches]
    assert others == [first, first]


def test_without_a_budget_the_others_have_a_share_of_their_scouts():
    space = named_space("wide", "shrink")
    hall = Hall(3)
    jobs = [replace(job, space=space) for job in hall.jobs()]
    budgets = {}
    results = list(
        tune_all(
            jobs,
            strategy="gp",
            on_progress=lambda progress: budgets.update({progress.task.K: progress.budget}),
        )
    )
    assert budgets == {1024: 10, 1040: 10, 1056: 32}
    assert {result.task.K: result.trials for result in results} == budgets


def test_equal_runs_of_several_tasks_are_equal():
    def evaluated():
        hall = Hall(4)
        list(tune_all(hall.jobs(), at_once=1, strategy="gp", trials=14))
        return [bench.evaluated for bench in hall.benches]

    assert evaluated() == evaluated()


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_resumed_scout_passes_on_what_its_record_knows(at_once):
    undisturbed, resumed = Hall(3, capacity=1), Hall(3, capacity=1)
    list(tune_all(undisturbed.jobs(), at_once=at_once, strategy="gp", trials=14))
    *others, scout = undisturbed.benches
    known = [Trial(config=c, outcome=scout.outcome(c)) for c in scout.evaluated]
    records = [Memory(), Memory(), Memory(known)]
    results = list(tune_all(resumed.jobs(records), at_once=at_once, strategy="gp", trials=14))
    assert resumed.benches[-1].evaluated == []
    assert [bench.evaluated for bench in resumed.benches[:-1]] == [b.evaluated for b in others]
    assert len(results) == 3


def test_a_scout_that_found_nothing_holds_nobody_up():
    failing = dict.fromkeys([DEFAULT, *GRID], CRASH)
    hall = Hall(3, outcomes=failing)
    results = list(tune_all(hall.jobs(), strategy="gp", trials=5))
    assert [result.selection.config for result in results] == [None] * 3


def test_who_has_nothing_from_a_scout_has_the_whole_budget():
    space = named_space("wide", "shrink")
    hall = Hall(3, outcomes=dict.fromkeys([DEFAULT, *space], CRASH))
    results = list(tune_all([replace(job, space=space) for job in hall.jobs()], strategy="gp"))
    assert [result.trials for result in results] == [default_trials(space)] * 3


def test_a_job_is_there_once():
    (job,) = Hall(1).jobs()
    with pytest.raises(UsageError, match="twice"):
        list(tune_all([job, job]))


def test_a_scout_whose_time_is_up_holds_nobody_up():
    results = list(tune_all(Hall(3).jobs(), strategy="gp", timeout_s=0.0))
    assert [result.trials for result in results] == [1] * 3


def test_ctrl_c_in_one_task_ends_them_all_and_keeps_what_each_recorded():
    hall = Hall(3)
    records = [Memory() for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        list(tune_all(hall.jobs(records, fail_after=3), at_once=3, strategy="grid"))
    for record, bench in zip(records, hall.benches, strict=True):
        assert [trial.config for trial in record.trials] == bench.evaluated
        assert bench.evaluated


def test_progress_names_the_task_it_is_of():
    seen = []
    list(tune_all(Hall(3).jobs(), at_once=3, strategy="grid", on_progress=seen.append))
    for task in {progress.task for progress in seen}:
        own = [progress for progress in seen if progress.task == task]
        assert [p.done for p in own] == [*range(len(GRID) + 2), len(GRID) + 1]
        assert own[-1].phase == "finalists"
    assert len({progress.task for progress in seen}) == 3


def test_no_jobs_give_no_results():
    assert list(tune_all([])) == []


@pytest.mark.parametrize("at_once", [0, -1])
def test_no_tasks_at_once_make_no_sense(at_once):
    with pytest.raises(UsageError, match="at once"):
        list(tune_all(Hall(1).jobs(), at_once=at_once))


@pytest.mark.parametrize(
    ("capacity", "tasks", "expected"), [(18, 1, 18), (18, 2, 18), (18, 4, 9), (18, 8, 5), (4, 8, 2)]
)
def test_tasks_share_twice_what_a_machine_can_hold(capacity, tasks, expected):
    hall = Hall(tasks, capacity=capacity)
    list(tune_all(hall.jobs(), at_once=tasks, strategy="grid"))
    assert hall.first_in_flight == [expected] * tasks


def test_a_search_without_a_scout_tries_the_starting_points_first():
    hall = Hall(1)
    (job,) = (replace(job, space=None) for job in hall.jobs())
    list(tune_all([job], strategy="gp", trials=12))
    first = starting_points(job.task, job.problem.space)
    assert tuple(hall.benches[0].evaluated[1 : 1 + len(first)]) == first
