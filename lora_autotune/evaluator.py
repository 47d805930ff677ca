"""The seam of the measuring. A real GPU and a recording are peers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lora_autotune.space import Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure, Trial

DETAILS = ("kernels_version", "driver", "torch")
"""What a platform may know beyond its identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What measurements were made on. Numbers from two platforms are never mixed.

    What tells two apart is their identity; the rest goes with what is measured, for its provenance.

    Attributes:
        device: the CUDA device's name, as the driver gives it ("NVIDIA H200").
        triton: version of Triton ("3.6.0").
        kernels: which kernels ("builtin").
        kernels_version: what tells one version of them from another; None: not known.
        driver: version of the device's driver; None: not known.
        torch: version of torch; None: not known.
    """

    device: str
    triton: str
    kernels: str = "builtin"
    kernels_version: str | None = field(default=None, compare=False)
    driver: str | None = field(default=None, compare=False)
    torch: str | None = field(default=None, compare=False)

    @property
    def identity(self) -> dict[str, str]:
        """What tells it apart from others."""
        return {"device": self.device, "triton": self.triton, "kernels": self.kernels}

    @property
    def details(self) -> dict[str, str]:
        """What else is known of it."""
        named = {name: getattr(self, name) for name in DETAILS}
        return {name: value for name, value in named.items() if value is not None}


class Evaluator(Protocol):
    """Evaluates configs of one task on one workload. Knows no strategy.

    Attributes:
        task: what is evaluated.
        workload: the batches it is timed on.
        platform: what it is measured on.
        replayed: True when the numbers were recorded earlier.
        capacity: how many submitted configs keep it busy.
    """

    task: Task
    workload: Workload
    platform: Platform
    replayed: bool
    capacity: int

    def submit(self, config: Config, /) -> None:
        """Hand over a config to evaluate; returns at once."""

    def collect(self) -> Trial:
        """The next finished trial, without a cost, in any order; blocks until there is one.

        Raises:
            EvaluatorError: nothing was submitted, or the machine cannot evaluate anything.
        """

    def poll(self, wait_s: float, /) -> Trial | None:
        """The next finished trial, or None when there is none yet.

        Waits for one, but never over ``wait_s`` seconds, and not when another evaluator of the same
        machine has one: whoever runs several at once asks each in turn.
        """

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """Time configs that were measured before against each other, interleaved.

        Each round times every config once, in the order given, so that drift hits all alike.
        Returns, for each config, its result in each round: a time in microseconds for every
        instance of the workload, or a Failure.
        """

    def close(self) -> None:
        """Let go of whatever it holds; submitted configs are abandoned."""


class HeldOut(Protocol):
    """Measures configs of a task on batches that none of its trials was measured on.

    Attributes:
        task: its trials' task.
        workload: the batches.
    """

    task: Task
    workload: Workload

    @property
    def prepared(self) -> bool:
        """Whether what was prepared last is ready."""

    def prepare(self, configs: Sequence[Config], /) -> None:
        """Begin what measuring them needs; returns at once."""

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """See :meth:`Evaluator.remeasure`; they need not be prepared, nor measured before."""
