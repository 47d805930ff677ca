"""Exhaustive search, in the order of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial


class GridStrategy:
    """Asks for every config of the space once, the pinned ones first; skips what it is told."""

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        del seed
        pinned = (config for config in options.first if config in space)
        self._remaining = dict.fromkeys([*pinned, *space])

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """The next configs of the grid; empty at its end."""
        configs = list(islice(self._remaining, max_count))
        for config in configs:
            del self._remaining[config]
        return configs

    def tell(self, trial: Trial, /) -> None:
        """A config that is known needs no asking: a long record is resumed at once."""
        self._remaining.pop(trial.config, None)
