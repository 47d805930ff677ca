"""scripts/bench_pruning.py: what a rule sees, what timing costs, and that the shipped one is it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.landscape import read_landscape
from lora_autotune.pruning import REPLAYS
from lora_autotune.task import Instance
from lora_autotune.testing import bowl_landscape
from lora_autotune.trial import Measurement, Pruned

PACKAGE = Path(lora_autotune.__file__).parent
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SEVERAL = [
    landscape
    for folder in (PACKAGE / "configs/landscapes", Path(__file__).parent / "landscapes")
    for file in sorted(folder.iterdir())
    if len((landscape := read_landscape(file)).workload) > 1
]
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


@pytest.mark.parametrize("landscape", [LANDSCAPE, *SEVERAL], ids=lambda one: str(one.task))
def test_the_shipped_rule_prunes_what_tuning_prunes(script, landscape):
    make_rule, order = script.VARIANTS["shipped: fastest x 1.1"]
    bench = script.Bench(landscape, make_rule(), order)
    evaluator = ReplayEvaluator(landscape, prune=True)
    for config in landscape.trials:
        evaluator.submit(config)
        assert bench(config).outcome == evaluator.collect().outcome


def test_of_four_batches_a_rule_saves_those_that_are_left(script):
    batches = (*LANDSCAPE.workload, Instance(tokens=512), Instance(tokens=4096))
    trials = {
        config: replace(trial, outcome=Measurement(times_us=trial.outcome.times_us * 2))
        if isinstance(trial.outcome, Measurement)
        else trial
        for config, trial in LANDSCAPE.trials.items()
    }
    four = replace(LANDSCAPE, workload=batches, trials=trials)
    for name, (make_rule, order) in script.VARIANTS.items():
        if name == script.WILCOXON and importlib.util.find_spec("scipy") is None:
            continue
        bench = script.Bench(four, make_rule(), order)
        found = [bench(config).outcome for config in four.trials]
        left = [sum(us is None for us in one.times_us) for one in found if isinstance(one, Pruned)]
        assert bench.timed == 4 * 100 - sum(left)
        assert all(1 <= count <= 3 for count in left)


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
