"""Stand-ins for what a search talks to besides its evaluator."""

from __future__ import annotations

from itertools import islice

from lora_autotune.trial import Trial


class Script:
    """A strategy that asks for a list, in its order, and remembers what it is told."""

    def __init__(self, configs) -> None:
        self._configs = iter(configs)
        self.told: list[Trial] = []

    def ask(self, max_count, /):
        return list(islice(self._configs, max_count))

    def tell(self, trial, /):
        self.told.append(trial)


class Memory:
    """A record in memory."""

    def __init__(self, trials=()) -> None:
        self.trials = list(trials)

    def append(self, trial):
        self.trials.append(trial)
