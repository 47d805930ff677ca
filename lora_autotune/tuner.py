"""tune() and tune_all(): the only loop of the project."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

from lora_autotune.budgets import HINTS, Budget, budgets
from lora_autotune.errors import EvaluatorError, UsageError
from lora_autotune.evaluator import Evaluator, HeldOut
from lora_autotune.finalist import MIN_ROUNDS
from lora_autotune.job import Job
from lora_autotune.neighbours import best_configs
from lora_autotune.result import Progress, TuningResult
from lora_autotune.search import Record, Search
from lora_autotune.selection import (
    FINALISTS,
    ROUNDS,
    Selection,
    fine_trials,
    select,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.starting_points import starting_points
from lora_autotune.strategy import (
    Strategy,
    StrategyOptions,
    make_strategy,
    strategy_factory,
)
from lora_autotune.task import Task
from lora_autotune.trial import MAX_REGRESSION, Failure, Pruned

AT_ONCE = 8
"""Tasks under way at a time: enough to keep a machine busy with few configs of each in flight."""

LIKELY = 0.97
"""What costs less than this in a search mostly wins: then it is prepared for what is held out."""

LAST = 4
"""So many candidates in flight are the last of a search: what leads then mostly stays ahead."""

PATIENCE_S = 60.0
"""Most seconds to wait for a trial before every evaluator is asked again."""


def tune(
    task: Task,
    *,
    evaluator: Evaluator,
    held_out: HeldOut | None = None,
    space: SearchSpace | None = None,
    strategy: str | Strategy = "auto",
    trials: int | None = None,
    timeout_s: float | None = None,
    seed: int = 0,
    record: Record | None = None,
    finalists: int = FINALISTS,
    rounds: int = ROUNDS,
    max_regression: float = MAX_REGRESSION,
    on_progress: Callable[[Progress], None] | None = None,
) -> TuningResult:
    """Search the configs of one task and choose.

    Args:
        task: what is tuned; the evaluator's own.
        evaluator: see :class:`Job`, as for ``space`` and ``record``.
        held_out: measures the winner on other batches.
        space: where to search.
        strategy: a strategy, or the name of one.
        trials: most configs to evaluate, those known from the record and the default included;
            None: see :func:`lora_autotune.budgets.budgets`. The default is measured even where
            there is no budget, so 0 chooses from what a record knows.
        timeout_s: seconds after which nothing more is asked for; what is in flight is finished,
            and the finalists follow.
        seed: of a strategy that is given by name.
        record: where trials go.
        finalists: how many of the best are measured again, against the default.
        rounds: times that they are, at least MIN_ROUNDS.
        max_regression: how much slower than the default a winner may be on any one batch.
        on_progress: called at the start, after every trial, and before the finalists.

    Raises:
        EvaluatorError: the evaluator is another task's, or cannot evaluate anything.
        UsageError: a number that makes no sense, or an unknown strategy.
    """
    if evaluator.task != task:
        raise EvaluatorError(f"an evaluator of {evaluator.task} cannot tune {task}")
    (result,) = tune_all(
        [Job(evaluator=evaluator, held_out=held_out, space=space, record=record)],
        strategy=strategy,
        trials=trials,
        timeout_s=timeout_s,
        seed=seed,
        finalists=finalists,
        rounds=rounds,
        max_regression=max_regression,
        on_progress=on_progress,
    )
    return result


def tune_all(
    jobs: Iterable[Job],
    *,
    at_once: int = AT_ONCE,
    strategy: str | Strategy = "auto",
    trials: int | None = None,
    timeout_s: float | None = None,
    seed: int = 0,
    finalists: int = FINALISTS,
    rounds: int = ROUNDS,
    max_regression: float = MAX_REGRESSION,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[TuningResult]:
    """Tune several tasks, a few at a time; yields each result as it is there.

    The searches of tasks whose evaluators share a machine overlap: one task's candidates compile
    while another's are measured. Of tasks that are alike one, the scout, is searched first; the
    others wait for its search, try first what did best there, and need fewer trials of their own.
    Then, and for a scout at once, come the starting points.
    Scouts go first, else tasks keep their order.

    Args:
        jobs: the tasks, each once.
        at_once: most tasks under way; at most as many more wait until their finalists are measured.
        strategy: a strategy for a single job, or the name of one.
        trials: see :func:`tune`, as for the rest; it holds for each task, scout or not.
        timeout_s: for each task, from its start.
        seed: alike for all.
        finalists: for each task.
        rounds: for each task.
        max_regression: for each task.
        on_progress: told of every task.
    """
    _check_numbers(at_once, trials, timeout_s, finalists, rounds, max_regression)
    named = _known_name(strategy)
    known = _all_different(jobs)
    allowed = budgets([job.problem for job in known], named, trials)
    plan = dict(zip(known, allowed, strict=True))
    waiting = sorted(known, key=lambda job: plan[job].scout is not None)
    searches: dict[Job, Search] = {}
    best: dict[Job, tuple[Config, ...]] = {}
    choices: dict[Job, Iterator[Selection | None]] = {}

    def report(job: Job, phase: Literal["search", "finalists"]) -> None:
        if on_progress is not None:
            on_progress(_progress(job.task, searches[job], phase))

    def begin(job: Job) -> None:
        waiting.remove(job)
        budget = plan[job]
        found = () if budget.scout is None else best[known[budget.scout]]
        if not found:  # it must find everything itself
            (budget,) = budgets([job.problem], named, trials)
        searches[job] = _search(job, strategy, budget, timeout_s, seed, found, max_regression)
        report(job, "search")

    def ask() -> None:
        share = _share(searches)
        for job, search in searches.items():
            if not search.over:
                search.ask(share)
            if search.stopped is not None and search.in_flight <= LAST and job not in best:
                leaders = _leaders(job, search)
                if search.over:
                    best[job] = leaders

    def fill() -> None:
        ask()  # some are over only now, and have hints for those that begin
        running = sum(not search.over for search in searches.values())
        room = max(0, min(at_once - running, 2 * at_once - len(searches)))
        ready = (job for job in waiting if _may_begin(plan[job], known, best))
        for job in list(islice(ready, room)):
            begin(job)
        ask()  # the compilers have something to do while finalists are measured

    while True:
        fill()
        if not searches:
            return
        job = _next_to_choose(searches, choices)
        if job is None:
            for heard in _collect(searches):
                report(heard, "search")
            continue
        if job not in choices:
            report(job, "finalists")
            choices[job] = _choose(job, searches[job], finalists, rounds)
        selection = next(choices[job])
        if selection is not None:
            del choices[job]
            yield _result(job, searches.pop(job), strategy, selection)


def _may_begin(budget: Budget, jobs: Sequence[Job], best: Container[Job]) -> bool:
    """Whether there is no scout to wait for, or its search is over."""
    return budget.scout is None or jobs[budget.scout] in best


def _search(
    job: Job,
    strategy: str | Strategy,
    budget: Budget,
    timeout_s: float | None,
    seed: int,
    hints: Sequence[Config],
    max_regression: float,
) -> Search:
    if isinstance(strategy, str):
        space = job.problem.space
        first = (DEFAULT_CONFIGS[job.task.kernel], *hints, *starting_points(job.task, space))
        options = StrategyOptions(first=first)
        strategy = make_strategy(strategy, space, seed=seed, options=options)
    return Search(
        job.evaluator,
        strategy,
        job.record,
        budget=budget.trials,
        timeout_s=timeout_s,
        max_regression=max_regression,
    )


def _next_to_choose(
    searches: Mapping[Job, Search], choices: Mapping[Job, Iterator[Selection | None]]
) -> Job | None:
    """A task whose search is over, and whose finalists or the next of them can be measured at once.

    Or any, where there is nothing else to wait for.
    """
    over = [job for job, search in searches.items() if search.over]
    ready = (
        job for job in over if job not in choices or job.held_out is None or job.held_out.prepared
    )
    return next(ready, over[0] if len(over) == len(searches) else None)


def _leaders(job: Job, search: Search) -> tuple[Config, ...]:
    """What does best in a search that is over, or nearly so.

    Where one is likely to win, what it is measured with where it was not tuned is begun with.
    """
    best = best_configs(search.known.values(), HINTS)
    likely = [config for config in best[:1] if (search.known[config].cost or 1.0) < LIKELY]
    if job.held_out is not None and likely:
        job.held_out.prepare([DEFAULT_CONFIGS[job.task.kernel], *likely])
    return best


def _share(searches: Mapping[Job, Search]) -> int:
    """Configs that each search may have in flight: together twice what a machine can hold."""
    running = [search for search in searches.values() if not search.over]
    capacity = max((search.evaluator.capacity for search in running), default=0)
    return capacity if len(running) < 2 else max(2, -(-2 * capacity // len(running)))


def _collect(searches: Mapping[Job, Search]) -> list[Job]:
    """Take a finished trial from each search that has one; waits until there is one or news."""
    busy = {job: search for job, search in searches.items() if search.busy}
    heard = [job for job, search in busy.items() if _take(search, 0.0)]
    if heard:
        return heard
    return [job for job, search in islice(busy.items(), 1) if _take(search, PATIENCE_S)]


def _take(search: Search, wait_s: float) -> bool:
    """Tell a search of a finished trial; whether there was one."""
    trial = search.evaluator.poll(wait_s)
    if trial is not None:
        search.tell(trial)
    return trial is not None


def _progress(task: Task, search: Search, phase: Literal["search", "finalists"]) -> Progress:
    outcomes = [trial.outcome for trial in search.known.values()]
    best = next((t for t in fine_trials(search.known.values()) if t.cost is not None), None)
    return Progress(
        task=task,
        phase=phase,
        done=search.spent,
        budget=search.budget,
        failures=sum(isinstance(outcome, Failure) for outcome in outcomes),
        pruned=sum(isinstance(outcome, Pruned) for outcome in outcomes),
        best_cost=None if best is None else best.cost,
        best_config=None if best is None else best.config,
        elapsed_s=time.monotonic() - search.started_s,
    )


def _choose(job: Job, search: Search, finalists: int, rounds: int) -> Iterator[Selection | None]:
    """Measure the finalists again, and choose; see :func:`lora_autotune.selection.select`."""
    return select(
        search.evaluator,
        list(search.known.values()),
        finalists=finalists,
        rounds=rounds,
        max_regression=search.max_regression,
        held_out=job.held_out,
    )


def _result(
    job: Job, search: Search, strategy: str | Strategy, selection: Selection
) -> TuningResult:
    evaluator = search.evaluator
    outcomes = [trial.outcome for trial in search.known.values()]
    return TuningResult(
        task=evaluator.task,
        workload=evaluator.workload,
        platform=evaluator.platform,
        replayed=evaluator.replayed,
        selection=selection,
        strategy=strategy if isinstance(strategy, str) else type(strategy).__name__,
        space=job.problem.space,
        trials=search.spent,
        failures=Counter(o.kind for o in outcomes if isinstance(o, Failure)),
        pruned=sum(isinstance(outcome, Pruned) for outcome in outcomes),
        stopped=search.stopped or "",
        wall_s=time.monotonic() - search.started_s,
    )


def _known_name(strategy: str | Strategy) -> str | None:
    """The name that a strategy is given by, if so; an unknown one costs nothing yet."""
    if not isinstance(strategy, str):
        return None
    strategy_factory(strategy)
    return strategy


def _all_different(jobs: Iterable[Job]) -> list[Job]:
    known = list(jobs)
    if len(set(known)) < len(known):
        raise UsageError("a job is there twice", hint="make one for each")
    return known


def _check_numbers(
    at_once: int,
    trials: int | None,
    timeout_s: float | None,
    finalists: int,
    rounds: int,
    max_regression: float,
) -> None:
    if at_once < 1:
        raise UsageError(f"{at_once} tasks at once", hint="1 or more")
    if trials is not None and trials < 0:
        raise UsageError(f"{trials} trials", hint="0 or more")
    if timeout_s is not None and not timeout_s >= 0:
        raise UsageError(f"a time limit of {timeout_s} seconds", hint="0 or more")
    if not 0 <= max_regression <= 1:
        raise UsageError(f"a loss of {max_regression:.0%} on a batch", hint="0% to 100%")
    if finalists < 1:
        raise UsageError(f"{finalists} finalists", hint="1 or more")
    if rounds < MIN_ROUNDS:
        raise UsageError(
            f"no winner can be told from noise in {rounds} rounds", hint=f"{MIN_ROUNDS} or more"
        )
