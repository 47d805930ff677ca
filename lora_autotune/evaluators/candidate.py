"""What the pipeline has under way: candidates, and contests of those that are measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.worker import Died
from lora_autotune.space import Config
from lora_autotune.trial import Failure

COMPILE_LIMIT_S = 1.5
"""Seconds of computing that a candidate's compiling may take. On the shipped landscapes no config
within 5% of the best took over 1.2 s, and shrink's slower ones were half of all compiling."""

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
        compiled: what came of compiling it.
    """

    lane: Lane
    config: Config
    slow: bool = False
    timed: bool = True
    killed: bool = False
    compiled: Compiled | None = None

    @property
    def compile_limit_s(self) -> float:
        """Seconds of computing that compiling it may take."""
        if self.slow:
            return PATIENT_COMPILE_LIMIT_S
        kernels = min(3, len(self.lane.subject.workload))  # other batches share theirs, mostly
        return kernels * COMPILE_LIMIT_S


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
