"""The evaluator without a GPU: answers exactly what was recorded on one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from lora_autotune.errors import EvaluatorError
from lora_autotune.landscape import Landscape
from lora_autotune.pruning import BEHIND, Standings, pruned, telling_order
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.trial import Failure, Measurement, Pruned, Trial


class ReplayEvaluator:
    """Plays one landscape back, in the order of submission.

    Args:
        landscape: what was recorded.
        capacity: configs that it wants to have.
        prune: give no times of a config on further instances once it is clearly behind, as on a
            GPU; False answers all that was recorded.
    """

    replayed = True

    def __init__(self, landscape: Landscape, *, capacity: int = 16, prune: bool = False) -> None:
        self.task = landscape.task
        self.workload = landscape.workload
        self.platform = landscape.platform
        self.capacity = capacity
        self._prune = prune
        self._standings = Standings()
        self._trials = landscape.trials
        self._submitted: deque[Trial] = deque()

    def submit(self, config: Config, /) -> None:
        """Look a config up; raises EvaluatorError when it was never recorded."""
        self._submitted.append(self._recorded(config))

    def collect(self) -> Trial:
        """The trial that was submitted first."""
        if not self._submitted:
            raise EvaluatorError("nothing was submitted")
        return self._measured(self._submitted.popleft())

    def poll(self, wait_s: float, /) -> Trial | None:
        """The trial that was submitted first; None when nothing was."""
        del wait_s
        return self.collect() if self._submitted else None

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """The recorded medians, in every round."""
        return [[self._times(config)] * rounds for config in configs]

    def close(self) -> None:
        """Forget what was submitted."""
        self._submitted.clear()

    def _measured(self, trial: Trial) -> Trial:
        """What a GPU that times one instance after the other would have answered."""
        if not isinstance(trial.outcome, Measurement):
            return trial
        outcome = self._timed(trial.outcome) if self._prune else trial.outcome
        is_default = trial.config == DEFAULT_CONFIGS[self.task.kernel]
        self._standings = self._standings.after(outcome, self.workload, is_default=is_default)
        return replace(trial, outcome=outcome)

    def _timed(self, recorded: Measurement) -> Measurement | Pruned:
        times_us: dict[int, float] = {}
        for place in telling_order(self.workload):
            limit_us = self._standings.limit_us(BEHIND, times_us, place, self.workload)
            times_us[place] = recorded.times_us[place]
            if times_us[place] > limit_us and len(times_us) < len(self.workload):
                return pruned(times_us, self.workload)
        return recorded

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
