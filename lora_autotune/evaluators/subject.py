"""What the bench worker is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from lora_autotune.kernel_set import BUILTIN
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Outcome, Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What candidates are measured on.

    Attributes:
        workload: the batches.
        seed: of the random operands.
        prune: drop a candidate by its resources before it is timed, or once it is clearly behind.
        kernels: the set of them that is launched.
    """

    task: Task
    workload: Workload
    seed: int
    prune: bool
    kernels: str = BUILTIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of one candidate.

    Attributes:
        context_lost: True when the CUDA context is unusable and the worker must be replaced.
    """

    outcome: Outcome
    resources: Resources | None = None
    context_lost: bool = False
