"""What pruning over the batches of a workload saves and what it costs, by replay without a GPU.

    python scripts/bench_pruning.py [--seeds N] [--landscapes WORD..]
        [--strategies NAME..] [--jobs N]

Every landscape with two batches or more (of those that ship, and of those of earlier kernels in
tests) is searched for 50 configs, with every rule and order. Printed are the batches that were
timed, the time that timing them takes less than without pruning, and the regret: the best config
that was measured in full over the landscape's best, less 1. What is saved is modelled, see
:func:`graphs`.

Rules: a candidate is out when its cost is over so many times the best's, if on the batches that are
left it took no time ("lossless"), the fastest time of all ("fastest"), or the best config's
("best"); or when Optuna's pruner says so, whose steps are the batches, their values relative to the
default's (WilcoxonPruner needs SciPy). The order is the shipped one unless they say otherwise.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import optuna
from search_replay import landscapes, replay

from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.pruning import (
    BEHIND,
    GIVE_UP,
    REPLAYS,
    Standings,
    imputed_us,
    pruned,
    telling_order,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Workload
from lora_autotune.trial import Measurement, Pruned, Trial, relative_cost, tuning_cost

COUNT = 50
OURS = ("gp", "tpe", "random")
WARM_UPS = 3
"""Replays of a graph that are not counted: two when it is made, one before it is timed."""

Timed = Mapping[int, float]
Rule = Callable[["Bench", Timed], bool]
Order = Callable[[Workload], list[int]]
Cost = Callable[[tuple[float, ...], tuple[float, ...], Workload], float]


def graphs(time_us: float, fastest_us: float, replays: int) -> float:
    """What timing a config on a batch takes, in replays of a graph of the fastest so far.

    That one takes about half a millisecond on every batch, see ``timing.GRAPH_US``, and the
    config's own has as many launches. Making it, and loading and checking the config, is left out.
    """
    return (WARM_UPS + replays) * max(1.0, time_us / fastest_us)


class Bench:
    """Measures recorded configs as a GPU would, until a rule says that they are out.

    Attributes:
        spent: what the timing has taken, in graphs.
        timed: batches that were timed.
        best_us: the best config's times.
    """

    def __init__(self, landscape: Landscape, rule: Rule | None, order: Order) -> None:
        self.landscape = landscape
        self.workload = landscape.workload
        self.standings = Standings()
        self.spent, self.timed = 0.0, 0
        default = landscape.trials[DEFAULT_CONFIGS[landscape.task.kernel]].outcome
        assert isinstance(default, Measurement)
        self.default_us = self.best_us = default.times_us
        self._rule = rule
        self._order = order(self.workload)

    def __call__(self, config: Config) -> Trial:
        """The config's trial, with the cost that a search would be told."""
        trial = self.landscape.trials[config]
        if not isinstance(trial.outcome, Measurement):
            return trial
        outcome = self._measured(trial.outcome.times_us)
        before, is_default = self.standings, config == DEFAULT_CONFIGS[self.landscape.task.kernel]
        self.standings = before.after(outcome, self.workload, is_default=is_default)
        if isinstance(outcome, Pruned):
            times_us = imputed_us(outcome, self.best_us, self.default_us, self.workload)
            cost = max(before.best_cost, tuning_cost(times_us, self.default_us, self.workload))
            return replace(trial, outcome=outcome, cost=cost)
        if self.standings.best_cost < before.best_cost:
            self.best_us = trial.outcome.times_us
        return replace(trial, cost=self.landscape.cost(config))

    def _measured(self, recorded_us: Sequence[float]) -> Measurement | Pruned:
        timed: dict[int, float] = {}
        for place in self._order:
            limits_us = {
                replays: self.standings.limit_us(factor, timed, place, self.workload)
                for replays, factor in GIVE_UP.items()
            }
            time_us = timed[place] = recorded_us[place]
            replays = next((n for n, us in limits_us.items() if time_us > us), REPLAYS)
            fastest_us = [*self.standings.fastest_us, *recorded_us][place]
            self.spent += graphs(time_us, fastest_us, replays)
            self.timed += 1
            out = self._rule is not None and self._rule(self, timed)
            if out and self.standings.default_us and len(timed) < len(self.workload):
                return pruned(timed, self.workload)
        return Measurement(times_us=tuple(recorded_us))


def granted(
    granted_us: Callable[[Bench], Sequence[float]], factor: float, cost_of: Cost = relative_cost
) -> Rule:
    """Out by a bound: what a candidate is granted on batches that are left, and by how much."""

    def rule(bench: Bench, timed: Timed) -> bool:
        times_us = {**dict(enumerate(granted_us(bench))), **timed}
        cost = cost_of(tuple(times_us.values()), bench.default_us, bench.workload)
        return cost > factor * bench.standings.best_cost

    return rule


def nothing(bench: Bench) -> Sequence[float]:
    return (0.0,) * len(bench.workload)


def fastest(bench: Bench) -> Sequence[float]:
    return bench.standings.fastest_us or nothing(bench)


def best(bench: Bench) -> Sequence[float]:
    return bench.best_us


