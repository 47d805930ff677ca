"""Our strategies on a recorded landscape, with configs in flight as in a real run."""

from __future__ import annotations

import functools
import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.strategy import StrategyOptions, make_strategy
from lora_autotune.trial import Measurement, Pruned, Trial

ROOT = Path(__file__).resolve().parent.parent

CAPACITY = 8
WORKERS = 14
MEASURE_S = 0.05
"""Configs in flight; compile workers; and what measuring one takes, one at a time."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search.

    Attributes:
        regrets: how far the best is from the landscape's after each config that was measured.
        asking_s: seconds that the strategy thought.
        within_s: modelled seconds until the best is within 1%, infinite when it never is.
        costs: what each config that was measured in full costs.
    """

    regrets: list[float]
    asking_s: float
    within_s: float
    costs: Mapping[Config, float] = field(default_factory=dict)


def landscapes(names: list[str], folder: Path | None = None) -> dict[str, Path]:
    """Those of a folder whose names hold any of some words, or all of them.

    Without a folder they are those that ship, and those of earlier kernels, which the tests have.
    """
    folders = [folder] if folder else [ROOT / "configs/landscapes", ROOT / "tests/landscapes"]
    files = {file.name.split(".")[0]: file for one in folders for file in sorted(one.iterdir())}
    return {k: file for k, file in files.items() if not names or any(n in k for n in names)}


def replay(
    name: str,
    recorded: Path | Landscape,
    seed: int,
    count: int,
    measure: Callable[[Config], Trial] | None = None,
    *,
    first: Sequence[Config] = (),
) -> Run:
    """A search by one of our strategies; the default, which is always measured, counts as one.

    Configs are measured by ``measure``, which may prune them; without it they are looked up. Those
    in ``first`` are tried first. The model of the time: a config compiles on a free worker for as
    long as was recorded, then waits for the one GPU. While the strategy thinks nothing else is
    started.
    """
    landscape = read_landscape(recorded) if isinstance(recorded, Path) else recorded
    default = DEFAULT_CONFIGS[landscape.task.kernel]
    options = StrategyOptions(first=(default, *first))
    strategy = make_strategy(name, landscape.space, seed=seed, options=options)
    measure = measure or functools.partial(_priced, landscape)
    regrets = Regrets(landscape)
    regrets.add(default)
    strategy.tell(measure(default))
    clock, gpu_s, asking_s, within_s = 0.0, 0.0, 0.0, math.inf
    workers = [0.0] * WORKERS
    flying: list[tuple[float, int, Config]] = []
    costs: dict[Config, float] = {}
    asked = 1
    while len(regrets.values) < count:
        started = time.perf_counter()
        configs = list(strategy.ask(min(CAPACITY - len(flying), count - asked)))
        thought = time.perf_counter() - started
        asking_s, clock = asking_s + thought, clock + thought
        for config in configs:
            asked += 1
            compiled = max(heapq.heappop(workers), clock)
            compiled += landscape.trials[config].compile_s or 0.0
            heapq.heappush(workers, compiled)
            gpu_s = max(gpu_s, compiled) + MEASURE_S
            heapq.heappush(flying, (gpu_s, asked, config))
        finished, _, config = heapq.heappop(flying)
        clock = max(clock, finished)
        trial = measure(config)
        started = time.perf_counter()
        strategy.tell(trial)
        asking_s += time.perf_counter() - started
        regrets.add(config, pruned=isinstance(trial.outcome, Pruned))
        if isinstance(trial.outcome, Measurement) and trial.cost is not None:
            costs[config] = trial.cost
        if regrets.values[-1] <= 0.01:
            within_s = min(within_s, clock)
    return Run(regrets=regrets.values, asking_s=asking_s, within_s=within_s, costs=costs)


class Regrets:
    """The regret after each different config that was measured; failures count like the others."""

    def __init__(self, landscape: Landscape) -> None:
        self.values: list[float] = []
        self._landscape = landscape
        self._seen: set[Config] = set()
        self._best, self._least = math.inf, landscape.best()[1]

    def add(self, config: Config, *, pruned: bool = False) -> None:
        """A config that was measured, perhaps not for the first time; a pruned one cannot win."""
        if config in self._seen:
            return
        self._seen.add(config)
        cost = self._landscape.cost(config)
        self._best = min(self._best, math.inf if cost is None or pruned else cost)
        self.values.append(self._best / self._least - 1)


def _priced(landscape: Landscape, config: Config) -> Trial:
    return replace(landscape.trials[config], cost=landscape.cost(config))
