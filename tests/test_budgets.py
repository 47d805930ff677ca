"""What each task of a run may spend, and whom it waits for."""

from __future__ import annotations

from collections import Counter

import pytest

from lora_autotune.budgets import Budget, budgets, default_trials, everything
from lora_autotune.evaluator import Platform
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.neighbours import Problem
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.task import Task, default_workload


def problem(task: Task, space: SearchSpace | None = None) -> Problem:
    return Problem(
        task=task,
        workload=default_workload(task.chunk_size),
        platform=Platform(device="NVIDIA H200", triton="3.6.0"),
        space=space or named_space("wide", task.kernel),
    )


def shrink(K: int, S: int = 1) -> Problem:
    return problem(Task(kernel="shrink", K=K, R=64, S=S, chunk_size=64))


ALIKE = [shrink(2048), shrink(1024, 3), shrink(3072)]
MODEL = [problem(task) for task in tasks_for(load_model_shape("Qwen3-0.6B"), rank=64)]


@pytest.mark.parametrize("strategy", ["auto", "gp"])
def test_who_starts_from_a_scouts_best_needs_less_the_closer_the_less(strategy: str) -> None:
    assert budgets(ALIKE, strategy) == [
        Budget(trials=10, scout=2),
        Budget(trials=16, scout=2),
        Budget(trials=32),
    ]


@pytest.mark.parametrize("strategy", ["tpe", "random", "a plug-in", None])
def test_other_strategies_have_no_scouts(strategy: str | None) -> None:
    assert budgets(ALIKE, strategy) == [Budget(trials=32)] * 3


def test_grid_has_every_config_and_the_default() -> None:
    small = SearchSpace({"BLOCK_N": (16, 32), "BLOCK_K": (256,), "num_warps": (None, 4)})
    inside, outside = problem(ALIKE[0].task, small), ALIKE[0]
    assert (everything(inside), everything(outside)) == (4, 401)
    assert budgets([inside, outside], "grid") == [Budget(trials=4), Budget(trials=401)]


@pytest.mark.parametrize("trials", [0, 9, 1000])
def test_what_somebody_asks_for_holds_for_every_task(trials: int) -> None:
    assert [one.trials for one in budgets(ALIKE, "auto", trials)] == [trials] * 3
    assert [one.scout for one in budgets(ALIKE, "auto", trials)] == [2, 2, None]
    assert budgets(ALIKE, "grid", trials) == [Budget(trials=trials)] * 3


def test_the_budget_grows_with_the_space() -> None:
    spaces = [
        named_space(name, kernel)
        for name in ("reference", "wide")
        for kernel in ("shrink", "expand")
    ]
    assert [default_trials(space) for space in spaces] == [32, 32, 32, 40]


def test_what_a_model_takes() -> None:
    found = budgets(MODEL, "auto")
    assert Counter(one.trials for one in found) == {40: 4, 32: 4, 20: 4, 16: 8, 12: 4, 10: 4}
    assert sum(one.trials for one in found) == 584
    assert sum(one.trials for one in budgets(MODEL, "random")) == 992


def test_no_tasks_need_no_budget() -> None:
    assert budgets([], "auto") == []
