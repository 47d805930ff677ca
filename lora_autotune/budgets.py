"""How many configs each of several tasks may evaluate, and which of them waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_autotune.neighbours import Problem, close, scouts
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace

HINTS = 4
"""Configs of its scout that a task tries after the default and before the starting points."""

CLOSE_SHARE, FAR_SHARE = 0.3, 0.5
"""Of the usual budget, what a task has whose scout is close, and one whose scout is farther."""

FOLLOWING = ("auto", "gp")
"""Strategies that were measured to make up for fewer trials by what a scout found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one task may spend.

    Attributes:
        trials: most configs to evaluate, the default's included.
        scout: the position of the task whose best it starts from; None: it waits for nobody.
    """

    trials: int
    scout: int | None = None


def budgets(
    problems: Sequence[Problem], strategy: str | None, trials: int | None = None
) -> list[Budget]:
    """The budget of each of several tasks.

    Args:
        problems: the tasks of one run.
        strategy: the name of the one that searches; None: one that has none.
        trials: what somebody asked for, which holds for every task; None: the whole space for
            "grid", :func:`default_trials` for a scout and for strategies that follow none, and a
            share of it for the others.
    """
    places = scouts(problems) if strategy in FOLLOWING else list(range(len(problems)))
    found = []
    for place, (problem, scout) in enumerate(zip(problems, places, strict=True)):
        usual = trials
        if usual is None and strategy == "grid":
            usual = everything(problem)
        elif usual is None:
            usual = default_trials(problem.space)
            if scout != place:
                near = close(problem.task, problems[scout].task)
                usual = round(usual * (CLOSE_SHARE if near else FAR_SHARE))
        found.append(Budget(trials=usual, scout=None if scout == place else scout))
    return found


def default_trials(space: SearchSpace) -> int:
    """Configs that a search without a scout may evaluate when nobody says how many.

    32 for the wide space of shrink and 40 for that of expand: where the regret of "gp", which tries
    the starting points first, has flattened on the shipped landscapes.
    """
    return max(32, 16 + len(space) // 37)


def everything(problem: Problem) -> int:
    """Every config of a space, and the default where it lies outside."""
    return len(problem.space) + (DEFAULT_CONFIGS[problem.task.kernel] not in problem.space)