class OptunasRule:
    """One of Optuna's pruners, through its own interface."""

    def __init__(self, pruner: optuna.pruners.BasePruner) -> None:
        sampler = optuna.samplers.RandomSampler(seed=0)
        self._study = optuna.create_study(pruner=pruner, sampler=sampler)
        self._trial = self._study.ask()

    def __call__(self, bench: Bench, timed: Timed) -> bool:
        *before, place = timed
        if not before:
            self._trial = self._study.ask()
        self._trial.report(timed[place] / bench.default_us[place], place)
        out: bool = self._trial.should_prune()
        last = len(timed) == len(bench.workload)
        if last:
            times_us = tuple(timed[i] for i in range(len(timed)))
            cost = tuning_cost(times_us, bench.default_us, bench.workload)
            self._study.tell(self._trial, cost)
        elif out and bench.standings.default_us:
            self._study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)
        return out


def wilcoxon() -> Rule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return OptunasRule(optuna.pruners.WilcoxonPruner(p_threshold=0.1))


def percentile() -> Rule:
    return OptunasRule(optuna.pruners.PercentilePruner(25.0, n_startup_trials=8))


def listed(workload: Workload) -> list[int]:
    return list(range(len(workload)))


def reverse(workload: Workload) -> list[int]:
    return telling_order(workload)[::-1]


WILCOXON = "optuna WilcoxonPruner"
VARIANTS: Mapping[str, tuple[Callable[[], Rule | None], Order]] = {
    "none": (lambda: None, telling_order),
    "lossless": (lambda: granted(nothing, 1.0), telling_order),
    "fastest x 1.3": (lambda: granted(fastest, 1.3), telling_order),
    "shipped: fastest x 1.1": (lambda: granted(fastest, BEHIND), telling_order),
    "the same, as listed": (lambda: granted(fastest, BEHIND), listed),
    "the same, in reverse": (lambda: granted(fastest, BEHIND), reverse),
    "the same, losses charged": (lambda: granted(fastest, BEHIND, tuning_cost), telling_order),
    "fastest x 1.05": (lambda: granted(fastest, 1.05), telling_order),
    "fastest x 1": (lambda: granted(fastest, 1.0), telling_order),
    "best x 1.1": (lambda: granted(best, 1.1), telling_order),
    "best x 1": (lambda: granted(best, 1.0), telling_order),
    WILCOXON: (wilcoxon, telling_order),
    "optuna PercentilePruner": (percentile, telling_order),
}


class Found(NamedTuple):
    """One search."""

    spent: float
    timed: int
    regret: float


@functools.cache
def recorded(file: Path) -> Landscape:
    return read_landscape(file)


def run(job: tuple[str, str, Path, int]) -> Found:
    """One search by a strategy with a variant."""
    strategy, variant, file, seed = job
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make_rule, order = VARIANTS[variant]
    bench = Bench(recorded(file), make_rule(), order)
    found = replay(strategy, file, seed, COUNT, bench)
    return Found(spent=bench.spent, timed=bench.timed, regret=found.regrets[-1])


def show(title: str, found: Mapping[str, np.ndarray]) -> None:
    """One table: variant -> (search, number of Found)."""
    print(f"\n{title}")
    print(f"{'':26}{'batches':>9}{'timing':>9}{'saved':>8}{'regret at 50, %':>22}")
    print(f"{'':26}{'timed':>9}{'graphs':>9}{'%':>8}{'mean':>10}{'median':>7}{'p90':>5}")
    full = found["none"].mean(0)[0]
    for name, values in found.items():
        spent, timed, _ = values.mean(0)
        regrets = 100 * values[:, 2]
        median, high = np.quantile(regrets, [0.5, 0.9])
        text = f"{name:26}{timed:9.1f}{spent:9.0f}{100 * (1 - spent / full):8.1f}"
        print(f"{text}{regrets.mean():10.2f}{median:7.1f}{high:5.1f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pruning over batches by replay; needs no GPU.")
    parser.add_argument("--seeds", type=int, default=50, metavar="N")
    parser.add_argument("--landscapes", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--strategies", nargs="*", default=OURS[:1], choices=OURS, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    options = parser.parse_args(arguments)
    files = {
        name: file
        for name, file in landscapes(options.landscapes).items()
        if len(read_landscape(file).workload) > 1
    }
    if not files:
        print("no such landscape has two batches", file=sys.stderr)
        return 2
    variants = list(VARIANTS)
    if importlib.util.find_spec("scipy") is None:
        variants.remove(WILCOXON)
        print(f"SciPy is not installed: without {WILCOXON}", file=sys.stderr)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy starts in the processes
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for strategy in options.strategies:
            tables: dict[str, dict[str, np.ndarray]] = {name: {} for name in files}
            for variant in variants:
                jobs = [
                    (strategy, variant, file, seed)
                    for file in files.values()
                    for seed in range(options.seeds)
                ]
                values = np.array(pool.map(run, jobs, chunksize=5))
                for name, part in zip(files, np.split(values, len(files)), strict=True):
                    tables[name][variant] = part
            for name, found in tables.items():
                show(f"{strategy}, {name}", found)
            together = {v: np.concatenate([t[v] for t in tables.values()]) for v in variants}
            title = f"{strategy}, {len(files)} landscapes, {options.seeds} seeds"
            show(title, together)
    print(f"\n{time.monotonic() - started:.0f} s with {options.jobs} processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
