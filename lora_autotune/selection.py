"""The winner: the best few are measured again against the default, and must beat it beyond noise.

Every round times the default, each finalist, and the default once more. The two defaults show what
noise is; their mean is what the round's finalists are compared with, so drift cancels.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from lora_autotune.evaluator import Evaluator, HeldOut
from lora_autotune.finalist import (
    Finalist,
    Judged,
    Times,
    failure_of,
    judge,
    judge_held_out,
    paired_default,
    times_of,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Workload
from lora_autotune.trial import (
    MAX_REGRESSION,
    Measurement,
    Trial,
    relative_cost,
)

FINALISTS = 5
ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a server should run, and why.

    Attributes:
        config: the configuration; the default's where that stands; None when nothing runs.
        tuned: the config is not the default's.
        times_us: its median time over the rounds, for each instance of the workload; empty when
            nothing runs.
        default_times_us: the same of the default, empty when it does not run.
        cost: its paired cost (1.0: the default's), None without a default that runs.
        noise: median over the rounds of the relative difference between the two measurements of
            the default, None when it was not measured again.
        reason: why this one, in words.
        held_out: the batches that it was not tuned on and loses on none of.
        finalists: those that were measured again against the default, the best first.
    """

    config: Config | None
    tuned: bool = False
    times_us: Times = ()
    default_times_us: Times = ()
    cost: float | None = None
    noise: float | None = None
    reason: str
    held_out: Workload = ()
    finalists: tuple[Finalist, ...] = ()


def fine_trials(trials: Iterable[Trial]) -> list[Trial]:
    """The trials that were measured in full, the best first; equals stay in their order."""
    fine = (t for t in trials if isinstance(t.outcome, Measurement) and not t.outcome.coarse)
    return sorted(fine, key=lambda trial: trial.cost if trial.cost is not None else math.inf)


def select(
    evaluator: Evaluator,
    trials: Sequence[Trial],
    *,
    finalists: int = FINALISTS,
    rounds: int = ROUNDS,
    max_regression: float = MAX_REGRESSION,
    held_out: HeldOut | None = None,
) -> Iterator[Selection | None]:
    """Measure the best trials and the default again, and choose.

    Yields the selection; and before it None, whenever it is worth while to do something else until
    ``held_out.prepared``.

    A finalist wins if, against the default's times of the same round, its median cost is below
    1 - noise and at most 1 - MIN_GAIN, and so many rounds say so that an exact one-sided sign test
    gives p <= 0.01: it is faster, and on each instance it takes no more than 1 + max_regression of
    the default's time. The lowest cost that passes is taken, unless it takes more than that on a
    batch that is held out.

    Args:
        evaluator: measures again; its workload is the trials'.
        trials: every trial of the task, with costs; the default's is among them.
        finalists: how many of the best are measured again.
        rounds: how often, at least MIN_ROUNDS.
        max_regression: how much slower than the default a winner may be on any instance.
        held_out: measures on batches that the trials were not measured on; None: there are none.
    """
    default = DEFAULT_CONFIGS[evaluator.task.kernel]
    outcome = next(trial.outcome for trial in trials if trial.config == default)
    fine = [trial for trial in fine_trials(trials) if trial.config != default]
    if not isinstance(outcome, Measurement):
        yield _fastest(evaluator, [trial.config for trial in fine[:finalists]], rounds)
        return
    others = [trial for trial in fine if not _is_launched_alike(trial, outcome)]
    best = [trial.config for trial in others[:finalists]]
    if not best:
        why = (
            "all that was tried is launched as it is" if fine else "nothing else could be measured"
        )
        yield _default_stands(default, outcome.times_us, why)
        return

    first, *series, last = evaluator.remeasure([default, *best, default], rounds=rounds)
    failure = failure_of([*first, *last])
    if failure is not None:
        reason = f"the default failed when it was measured again ({failure.kind})"
        yield _default_stands(default, outcome.times_us, reason)
        return
    first_us, last_us = times_of(first), times_of(last)
    workload = evaluator.workload
    base, noise = paired_default(first_us, last_us, workload)
    contest = [
        judge(config, results, base, workload, noise, max_regression)
        for config, results in zip(best, series, strict=True)
    ]
    contest.sort(key=lambda entry: math.inf if entry[0].cost is None else entry[0].cost)
    if held_out is not None:
        contest = yield from _held_out_too(contest, held_out, rounds, max_regression)
    entered = tuple(finalist for finalist, _ in contest)
    winner = next((finalist for finalist, passed in contest if passed), None)
    if winner is not None:
        yield Selection(
            config=winner.config,
            tuned=True,
            times_us=_median_times(times_of(series[best.index(winner.config)])),
            default_times_us=_median_times(base),
            cost=winner.cost,
            noise=noise,
            reason=winner.verdict,
            held_out=held_out.workload if held_out is not None and winner.held_out else (),
            finalists=entered,
        )
        return
    where = " everywhere" if any(finalist.held_out for finalist in entered) else ""
    reason = f"no finalist beats it{where}: {entered[0].config} {entered[0].verdict}"
    yield _default_stands(default, _median_times(base), reason, noise=noise, finalists=entered)


def _is_launched_alike(trial: Trial, default: Measurement) -> bool:
    """What launches have in common is timed once: so two that take exactly as long are one."""
    return isinstance(trial.outcome, Measurement) and trial.outcome.times_us == default.times_us


def _held_out_too(
    contest: Sequence[Judged], held_out: HeldOut, rounds: int, most: float
) -> Generator[None, None, list[Judged]]:
    """The finalists, up to the first that passes on what is held out too.

    The first mostly does, so it is prepared for alone, and the others together. They are measured
    one after the other: one that crashes takes no other with it.
    """
    default = DEFAULT_CONFIGS[held_out.task.kernel]
    judged = list(contest)
    passing = [place for place, (_, passed) in enumerate(contest) if passed]
    for together in (passing[:1], passing[1:]):
        if not together:
            break
        held_out.prepare([default, *(contest[place][0].config for place in together)])
        yield None
        for place in together:
            judged[place] = judge_held_out(contest[place][0], held_out, rounds, most)
            if judged[place][1]:
                return judged
    return judged


def _fastest(evaluator: Evaluator, best: Sequence[Config], rounds: int) -> Selection:
    """Where the default does not run there is nothing to beat: the fastest finalist wins."""
    series = evaluator.remeasure(best, rounds=rounds) if best else []
    measured = {
        config: times_of(results)
        for config, results in zip(best, series, strict=True)
        if failure_of(results) is None
    }
    if not measured:
        return Selection(config=None, reason="no configuration runs, not even the default")
    scale = next(iter(measured.values()))[0]
    costs = {
        config: median([relative_cost(own, scale, evaluator.workload) for own in times])
        for config, times in measured.items()
    }
    winner = min(costs, key=costs.__getitem__)
    return Selection(
        config=winner,
        tuned=True,
        times_us=_median_times(measured[winner]),
        reason="the default does not run; this is the fastest of those that do",
    )


def _default_stands(
    default: Config,
    times_us: Times,
    why: str,
    *,
    noise: float | None = None,
    finalists: tuple[Finalist, ...] = (),
) -> Selection:
    return Selection(
        config=default,
        times_us=times_us,
        default_times_us=times_us,
        cost=1.0,
        noise=noise,
        reason=f"the default stands: {why}",
        finalists=finalists,
    )


def _median_times(rounds: Sequence[Times]) -> Times:
    return tuple(median(times) for times in zip(*rounds, strict=True))
