"""Several tasks at a time: who begins when, who waits for whom, and that all get their winners."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_autotune.budgets import HINTS, default_trials
from lora_autotune.errors import UsageError
from lora_autotune.space import named_space
from lora_autotune.starting_points import starting_points
from lora_autotune.trial import Measurement, Trial
from lora_autotune.tuner import tune_all
from tests.search_doubles import Memory
from tests.tuner_doubles import BEST, BUILT_IN, CRASH, DEFAULT, GRID, Hall, time_us


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
    ("capacity", "tasks", "expected"), [(10, 1, 10), (10, 2, 10), (18, 4, 9), (18, 8, 5), (4, 8, 2)]
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
