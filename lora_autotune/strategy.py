"""The seam of the search: what a strategy is, and where strategies are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

from lora_autotune.errors import UsageError
from lora_autotune.space import Config, SearchSpace
from lora_autotune.trial import Trial

ENTRY_POINT_GROUP = "lora_autotune.strategies"


class Strategy(Protocol):
    """Chooses which configs are evaluated next. Knows neither kernels nor evaluators."""

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """Up to ``max_count`` configs to evaluate next; empty: nothing until the next tell.

        A strategy that answers empty while nothing is in flight has finished. It may repeat itself:
        the tuner answers a config that it knows from its record, at no cost.
        """

    def tell(self, trial: Trial, /) -> None:
        """Absorb a finished trial, asked for or not, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """What a strategy may want to know beyond its space.

    Attributes:
        first: configs worth trying before any other (the default configuration), in order. They
            may lie outside the space.
        values: free-form options of a plug-in, by name.
    """

    first: tuple[Config, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


class StrategyFactory(Protocol):
    """What an entry point of the group names: a class or a function."""

    def __call__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> Strategy:
        """A fresh strategy over ``space``; equal arguments give equal behaviour."""


_BUILT_IN: Mapping[str, str] = {
    "auto": "lora_autotune.strategies.gp:GPStrategy",
    "gp": "lora_autotune.strategies.gp:GPStrategy",
    "grid": "lora_autotune.strategies.grid:GridStrategy",
    "random": "lora_autotune.strategies.random:RandomStrategy",
    "tpe": "lora_autotune.strategies.tpe:TPEStrategy",
}


def strategy_names() -> dict[str, str]:
    """Name -> where it comes from ("built in", or the plug-in's distribution and object)."""
    names = dict.fromkeys(_BUILT_IN, "built in") | {"auto": "built in: gp"}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        origin = point.dist.name if point.dist is not None else "unknown distribution"
        names.setdefault(point.name, f"{origin} ({point.value})")
    return names


def strategy_factory(name: str) -> StrategyFactory:
    """The factory of a strategy, built in or plugged in.

    Built-in strategies are found without installed metadata, and win over a plug-in of that name.

    Raises:
        UsageError: no such strategy, or its plug-in cannot be loaded.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name].split(":")
        factory: StrategyFactory = getattr(import_module(module), attribute)
        return factory
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            try:
                plugged: StrategyFactory = point.load()
            except Exception as error:
                raise UsageError(f"strategy {name!r} cannot be loaded: {error}") from error
            return plugged
    raise UsageError(f"no strategy {name!r}", hint=f"installed: {', '.join(strategy_names())}")


def make_strategy(
    name: str, space: SearchSpace, *, seed: int = 0, options: StrategyOptions | None = None
) -> Strategy:
    """A fresh strategy by name; raises UsageError like :func:`strategy_factory`."""
    return strategy_factory(name)(space, seed=seed, options=options or StrategyOptions())
