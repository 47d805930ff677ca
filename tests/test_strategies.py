import statistics
import subprocess
import sys

import pytest

from lora_autotune.errors import UsageError
from lora_autotune.strategy import StrategyOptions, make_strategy, strategy_factory, strategy_names
from lora_autotune.testing import FIRST, SPACE, bowl, check_strategy, search

BUILT_IN = ["grid", "random", "tpe"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_keeps_the_contract(name):
    check_strategy(strategy_factory(name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_finds_the_best_by_the_end(name):
    found = search(strategy_factory(name), 10 * len(SPACE))
    assert {*SPACE} <= {trial.config for trial in found}


def test_tpe_tries_the_pinned_config_first():
    strategy = make_strategy("tpe", SPACE, options=StrategyOptions(first=(FIRST,)))
    assert list(strategy.ask(1)) == [FIRST]


def test_tpe_is_ahead_of_random():
    def best(name, seed):
        costs = [t.cost for t in search(strategy_factory(name), 30, seed=seed)]
        return min(cost for cost in costs if cost is not None)

    tpe, random = ([best(name, seed) for seed in range(10)] for name in ("tpe", "random"))
    assert statistics.mean(tpe) < statistics.mean(random)


def test_tpe_learns_that_a_corner_fails():
    found = search(strategy_factory("tpe"), 60)
    failed = sum(trial.cost is None for trial in found)
    corner = sum(bowl(config).cost is None for config in SPACE)
    assert 0 <= failed < 60 * corner / len(SPACE) + 1


def test_a_config_in_flight_is_not_asked_again():
    strategy = make_strategy("tpe", SPACE)
    asked = [config for _ in range(5) for config in strategy.ask(8)]
    assert len(asked) == len(set(asked)) == 40
    for config in asked:
        strategy.tell(bowl(config))
    assert not set(strategy.ask(8)) & set(asked)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="grid, random, tpe"):
        strategy_factory("tpee")


PLUGIN = """
import collections.abc
from lora_autotune.strategy import StrategyOptions


class Backwards:
    def __init__(self, space, /, *, seed, options):
        self._configs = list(space)

    def ask(self, max_count, /):
        return [self._configs.pop() for _ in range(min(max_count, len(self._configs)))]

    def tell(self, trial, /):
        self._configs = [config for config in self._configs if config != trial.config]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A distribution of its own, installed as a directory on the path."""
    (tmp_path / "backwards_plugin.py").write_text(PLUGIN)
    info = tmp_path / "backwards_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lora_autotune.strategies]\n"
        "backwards = backwards_plugin:Backwards\n"
        "broken = backwards_plugin:Missing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("backwards_plugin", None)


def test_a_plugin_of_another_distribution_is_found_and_works(plugin):
    assert strategy_names()["backwards"].startswith("backwards-plugin")
    factory = strategy_factory("backwards")
    check_strategy(factory)
    last = list(SPACE)[-1]
    assert search(factory, 1)[0].config == last


def test_a_broken_plugin_is_a_clear_error(plugin):
    with pytest.raises(UsageError, match="'broken' cannot be loaded"):
        strategy_factory("broken")


def test_the_contract_catches_a_strategy_that_leaves_the_space():
    class Outside:
        def __init__(self, space, /, *, seed, options):
            self._space = space

        def ask(self, max_count, /):
            return [next(iter(self._space)), FIRST, FIRST][:max_count]

        def tell(self, trial, /):
            pass

    with pytest.raises(AssertionError, match=r"known configs only|ended after"):
        check_strategy(Outside)


def test_strategies_load_neither_torch_nor_triton():
    code = (
        "import sys, lora_autotune.strategies.tpe, lora_autotune.testing;"
        "assert not {'torch', 'triton'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
