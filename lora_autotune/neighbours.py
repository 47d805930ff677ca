"""Tasks that are alike: one of them, the scout, is searched first, the others start from its best.

Alike are tasks of one kernel, dtype, chunk size and rank, on the same batches, platform and space:
only their widths differ. Of these the scout is the one that most others are close to, for what it
finds holds for them; of equals the one with the most work, where the differences are largest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from lora_autotune.evaluator import Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Measurement, Trial

CLOSE = 1.0
"""Doublings of K up to which alike tasks have nearly the same best configs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A task, and all else that its best config depends on.

    Attributes:
        workload: the batches that it is timed on.
        platform: where; None: wherever the others of that kind are.
        space: where it is searched.
    """

    task: Task
    workload: Workload
    platform: Platform | None
    space: SearchSpace

    @property
    def kind(self) -> Hashable:
        """What alike problems share."""
        task = self.task
        of_task = task.kernel, task.dtype, task.chunk_size, task.R
        return *of_task, self.workload, self.platform, tuple(self.space.axes.items())


def scouts(problems: Sequence[Problem]) -> list[int]:
    """The position of each problem's scout; its own where it is one."""
    groups: dict[Hashable, list[int]] = {}
    for place, problem in enumerate(problems):
        groups.setdefault(problem.kind, []).append(place)
    chosen = {kind: _scout(problems, places) for kind, places in groups.items()}
    return [chosen[problem.kind] for problem in problems]


def close(one: Task, other: Task) -> bool:
    """Whether tasks that are alike have nearly the same best configs.

    K may be a doubling away. A shrink's slices lie side by side in its output, whose columns decide
    which tiles are good; so their number counts there, but not for expand.
    """
    if one.kernel == "shrink" and one.S != other.S:
        return False
    return abs(math.log2(one.K / other.K)) <= CLOSE


def best_configs(trials: Iterable[Trial], count: int) -> tuple[Config, ...]:
    """The configs that did best in a search, the best first, without what is tried anyway.

    One whose timing was stopped early ranks by what it took until then.
    """
    tried_anyway = set(DEFAULT_CONFIGS.values())
    measured = [
        (trial.cost, trial.config)
        for trial in trials
        if isinstance(trial.outcome, Measurement)
        and trial.cost is not None
        and trial.config not in tried_anyway
    ]
    measured.sort(key=lambda pair: pair[0])
    return tuple(config for _, config in measured[:count])


def _scout(problems: Sequence[Problem], places: Sequence[int]) -> int:
    def rank(place: int) -> tuple[int, int]:
        task = problems[place].task
        work = task.K * task.S if task.kernel == "shrink" else task.K
        return sum(close(task, problems[other].task) for other in places), work

    return max(places, key=rank)
