"""Random search without replacement: the yardstick for everything cleverer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial


class RandomStrategy:
    """Asks for the configs of the space in a random order, each once; skips what it is told."""

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        del options
        configs = list(space)
        random.Random(seed).shuffle(configs)
        self._remaining = dict.fromkeys(configs)

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """The next configs of the shuffled space; empty at its end."""
        configs = list(self._remaining)[:max_count]
        for config in configs:
            del self._remaining[config]
        return configs

    def tell(self, trial: Trial, /) -> None:
        """A config that is known needs no asking: a long record is resumed at once."""
        self._remaining.pop(trial.config, None)
