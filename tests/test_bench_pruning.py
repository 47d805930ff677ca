"""scripts/bench_pruning.py: what a rule sees, what timing costs, and that the shipped one is it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.pruning import REPLAYS
from lora_autotune.testing import bowl_landscape
from lora_autotune.trial import Pruned

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
LANDSCAPE = bowl_landscape()
pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import bench_pruning
    finally:
        sys.path.remove(str(SCRIPTS))
    return bench_pruning


def test_timing_costs_what_a_graph_of_the_fastest_takes_so_many_times(script):
    assert script.graphs(5.0, 5.0, REPLAYS) == 12
    assert script.graphs(10.0, 5.0, 2) == 10
    assert script.graphs(4.0, 5.0, 4) == 7


def test_the_shipped_rule_prunes_what_tuning_prunes(script):
    make_rule, order = script.VARIANTS["shipped: fastest x 1.1"]
    bench = script.Bench(LANDSCAPE, make_rule(), order)
    evaluator = ReplayEvaluator(LANDSCAPE, prune=True)
    for config in LANDSCAPE.trials:
        evaluator.submit(config)
        assert bench(config).outcome == evaluator.collect().outcome


@pytest.mark.parametrize("name", ["none", "lossless", "best x 1", "optuna PercentilePruner"])
def test_every_rule_saves_and_tells_no_cost_below_the_best(script, name):
    make_rule, order = script.VARIANTS[name]
    bench = script.Bench(LANDSCAPE, make_rule(), order)
    pruned = 0
    for config in LANDSCAPE.trials:
        best = bench.standings.best_cost
        trial = bench(config)
        if isinstance(trial.outcome, Pruned):
            pruned += 1
            assert trial.cost >= best
    assert (pruned == 0) == (name == "none")
    assert bench.timed == 2 * 100 - pruned
