"""Pruning over instances: their order, the bound, and what a pruned trial is taken to cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.cli import main
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.journal import Journal
from lora_autotune.landscape import write_landscape
from lora_autotune.pruning import BEHIND, Standings, imputed_us, pruned, telling_order
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.task import DECODE, PREFILL, Instance
from lora_autotune.testing import bowl_landscape
from lora_autotune.trial import Failure, Measurement, Pruned, relative_cost
from lora_autotune.tuner import tune
from lora_autotune.workload import PRESETS

WORKLOAD = (DECODE, PREFILL)
LANDSCAPE = bowl_landscape()

TIMES = st.floats(0.5, 5000)
CONTESTS = st.lists(
    st.tuples(st.floats(0.1, 10), TIMES, TIMES, TIMES), min_size=1, max_size=5
)  # of each instance: its weight, the default's time, the fastest, the candidate's


def workload_of(weights):
    return tuple(Instance(tokens=i + 1, weight=weight) for i, weight in enumerate(weights))


@given(CONTESTS, st.data(), st.floats(1.0, 3.0), st.floats(0.05, 1.0))
def test_at_its_limit_and_as_fast_as_the_fastest_elsewhere_it_costs_the_factor(
    contest, data, factor, best_cost
):
    weights, default_us, fastest_us, own_us = zip(*contest, strict=True)
    workload = workload_of(weights)
    order = data.draw(st.permutations(range(len(contest))))
    place = order[data.draw(st.integers(0, len(contest) - 1))]
    timed = {i: own_us[i] for i in order[: order.index(place)]}
    standings = Standings(default_us=default_us, fastest_us=fastest_us, best_cost=best_cost)
    limit_us = standings.limit_us(factor, timed, place, workload)
    granted_us = {**dict(enumerate(fastest_us)), **timed, place: limit_us}
    cost = relative_cost(tuple(granted_us.values()), default_us, workload)
    magnitude = max(1.0, *(own / base for own, base in zip(own_us, default_us, strict=True)))
    assert cost == pytest.approx(factor * best_cost, rel=1e-9, abs=1e-9 * magnitude)


@given(CONTESTS, st.floats(1.0, 3.0))
def test_nothing_within_the_factor_of_the_best_is_ever_over_a_limit(contest, factor):
    weights, default_us, _, own_us = zip(*contest, strict=True)
    workload = workload_of(weights)
    cost = relative_cost(own_us, default_us, workload)
    standings = Standings(default_us=default_us, fastest_us=own_us, best_cost=cost)
    timed: dict[int, float] = {}
    for place in telling_order(workload):
        limit_us = standings.limit_us(factor, timed, place, workload)
        slack_us = 1e-9 * cost * sum(weights) / weights[place] * default_us[place]
        assert own_us[place] <= limit_us + slack_us
        timed[place] = own_us[place]


@pytest.mark.parametrize(
    ("preset", "order"),
    [
        ("decode", [0, 1, 2, 3]),
        ("prefill", [0, 1, 2]),
        ("embedding", [1, 2, 0]),
        ("chat", [0, 1, 2, 3]),
    ],
)
def test_the_heaviest_batch_goes_first_and_of_equals_the_smallest(preset, order):
    assert telling_order(PRESETS[preset]) == order


def test_nothing_is_behind_before_the_default_was_measured():
    standings = Standings().after(Measurement(times_us=(5.0, 100.0)), WORKLOAD)
    assert standings.limit_us(BEHIND, {}, 0, WORKLOAD) == float("inf")
    standings = standings.after(Measurement(times_us=(10.0, 200.0)), WORKLOAD, is_default=True)
    assert standings.fastest_us == (5.0, 100.0)
    assert standings.best_cost == 1.0
    assert standings.limit_us(BEHIND, {}, 0, WORKLOAD) == pytest.approx((2 * 1.1 - 0.5) * 10)


def test_what_is_pruned_teaches_how_fast_a_batch_can_be_and_what_failed_nothing():
    standings = Standings().after(Measurement(times_us=(10.0, 200.0)), WORKLOAD, is_default=True)
    after = standings.after(pruned({1: 90.0}, WORKLOAD), WORKLOAD)
    assert after == replace(standings, fastest_us=(10.0, 90.0))
    for nothing in (Failure(kind="crash", message="made up"), Pruned(rule="spills")):
        assert after.after(nothing, WORKLOAD) == after


def test_a_pruned_candidate_is_as_far_behind_where_it_was_not_timed():
    outcome = pruned({0: 15.0}, WORKLOAD)
    assert outcome == Pruned(rule="clearly behind after 1 of 2 batches", times_us=(15.0, None))
    assert imputed_us(outcome, (5.0, 100.0), (10.0, 200.0), WORKLOAD) == (15.0, 300.0)


def answers(*, prune: bool):
    evaluator = ReplayEvaluator(LANDSCAPE, prune=prune)
    for config in LANDSCAPE.trials:
        evaluator.submit(config)
    return {(t := evaluator.collect()).config: t for _ in LANDSCAPE.trials}


def test_a_replay_that_prunes_stops_at_a_batch_and_keeps_what_could_win():
    found = answers(prune=True)
    out = {c: t.outcome for c, t in found.items() if isinstance(t.outcome, Pruned)}
    assert len(out) > 20
    best = LANDSCAPE.best()[1]
    for config, outcome in out.items():
        recorded = LANDSCAPE.trials[config].outcome
        assert outcome.times_us == (recorded.times_us[0], None)
        assert LANDSCAPE.cost(config) > BEHIND * best * 0.99
    assert DEFAULT_CONFIGS["expand"] not in out
    kept = {c: t for c, t in found.items() if c not in out}
    assert kept == {config: LANDSCAPE.trials[config] for config in kept}
    assert answers(prune=False) == dict(LANDSCAPE.trials)


@pytest.mark.parametrize("strategy", ["gp", "tpe", "random"])
def test_a_search_that_prunes_finds_what_a_full_one_finds(strategy):
    def search(*, prune: bool):
        evaluator = ReplayEvaluator(LANDSCAPE, prune=prune, capacity=4)
        return tune(
            LANDSCAPE.task,
            evaluator=evaluator,
            space=LANDSCAPE.space,
            strategy=strategy,
            trials=109,
        )

    full, short = search(prune=False), search(prune=True)
    assert full.pruned == 0
    assert short.pruned > 20
    assert short.selection.config == full.selection.config


def test_what_was_timed_survives_in_the_record(tmp_path):
    evaluator = ReplayEvaluator(LANDSCAPE, prune=True)

    def record(*, resume):
        journal = Journal(tmp_path / "a.journal")
        about = evaluator.task, evaluator.workload, evaluator.platform
        return journal.open(*about, space=LANDSCAPE.space, resume=resume)

    def search(**options):
        return tune(evaluator.task, evaluator=evaluator, space=LANDSCAPE.space, **options)

    first = search(record=record(resume=False), trials=40)
    assert first.pruned > 0
    resumed = record(resume=True)
    outs = [t.outcome for t in resumed.trials if isinstance(t.outcome, Pruned)]
    assert [len(out.times_us) for out in outs] == [2] * first.pruned
    assert search(record=resumed, trials=40).selection == first.selection


@pytest.mark.parametrize(
    ("words", "prunes"), [("grid", False), ("grid --prune", True), ("tpe --trials 60", True)]
)
def test_a_grid_is_exhaustive_unless_it_is_told_to_prune(tmp_path, capsys, words, prunes):
    file = tmp_path / "bowl.jsonl"
    write_landscape(file, LANDSCAPE)
    arguments = [
        "--replay",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--strategy",
        *words.split(),
    ]
    assert main(["tune", *arguments]) == 0
    assert (" 0 pruned" in capsys.readouterr().out) == (not prunes)
