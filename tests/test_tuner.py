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
from lora_autotune.budgets import default_trials
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.journal import Journal
from lora_autotune.provenance import Provenance, find_provenance
from lora_autotune.result import TuningResult, write_result
from lora_autotune.search import MAX_FRUITLESS_ASKS
from lora_autotune.space import Config
from lora_autotune.task import PREFILL
from lora_autotune.trial import Failure, Measurement, Pruned, Trial
from lora_autotune.tuner import tune
from tests.search_doubles import Memory, Script
from tests.tuner_doubles import (
    BEST,
    BUILT_IN,
    CRASH,
    DEFAULT,
    GRID,
    PLATFORM,
    SPACE,
    TASK,
    Bench,
    time_us,
)


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
