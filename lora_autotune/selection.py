"""The winner: the best few are measured again against the default, and must beat it beyond noise.

Every round times the default, each finalist, and the default once more. The two defaults show what
noise is; their mean is what the round's finalists are compared with, so drift cancels.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from lora_autotune.evaluator import Evaluator, HeldOut
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Workload
from lora_autotune.trial import (
    MAX_REGRESSION,
    Failure,
    Measurement,
    Trial,
    relative_cost,
)

FINALISTS = 5
ROUNDS = 12
MIN_ROUNDS = 7
"""With fewer rounds not even a winner of all of them passes the sign test."""
MAX_SIGN_TEST_P = 0.01
MIN_GAIN = 0.01
"""Less is no gain: a config on a batch, measured twice, is 1% apart in the mean on an H100."""

Times = tuple[float, ...]
Rounds = list[Times | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """One of the best, measured again.

    Attributes:
        config: the configuration.
        cost: median over the rounds of its cost against the default's times of the same round,
            None when it failed.
        failure: why it failed this time, None when it did not.
        verdict: what became of it, in words.
        held_out: it was measured beside the default on the batches that are held out, too.
    """

    config: Config
    cost: float | None
    failure: Failure | None = None
    verdict: str
    held_out: bool = False


_Judged = tuple[Finalist, bool]
"""A finalist, and whether it may win."""


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
    best = [trial.config for trial in fine[:finalists]]
    if not best:
        yield _default_stands(default, outcome.times_us, "nothing else could be measured")
        return

    first, *series, last = evaluator.remeasure([default, *best, default], rounds=rounds)
    failure = _failure([*first, *last])
    if failure is not None:
        reason = f"the default failed when it was measured again ({failure.kind})"
        yield _default_stands(default, outcome.times_us, reason)
        return
    first_us, last_us = _times(first), _times(last)
    workload = evaluator.workload
    base, noise = paired_default(first_us, last_us, workload)
    contest = [
        _judge(config, results, base, workload, noise, max_regression)
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
            times_us=_median_times(_times(series[best.index(winner.config)])),
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


def paired_default(
    first_us: Sequence[Times], last_us: Sequence[Times], workload: Workload
) -> tuple[list[Times], float]:
    """What the default's two measurements of each round say.

    Returns:
        The mean of the two for each round, which that round's configs are compared with; and the
        noise, the median over the rounds of their relative difference.
    """
    pairs = list(zip(first_us, last_us, strict=True))
    base = [tuple((a + b) / 2 for a, b in zip(*pair, strict=True)) for pair in pairs]
    return base, median(abs(relative_cost(b, a, workload) - 1) for a, b in pairs)


def _judge(
    config: Config,
    results: Rounds,
    base: Sequence[Times],
    workload: Workload,
    noise: float,
    max_regression: float,
) -> _Judged:
    failure = _failure(results)
    if failure is not None:
        verdict = f"failed when it was measured again ({failure.kind})"
        return Finalist(config=config, cost=None, failure=failure, verdict=verdict), False
    times = _times(results)
    costs = [relative_cost(own, other, workload) for own, other in zip(times, base, strict=True)]
    cost = median(costs)
    wins = sum(cost < 1 for cost in costs)
    passed = False
    if cost >= 1:
        verdict = "is not faster than the default"
    elif cost >= 1 - noise:
        verdict = f"is {1 - cost:.1%} faster than the default, within the noise of {noise:.1%}"
    elif cost > 1 - MIN_GAIN:
        verdict = f"is {1 - cost:.2%} faster than the default, less than {MIN_GAIN:.0%}"
    elif _sign_test_p(wins, len(costs)) > MAX_SIGN_TEST_P:
        verdict = f"is faster than the default in only {wins} of {len(costs)} rounds"
    elif regression := _regression(times, base, workload, max_regression):
        verdict = regression
    else:
        passed = True
        verdict = f"beats the default in {wins} of {len(costs)} rounds (noise {noise:.1%})"
    return Finalist(config=config, cost=cost, verdict=verdict), passed


def _held_out_too(
    contest: Sequence[_Judged], held_out: HeldOut, rounds: int, most: float
) -> Generator[None, None, list[_Judged]]:
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
            judged[place] = _judge_held_out(contest[place][0], held_out, rounds, most)
            if judged[place][1]:
                return judged
    return judged


def _judge_held_out(finalist: Finalist, held_out: HeldOut, rounds: int, most: float) -> _Judged:
    default = DEFAULT_CONFIGS[held_out.task.kernel]
    configs = [default, finalist.config, default]
    first, own, last = held_out.remeasure(configs, rounds=rounds)
    if (failure := _failure(own)) is not None:
        verdict = f"failed on batches that are held out ({failure.kind})"
        return replace(finalist, failure=failure, verdict=verdict), False
    if (failure := _failure([*first, *last])) is not None:  # there is nothing to lose
        more = f"; the default fails on batches that are held out ({failure.kind})"
        return replace(finalist, verdict=finalist.verdict + more), True
    base, _ = paired_default(_times(first), _times(last), held_out.workload)
    lost = _regression(_times(own), base, held_out.workload, most, "held-out batch")
    return replace(finalist, held_out=True, verdict=lost or finalist.verdict), lost is None


def _regression(
    times: Sequence[Times],
    base: Sequence[Times],
    workload: Workload,
    most: float,
    what: str = "batch",
) -> str | None:
    """In words, why a config may lose too much on some instance; None where it does not.

    Told by the rounds in which it loses no more than that: a median at the limit itself would be
    beyond it as often as not, were it measured once more.
    """
    ratios = [
        [own[i] / other[i] for own, other in zip(times, base, strict=True)]
        for i in range(len(workload))
    ]
    kept = [sum(ratio <= 1 + most for ratio in series) for series in ratios]
    worst = min(range(len(workload)), key=lambda i: (kept[i], -median(ratios[i])))
    if _sign_test_p(kept[worst], len(times)) <= MAX_SIGN_TEST_P:
        return None
    return (
        f"is over {most:.1%} slower than the default on the {what} of {workload[worst].tokens} "
        f"tokens in {len(times) - kept[worst]} of {len(times)} rounds "
        f"(median {median(ratios[worst]) - 1:+.1%})"
    )


def _sign_test_p(wins: int, rounds: int) -> float:
    """Chance of at least so many wins in so many rounds if winning and losing were as likely."""
    return sum(math.comb(rounds, k) for k in range(wins, rounds + 1)) / float(2**rounds)


def _fastest(evaluator: Evaluator, best: Sequence[Config], rounds: int) -> Selection:
    """Where the default does not run there is nothing to beat: the fastest finalist wins."""
    series = evaluator.remeasure(best, rounds=rounds) if best else []
    measured = {
        config: _times(results)
        for config, results in zip(best, series, strict=True)
        if _failure(results) is None
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


def _failure(results: Rounds) -> Failure | None:
    return next((result for result in results if isinstance(result, Failure)), None)


def _times(results: Rounds) -> list[Times]:
    return [result for result in results if not isinstance(result, Failure)]


def _median_times(rounds: Sequence[Times]) -> Times:
    return tuple(median(times) for times in zip(*rounds, strict=True))
