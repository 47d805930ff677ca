"""Exhaustive search, in the order of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial


class GridStrategy:
    """Asks for every config of the space once."""

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        del seed, options
        self._remaining = iter(space)

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """The next configs of the grid; empty at its end."""
        return list(islice(self._remaining, max_count))

    def tell(self, trial: Trial, /) -> None:
        """Nothing that is told changes the order."""
