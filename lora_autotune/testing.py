"""The contract of strategies, for plug-in authors: no GPU, no test framework.

def test_contract():
check_strategy(MyStrategy)
"""

from __future__ import annotations

import math

from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.strategy import Strategy, StrategyFactory, StrategyOptions
from lora_autotune.trial import Failure, Measurement, Pruned, Trial

SPACE = SearchSpace(
    {
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_K": (32, 64, 128),
        "num_warps": (2, 4, 8),
        "maxnreg": (None, 96, 128),
    }
)
"""A space of 108 configs."""

FIRST = DEFAULT_CONFIGS["shrink"]
"""The pinned first config: outside SPACE, as the real default is."""


def bowl(config: Config) -> Trial:
    """A made-up trial: a smooth bowl around (64, 64, 4, None), with one corner that fails."""
    if config.BLOCK_N == 128 and config.BLOCK_K == 128:
        return Trial(config=config, outcome=Failure(kind="resources", message="made up"))
    cost = (
        1.0
        + abs(math.log2(config.BLOCK_N / 64))
        + abs(math.log2(config.BLOCK_K / 64))
        + abs(math.log2((config.num_warps or 4) / 4))
        + (0.0 if config.maxnreg is None else 30.0 / config.maxnreg)
    )
    return Trial(config=config, outcome=Measurement(times_us=(cost,)), cost=cost)


def check_strategy(factory: StrategyFactory) -> None:
    """Everything that the tuner relies on.

    Raises:
        AssertionError: with the rule that is broken.
    """
    _check_whole_run(factory)
    _check_determinism(factory)
    _check_resume(factory)
    _check_unasked_trials(factory)


def search(factory: StrategyFactory, count: int, *, seed: int = 0) -> list[Trial]:
    """The first ``count`` different trials of a search of the bowl; fewer if it ends."""
    strategy = _fresh(factory, seed)
    return _run(strategy, {}, count)


def _fresh(factory: StrategyFactory, seed: int = 0) -> Strategy:
    return factory(SPACE, seed=seed, options=StrategyOptions(first=(FIRST,)))


def _run(strategy: Strategy, known: dict[Config, Trial], count: int) -> list[Trial]:
    fruitless = 0
    while len(known) < count and fruitless < 50:
        wanted = min(8, count - len(known))
        configs = list(strategy.ask(wanted))
        assert len(configs) <= wanted, f"ask({wanted}) gave {len(configs)} configs"
        if not configs:
            break
        fresh = [config for config in configs if config not in known]
        fruitless = 0 if fresh else fruitless + 1
        for config in reversed(configs):  # trials finish in any order
            assert isinstance(config, Config), f"ask gave {config!r}, which is no Config"
            assert config in SPACE or config == FIRST, f"{config} is outside the space"
            known[config] = bowl(config)
            strategy.tell(known[config])
    assert fruitless < 50, "asks for known configs only"
    return list(known.values())


def _check_whole_run(factory: StrategyFactory) -> None:
    found = search(factory, 40)
    assert len(found) == 40, f"ended after {len(found)} of a space of {len(SPACE)}"
    everything = search(factory, 10 * len(SPACE))
    assert len(everything) <= len(SPACE) + 1


def _check_determinism(factory: StrategyFactory) -> None:
    first, again = search(factory, 30, seed=7), search(factory, 30, seed=7)
    assert [t.config for t in first] == [t.config for t in again], "equal seeds differ"


def _check_resume(factory: StrategyFactory) -> None:
    known = {trial.config: trial for trial in search(factory, 20)}
    resumed = _fresh(factory)
    for trial in known.values():
        resumed.tell(trial)
    assert len(_run(resumed, dict(known), 40)) == 40, "cannot continue from told trials"


def _check_unasked_trials(factory: StrategyFactory) -> None:
    strategy = _fresh(factory)
    configs = list(SPACE)
    strategy.tell(Trial(config=configs[0], outcome=Pruned(rule="made up")))
    strategy.tell(Trial(config=configs[1], outcome=Failure(kind="crash", message="made up")))
    strategy.tell(bowl(configs[2]))
    strategy.tell(bowl(configs[2]))
    strategy.tell(bowl(FIRST))
    assert strategy.ask(1), "has nothing to ask after five trials"
