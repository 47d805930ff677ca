"""One of the best configs, measured again beside the default: whether it may win."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from lora_autotune.evaluator import HeldOut
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Workload
from lora_autotune.trial import Failure, relative_cost

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


Judged = tuple[Finalist, bool]
"""A finalist, and whether it may win."""


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


def judge(
    config: Config,
    results: Rounds,
    base: Sequence[Times],
    workload: Workload,
    noise: float,
    max_regression: float,
) -> Judged:
    """By its times and the default's of the same rounds, as ``select`` says it.

    Args:
        config: the finalist.
        results: of each round.
        base: the default's times in each round.
        workload: what they are times of.
        noise: how far apart the default's two measurements are.
        max_regression: how much slower than the default it may be on any instance.
    """
    failure = failure_of(results)
    if failure is not None:
        verdict = f"failed when it was measured again ({failure.kind})"
        return Finalist(config=config, cost=None, failure=failure, verdict=verdict), False
    times = times_of(results)
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


def judge_held_out(finalist: Finalist, held_out: HeldOut, rounds: int, most: float) -> Judged:
    """Measure one that passed on what is held out, too; ``most`` may be lost there."""
    default = DEFAULT_CONFIGS[held_out.task.kernel]
    configs = [default, finalist.config, default]
    first, own, last = held_out.remeasure(configs, rounds=rounds)
    if (failure := failure_of(own)) is not None:
        verdict = f"failed on batches that are held out ({failure.kind})"
        return replace(finalist, failure=failure, verdict=verdict), False
    if (failure := failure_of([*first, *last])) is not None:  # there is nothing to lose
        more = f"; the default fails on batches that are held out ({failure.kind})"
        return replace(finalist, verdict=finalist.verdict + more), True
    base, _ = paired_default(times_of(first), times_of(last), held_out.workload)
    lost = _regression(times_of(own), base, held_out.workload, most, "held-out batch")
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


def failure_of(results: Rounds) -> Failure | None:
    """Why a config failed in some round; None where it did not."""
    return next((result for result in results if isinstance(result, Failure)), None)


def times_of(results: Rounds) -> list[Times]:
    """The rounds in which a config did not fail."""
    return [result for result in results if not isinstance(result, Failure)]
