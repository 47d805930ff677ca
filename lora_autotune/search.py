"""The search of one task: what was asked, what is known, and when it is enough."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

from lora_autotune.evaluator import Evaluator
from lora_autotune.pruning import imputed_us
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.strategy import Strategy
from lora_autotune.trial import (
    MAX_REGRESSION,
    Failure,
    Measurement,
    Pruned,
    Trial,
    relative_cost,
    tuning_cost,
)

SHARE_IN_FLIGHT, FEW_IN_FLIGHT = 0.5, 8
"""Of its budget, what a search has in flight at most, and what it may have anyway. A strategy that
is asked for more than it hears of learns nothing: with 34 of 40 configs in flight, "gp" missed the
best of a landscape by up to 1.5% in the mean, with 20 by 0.0."""

MAX_FRUITLESS_ASKS = 50
"""Times that a strategy may answer with known configs only before it is taken to be stuck."""


class Record(Protocol):
    """Where trials are made durable; :class:`lora_autotune.journal.TaskRecord` is one."""

    trials: list[Trial]

    def append(self, trial: Trial) -> None:
        """Returns once the trial is durable."""


class Search:
    """Keeps an evaluator busy with what a strategy asks for.

    Attributes:
        evaluator: evaluates the candidates.
        known: every finished trial; with a cost once the default's times are known.
        budget: most configs to evaluate.
        max_regression: how much slower than the default a winner may be on any instance.
        spent: configs evaluated, those of the record included. A failure that was
            foretold costs nothing and does not count.
        stopped: why nothing more is asked for, None while something is.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        strategy: Strategy,
        record: Record | None,
        *,
        budget: int,
        timeout_s: float | None,
        max_regression: float = MAX_REGRESSION,
    ) -> None:
        self.evaluator = evaluator
        self.known: dict[Config, Trial] = {}
        self.budget = budget
        self.max_regression = max_regression
        self.spent = 0
        self.stopped: str | None = None
        self.started_s = time.monotonic()
        self._strategy = strategy
        self._record = record
        self._deadline_s = self.started_s + (float("inf") if timeout_s is None else timeout_s)
        self._in_flight: set[Config] = set()
        self._untold: list[Trial] = []
        self._baseline_us: tuple[float, ...] | None = None
        self._fruitless = 0
        default = DEFAULT_CONFIGS[evaluator.task.kernel]
        for trial in [] if record is None else list(record.trials):
            self._absorb(trial)
        if default not in self.known:
            self._submit(default)

    @property
    def busy(self) -> bool:
        """Something is in flight."""
        return bool(self._in_flight)

    @property
    def in_flight(self) -> int:
        """Configs that were asked for and are not finished."""
        return len(self._in_flight)

    @property
    def over(self) -> bool:
        """Nothing is in flight, and nothing more is asked for."""
        return self.stopped is not None and not self.busy

    def ask(self, most_in_flight: int) -> None:
        """Fill the evaluator up with what the strategy asks for."""
        share = max(FEW_IN_FLIGHT, int(SHARE_IN_FLIGHT * self.budget))
        self.stopped = self._ask(min(most_in_flight, self.evaluator.capacity, share))
        if self.stopped is None and not self.busy:
            self.stopped = "the strategy has nothing more to ask"

    def tell(self, trial: Trial) -> None:
        """Make a finished trial durable, and learn from it."""
        self._in_flight.discard(trial.config)
        if self._record is not None:
            self._record.append(trial)
        self._absorb(trial)
        if trial.foretold:
            self.stopped = None  # it gives its place in the budget back

    def _ask(self, most_in_flight: int) -> str | None:
        """Why no more may be asked, if so."""
        while True:
            if time.monotonic() >= self._deadline_s:
                return "the time is up"
            room = self.budget - self.spent - len(self._in_flight)
            if room <= 0:
                return "the budget is spent"
            free = most_in_flight - len(self._in_flight)
            if free <= 0:
                return None
            configs = self._strategy.ask(min(free, room))
            fresh = 0
            for config in configs:
                if config in self.known:
                    self._retell(self.known[config])
                elif config not in self._in_flight:
                    self._submit(config)
                    fresh += 1
            if fresh:
                self._fruitless = 0
                continue
            self._fruitless += bool(configs)
            if self._fruitless >= MAX_FRUITLESS_ASKS:
                return "the strategy asks for known configs only"
            if not configs or self._in_flight:
                return None

    def _submit(self, config: Config) -> None:
        self._in_flight.add(config)
        self.evaluator.submit(config)

    def _absorb(self, trial: Trial) -> None:
        """Remember a trial; the strategy hears of it once costs are known.

        Costs are relative to the default's times, or to the first measured trial's where the
        default does not run.
        """
        # Two runs that share a record may both have measured a config: it was spent on once.
        self.spent += trial.config not in self.known and not trial.foretold
        self.known[trial.config] = trial
        self._untold.append(trial)
        default = self.known.get(DEFAULT_CONFIGS[self.evaluator.task.kernel])
        if default is None:
            return
        if self._baseline_us is None:
            candidates = [default, *self._untold]
            outcomes = [t.outcome for t in candidates if isinstance(t.outcome, Measurement)]
            self._baseline_us = outcomes[0].times_us if outcomes else None
        for untold in self._untold:
            priced = self._priced(untold)
            self.known[untold.config] = priced
            self._strategy.tell(priced)
        self._untold.clear()

    def _priced(self, trial: Trial) -> Trial:
        outcome, baseline_us = trial.outcome, self._baseline_us
        if isinstance(outcome, Failure) or not outcome.times_us or baseline_us is None:
            return trial
        if isinstance(outcome, Pruned):
            return replace(trial, cost=self._estimated(outcome, baseline_us))
        times = outcome.times_us, baseline_us, self.evaluator.workload
        default = self.known[DEFAULT_CONFIGS[self.evaluator.task.kernel]]
        if isinstance(default.outcome, Measurement):
            return replace(trial, cost=tuning_cost(*times, self.max_regression))
        return replace(trial, cost=relative_cost(*times))

    def _estimated(self, outcome: Pruned, baseline_us: tuple[float, ...]) -> float | None:
        """What a pruned config would cost, never less than the best; None: there is no best yet."""
        best = min(
            (
                (trial.cost, trial.outcome.times_us)
                for trial in self.known.values()
                if isinstance(trial.outcome, Measurement) and trial.cost is not None
            ),
            default=None,
        )
        if best is None:
            return None
        cost, best_us = best
        workload = self.evaluator.workload
        times_us = imputed_us(outcome, best_us, baseline_us, workload)
        return max(cost, tuning_cost(times_us, baseline_us, workload, self.max_regression))

    def _retell(self, trial: Trial) -> None:
        if trial not in self._untold:  # those are told once they have a cost
            self._strategy.tell(trial)
