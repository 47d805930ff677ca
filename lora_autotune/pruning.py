"""When a candidate is timed on no further batch, and what it is then taken to cost.

The batches of a workload are the steps of a trial. Optuna's pruners compare a step with the same
step of other trials; here the weighted sum over all of them counts, and it has a bound. What losing
to the default on a batch is charged is left out of it: who tunes may allow any loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lora_autotune.task import Workload
from lora_autotune.trial import (
    MAX_REGRESSION,
    Failure,
    Measurement,
    Outcome,
    Pruned,
    relative_cost,
    tuning_cost,
)

BEHIND = 1.1
"""A candidate whose cost is over this many times the best's, even where it is granted the fastest
time on the batches that are left, is out: no noise makes a finalist of it."""

REPLAYS = 9
"""Times that a candidate is timed on a batch; the median counts."""

GIVE_UP = {2: 1.3, 4: BEHIND}
"""After so many replays a candidate whose cost is this many times the best's is not timed further.

One replay varies by 0.1 to 2.5% on an H200: neither is within reach of a finalist.
"""


def telling_order(workload: Workload) -> list[int]:
    """The places of the instances, in the order in which a candidate is timed on them.

    The heaviest first: it says most about the cost. Of equals the one with the fewest tokens:
    configs of SGLang's kernels differ most there, and ours make one launch of few rows, which is
    timed once.
    """
    return sorted(range(len(workload)), key=lambda i: (-workload[i].weight, workload[i].tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """What a candidate has to be compared with.

    Attributes:
        default_us: the default's time on each instance; empty: not measured yet.
        fastest_us: the least time that any candidate took on each instance; empty: not known yet.
        best_cost: the lowest cost of a candidate that loses on no instance: of one that may win.
    """

    default_us: tuple[float, ...] = ()
    fastest_us: tuple[float, ...] = ()
    best_cost: float = math.inf

    def after(self, outcome: Outcome, workload: Workload, *, is_default: bool = False) -> Standings:
        """With what came of one more candidate, or of the default."""
        if isinstance(outcome, Failure) or not outcome.times_us:
            return self
        default_us, best_cost = self.default_us, self.best_cost
        if isinstance(outcome, Measurement):
            default_us = outcome.times_us if is_default else default_us
            if default_us and not _loses(outcome.times_us, default_us):
                best_cost = min(best_cost, tuning_cost(outcome.times_us, default_us, workload))
        before_us = self.fastest_us or (math.inf,) * len(workload)
        pairs = zip(before_us, outcome.times_us, strict=True)
        fastest_us = tuple(us if own is None else min(us, own) for us, own in pairs)
        return Standings(default_us=default_us, fastest_us=fastest_us, best_cost=best_cost)

    def limit_us(
        self, factor: float, times_us: Mapping[int, float], place: int, workload: Workload
    ) -> float:
        """The time on an instance that makes a candidate's cost this many times the best's.

        Args:
            factor: dimensionless.
            times_us: its times by the instance's place; else it is granted the fastest.
            place: of the instance that it is timed on.
            workload: every instance.
        """
        if not self.default_us:
            return math.inf
        granted_us = {**dict(enumerate(self.fastest_us)), **times_us, place: 0.0}
        cost = relative_cost(tuple(granted_us.values()), self.default_us, workload)
        left = factor * self.best_cost - cost
        total = sum(instance.weight for instance in workload)
        return left * total / workload[place].weight * self.default_us[place]


def _loses(times_us: tuple[float, ...], default_us: tuple[float, ...]) -> bool:
    pairs = zip(times_us, default_us, strict=True)
    return any(time_us > (1 + MAX_REGRESSION) * base_us for time_us, base_us in pairs)


def pruned(times_us: Mapping[int, float], workload: Workload) -> Pruned:
    """The outcome of a candidate that is out, from its times by the instance's place."""
    return Pruned(
        rule=f"clearly behind after {len(times_us)} of {len(workload)} batches",
        times_us=tuple(times_us.get(i) for i in range(len(workload))),
    )


def imputed_us(
    outcome: Pruned, best_us: tuple[float, ...], default_us: tuple[float, ...], workload: Workload
) -> tuple[float, ...]:
    """What a pruned candidate would have taken if it were as far behind the best everywhere.

    Args:
        outcome: with the times of one instance at least.
        best_us: those of the best candidate; they are scaled where it has none.
        default_us: the default's, by which times are weighed.
        workload: every instance.
    """
    own = best = 0.0
    for instance, time_us, best_time_us, base_us in zip(
        workload, outcome.times_us, best_us, default_us, strict=True
    ):
        if time_us is not None:
            own += instance.weight * time_us / base_us
            best += instance.weight * best_time_us / base_us
    pairs = zip(outcome.times_us, best_us, strict=True)
    return tuple(us * own / best if time_us is None else time_us for time_us, us in pairs)
