"""tune(): the only loop of the project."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from lora_autotune.config_file import config_file_path, merge_config_file
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.evaluator import Evaluator, Platform
from lora_autotune.selection import (
    FINALISTS,
    MIN_ROUNDS,
    ROUNDS,
    Selection,
    fine_trials,
    select,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace, named_space
from lora_autotune.strategy import Strategy, StrategyOptions, make_strategy
from lora_autotune.task import Task, Workload
from lora_autotune.trial import (
    Failure,
    Measurement,
    Pruned,
    Trial,
    mean_time_us,
    relative_cost,
)

DEFAULT_TRIALS = 100
"""Configs that a strategy other than grid may evaluate when nobody says how many."""

MAX_FRUITLESS_ASKS = 50
"""Times that a strategy may answer with known configs only before it is taken to be stuck."""


class Record(Protocol):
    """Where trials are made durable; :class:`lora_autotune.journal.TaskRecord` is one."""

    trials: list[Trial]

    def append(self, trial: Trial) -> None:
        """Returns once the trial is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a task is: at the start, after each trial and when the finalists' turn comes.

    Attributes:
        done: configs evaluated, those known from the record included.
        budget: most that will be evaluated.
        best_cost: the lowest cost so far; None while there is none.
        best_config: the config with that cost.
    """

    task: Task
    phase: Literal["search", "finalists"]
    done: int
    budget: int
    failures: int
    pruned: int
    best_cost: float | None
    best_config: Config | None
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """What came of tuning one task.

    Attributes:
        selection: the winner, or the default, and why.
        trials: configs evaluated, those known from the record included.
        failures: candidates that failed, by kind.
        pruned: candidates dropped before they were timed in full.
        stopped: why the search ended.
        wall_s: seconds that it took.
    """

    task: Task
    workload: Workload
    platform: Platform
    replayed: bool
    selection: Selection
    trials: int
    failures: Mapping[str, int]
    pruned: int
    stopped: str
    wall_s: float

    @property
    def time_us(self) -> float | None:
        """The chosen config's weighted mean time over the instances."""
        return _weighted_us(self.selection.times_us, self.workload)

    @property
    def default_us(self) -> float | None:
        """The default's weighted mean time over the instances."""
        return _weighted_us(self.selection.default_times_us, self.workload)

    @property
    def speedup(self) -> float | None:
        """1 / cost: the mean over the instances of the speed relative to the default's."""
        return None if self.selection.cost is None else 1 / self.selection.cost


def tune(
    task: Task,
    *,
    evaluator: Evaluator,
    space: SearchSpace | None = None,
    strategy: str | Strategy = "tpe",
    trials: int | None = None,
    timeout_s: float | None = None,
    seed: int = 0,
    record: Record | None = None,
    finalists: int = FINALISTS,
    rounds: int = ROUNDS,
    on_progress: Callable[[Progress], None] | None = None,
) -> TuningResult:
    """Search the configs of one task and choose.

    Args:
        task: what is tuned; the evaluator's own.
        evaluator: measures candidates; stays open.
        space: where to search; None: the wide space of the task's kernel.
        strategy: a strategy, or the name of one.
        trials: most configs to evaluate, those known from the record and the default included;
            None: the whole space for "grid", else DEFAULT_TRIALS. The default is measured even
            where there is no budget, so 0 chooses from what a record knows.
        timeout_s: seconds after which nothing more is asked for; what is in flight is finished,
            and the finalists follow.
        seed: of a strategy that is given by name.
        record: where every trial is made durable before the strategy hears of it; what it knows
            already is told to the strategy and costs nothing.
        finalists: how many of the best are measured again, against the default.
        rounds: times that they are, at least MIN_ROUNDS.
        on_progress: called at the start, after every trial, and before the finalists.

    Raises:
        EvaluatorError: the evaluator is another task's, or cannot evaluate anything.
        UsageError: a number that makes no sense, or an unknown strategy.
    """
    _check_numbers(trials, timeout_s, finalists, rounds)
    if evaluator.task != task:
        raise EvaluatorError(f"an evaluator of {evaluator.task} cannot tune {task}")
    space = space or named_space("wide", task.kernel)
    default = DEFAULT_CONFIGS[task.kernel]
    if trials is None:
        extra = 0 if default in space else 1
        trials = len(space) + extra if strategy == "grid" else DEFAULT_TRIALS
    if isinstance(strategy, str):
        options = StrategyOptions(first=(default,))
        strategy = make_strategy(strategy, space, seed=seed, options=options)
    search = _Search(task, evaluator, strategy, record, on_progress, trials, timeout_s)
    stopped = search.run()
    search.report("finalists")
    done = list(search.known.values())
    return TuningResult(
        task=task,
        workload=evaluator.workload,
        platform=evaluator.platform,
        replayed=evaluator.replayed,
        selection=select(evaluator, done, finalists=finalists, rounds=rounds),
        trials=len(done),
        failures=Counter(t.outcome.kind for t in done if isinstance(t.outcome, Failure)),
        pruned=sum(isinstance(t.outcome, Pruned) for t in done),
        stopped=stopped,
        wall_s=time.monotonic() - search.started_s,
    )


