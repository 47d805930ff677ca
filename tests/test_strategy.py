"""Strategies by name: those built in, and what a wrong name gets."""

from __future__ import annotations

import pytest

from lora_autotune.errors import UsageError
from lora_autotune.strategies.gp import GPStrategy
from lora_autotune.strategies.grid import GridStrategy
from lora_autotune.strategies.random import RandomStrategy
from lora_autotune.strategies.tpe import TPEStrategy
from lora_autotune.strategy import StrategyOptions, make_strategy, strategy_factory, strategy_names
from lora_autotune.testing import SPACE


@pytest.mark.parametrize(
    ("name", "factory"),
    [("gp", GPStrategy), ("grid", GridStrategy), ("random", RandomStrategy), ("tpe", TPEStrategy)],
)
def test_the_built_in_strategies_are_found_by_name(name, factory):
    assert strategy_factory(name) is factory
    assert isinstance(make_strategy(name, SPACE), factory)
    assert strategy_names()[name] == "built in"


def test_auto_is_another_name_of_the_gaussian_process():
    assert strategy_factory("auto") is GPStrategy
    assert strategy_names()["auto"] == "built in: gp"


@pytest.mark.parametrize("name", ["tpee", "", "TPE", "lora_autotune.strategies.tpe:TPEStrategy"])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(UsageError, match="no strategy") as caught:
        make_strategy(name, SPACE)
    assert caught.value.hint.startswith("installed: auto, gp, grid, random, tpe")


def test_seed_and_options_reach_the_strategy():
    order = [list(make_strategy("random", SPACE, seed=seed).ask(9)) for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    pinned = list(SPACE)[50]
    options = StrategyOptions(first=(pinned,))
    assert list(make_strategy("grid", SPACE, options=options).ask(1)) == [pinned]
