"""What the pipeline has under way: candidates, and contests of those that are measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.worker import Died
from lora_autotune.kernel_set import has_one_binary
from lora_autotune.space import Config
from lora_autotune.trial import Failure

COMPILE_LIMIT_S = 1.5
"""Seconds of computing that a candidate's kernel may take to compile; twice as many until it is
known how long the default takes here. For shrink, slower ones were half of all compiling."""

COMPILE_LIMIT_TO_DEFAULT = 2.0
"""Where it is more, the limit as a multiple of what the default takes, for slow hosts: of configs
within 5% of the best on recorded landscapes the slowest to compile take 1.7 times as long, and 1.2
s on a fast host."""

PATIENT_COMPILE_LIMIT_S = 30.0
"""The same for a lane that wants every candidate measured; they wait until nothing else does."""

Rounds = list[list[tuple[float, ...] | Failure]]


@dataclass(eq=False, slots=True)
class Candidate:
    """A config on its way.

    Attributes:
        slow: it may take longer, because it has been over the limit or cannot be done without.
        timed: it is to be measured once it is compiled.
        killed: somebody killed the worker that had it; one more such death is its own failure.
        given_s: seconds of computing that its compiling had, the last time that it began.
        compiled: what came of compiling it.
    """

    lane: Lane
    config: Config
    slow: bool = False
    timed: bool = True
    killed: bool = False
    given_s: float = 0.0
    compiled: Compiled | None = None

    @property
    def is_default(self) -> bool:
        """Whether it is what all others are compared with."""
        return self.config == self.lane.default

    @property
    def deserves_more_time(self) -> bool:
        """Whether it may be compiled once more, now that it was over its limit.

        It may where its lane is patient, or where the default tells that this host is slow, or may
        yet tell it.
        """
        if self.slow:
            return False
        lane = self.lane
        return lane.patient or lane.awaits_default or self.given_s < self.compile_limit_s

    @property
    def compile_limit_s(self) -> float:
        """Seconds of computing that compiling it may take."""
        if self.slow:
            return PATIENT_COMPILE_LIMIT_S
        subject = self.lane.subject
        # Where batches differ in it, there are three at most, mostly.
        kernels = 1 if has_one_binary(subject.kernels) else min(3, len(subject.workload))
        default_s = self.lane.default_compute_s
        if default_s is None:
            return 2 * kernels * COMPILE_LIMIT_S
        return max(kernels * COMPILE_LIMIT_S, COMPILE_LIMIT_TO_DEFAULT * default_s)


@dataclass(eq=False, slots=True)
class Contest:
    """Configs to be measured again, side by side; ``killed`` as for a candidate."""

    lane: Lane
    configs: Sequence[Config]
    rounds: int
    killed: bool = False
    results: Rounds | Died | str | None = None


def deserves_another_try(job: Candidate | Contest, result: object) -> bool:
    """Whether its worker was killed from outside (by hand, for want of memory) for the first time.

    Else a candidate would be out for good, and a default or a contest that it hits would leave
    nothing to choose by.
    """
    if not isinstance(result, Died) or not result.killed or job.killed:
        return False
    job.killed = True
    return True