class _Search:
    """The state of one search."""

    def __init__(
        self,
        task: Task,
        evaluator: Evaluator,
        strategy: Strategy,
        record: Record | None,
        on_progress: Callable[[Progress], None] | None,
        budget: int,
        timeout_s: float | None,
    ) -> None:
        self.started_s = time.monotonic()
        self.known: dict[Config, Trial] = {}
        self._task = task
        self._evaluator = evaluator
        self._strategy = strategy
        self._record = record
        self._on_progress = on_progress
        self._budget = budget
        self._deadline_s = self.started_s + (float("inf") if timeout_s is None else timeout_s)
        self._in_flight: set[Config] = set()
        self._untold: list[Trial] = []
        self._baseline_us: tuple[float, ...] | None = None
        self._fruitless = 0

    def run(self) -> str:
        """Search until the budget, the time or the strategy ends; returns which."""
        default = DEFAULT_CONFIGS[self._task.kernel]
        for trial in [] if self._record is None else self._record.trials:
            self._absorb(trial)
        if default not in self.known:
            self._submit(default)
        self.report("search")
        while True:
            stopped = self._ask()
            if not self._in_flight:
                return stopped or "the strategy has nothing more to ask"
            trial = self._evaluator.collect()
            self._in_flight.discard(trial.config)
            if self._record is not None:
                self._record.append(trial)
            self._absorb(trial)
            self.report("search")

    def report(self, phase: Literal["search", "finalists"]) -> None:
        """Tell the caller how far the search is."""
        if self._on_progress is None:
            return
        outcomes = [trial.outcome for trial in self.known.values()]
        best = next((t for t in fine_trials(self.known.values()) if t.cost is not None), None)
        self._on_progress(
            Progress(
                task=self._task,
                phase=phase,
                done=len(self.known),
                budget=self._budget,
                failures=sum(isinstance(outcome, Failure) for outcome in outcomes),
                pruned=sum(isinstance(outcome, Pruned) for outcome in outcomes),
                best_cost=None if best is None else best.cost,
                best_config=None if best is None else best.config,
                elapsed_s=time.monotonic() - self.started_s,
            )
        )

    def _ask(self) -> str | None:
        """Fill the evaluator up; why no more may be asked, if so."""
        while True:
            if time.monotonic() >= self._deadline_s:
                return "the time is up"
            room = self._budget - len(self.known) - len(self._in_flight)
            if room <= 0:
                return "the budget is spent"
            free = self._evaluator.capacity - len(self._in_flight)
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
        self._evaluator.submit(config)

    def _absorb(self, trial: Trial) -> None:
        """Remember a trial; the strategy hears of it once costs are known.

        Costs are relative to the default's times, or to the first measured trial's where the
        default does not run.
        """
        self.known[trial.config] = trial
        self._untold.append(trial)
        default = self.known.get(DEFAULT_CONFIGS[self._task.kernel])
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
        if not isinstance(trial.outcome, Measurement) or self._baseline_us is None:
            return trial
        cost = relative_cost(trial.outcome.times_us, self._baseline_us, self._evaluator.workload)
        return replace(trial, cost=cost)

    def _retell(self, trial: Trial) -> None:
        if trial not in self._untold:  # those are told once they have a cost
            self._strategy.tell(trial)


def _check_numbers(
    trials: int | None, timeout_s: float | None, finalists: int, rounds: int
) -> None:
    if trials is not None and trials < 0:
        raise UsageError(f"{trials} trials", hint="0 or more")
    if timeout_s is not None and not timeout_s >= 0:
        raise UsageError(f"a time limit of {timeout_s} seconds", hint="0 or more")
    if finalists < 1:
        raise UsageError(f"{finalists} finalists", hint="1 or more")
    if rounds < MIN_ROUNDS:
        raise UsageError(
            f"no winner can be told from noise in {rounds} rounds", hint=f"{MIN_ROUNDS} or more"
        )


def _weighted_us(times_us: tuple[float, ...], workload: Workload) -> float | None:
    return mean_time_us(times_us, workload) if times_us else None


def write_result(result: TuningResult, root: Path | str) -> Path | None:
    """Merge what was chosen into its config file under a root; None when nothing runs.

    Where the default stands it is written too: a lookup that finds no entry for a chunk size takes
    the nearest one, which nobody measured there.

    Raises:
        ConfigFileError: the file cannot be written, or is not a config file.
    """
    task, config = result.task, result.selection.config
    if config is None:
        return None
    path = config_file_path(
        Path(root),
        task.kernel,
        task.K,
        task.R,
        task.S,
        device_name=result.platform.device,
        triton_version=result.platform.triton,
    )
    merge_config_file(path, {task.chunk_size: config.as_dict()})
    return path
