"""The evaluator without a GPU: answers exactly what was recorded on one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lora_autotune.errors import EvaluatorError
from lora_autotune.landscape import Landscape
from lora_autotune.space import Config
from lora_autotune.trial import Failure, Measurement, Trial


class ReplayEvaluator:
    """Plays one landscape back, in the order of submission."""

    replayed = True

    def __init__(self, landscape: Landscape, *, capacity: int = 16) -> None:
        self.task = landscape.task
        self.workload = landscape.workload
        self.platform = landscape.platform
        self.capacity = capacity
        self._trials = landscape.trials
        self._submitted: deque[Trial] = deque()

    def submit(self, config: Config, /) -> None:
        """Look a config up; raises EvaluatorError when it was never recorded."""
        self._submitted.append(self._recorded(config))

    def collect(self) -> Trial:
        """The trial that was submitted first."""
        if not self._submitted:
            raise EvaluatorError("nothing was submitted")
        return self._submitted.popleft()

    def poll(self, wait_s: float, /) -> Trial | None:
        """The trial that was submitted first; None when nothing was."""
        del wait_s
        return self._submitted.popleft() if self._submitted else None

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """The recorded medians, in every round."""
        return [[self._times(config)] * rounds for config in configs]

    def close(self) -> None:
        """Forget what was submitted."""
        self._submitted.clear()

    def _recorded(self, config: Config) -> Trial:
        try:
            return self._trials[config]
        except KeyError:
            raise EvaluatorError(
                f"{config} was not recorded for {self.task}",
                hint="search the space that the landscape was recorded on",
            ) from None

    def _times(self, config: Config) -> tuple[float, ...] | Failure:
        outcome = self._recorded(config).outcome
        if isinstance(outcome, Measurement):
            return outcome.times_us
        if isinstance(outcome, Failure):
            return outcome
        raise EvaluatorError(f"{config} was pruned when {self.task} was recorded")
