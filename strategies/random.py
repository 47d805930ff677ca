"""Random search without replacement: the yardstick for everything cleverer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial


class RandomStrategy:
    """Asks for the configs of the space in a random order, each once."""

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        del options
        self._remaining = list(space)
        random.Random(seed).shuffle(self._remaining)

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """The next configs of the shuffled space; empty at its end."""
        taken, self._remaining = self._remaining[:max_count], self._remaining[max_count:]
        return taken

    def tell(self, trial: Trial, /) -> None:
        """Nothing that is told changes the order."""
