"""Winners on the GPU, on batches that they were not tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.pipeline import Pipeline
from lora_autotune.evaluators.subject import Subject
from lora_autotune.space import Config
from lora_autotune.trial import Failure


class CudaHeldOut:
    """Measures winners on other batches; see :class:`lora_autotune.evaluator.HeldOut`.

    What a config needs for each of the batches is compiled by itself, so that they compile side by
    side: somebody waits for them.
    """

    def __init__(self, subject: Subject, pipeline: Pipeline) -> None:
        self.task = subject.task
        self.workload = subject.workload
        self._pipeline = pipeline
        self._asked: set[Config] = set()
        self._lane = Lane(subject, patient=False)
        self._parts = [
            Lane(replace(subject, workload=(instance,)), patient=False)
            for instance in subject.workload
        ]

    @property
    def prepared(self) -> bool:
        """Whether all that was asked for last is compiled."""
        return all(part.prepared(self._asked) for part in self._parts)

    def prepare(self, configs: Sequence[Config], /) -> None:
        """Begin to compile what measuring configs needs; returns at once."""
        self._asked = set(configs)
        for part in self._parts:
            self._pipeline.prepare(part, configs)

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """Time configs against each other, interleaved."""
        return self._pipeline.remeasure(self._lane, configs, rounds, self._parts)

    def close(self) -> None:
        """Abandon what is under way; the machine stays."""
        self._pipeline.abandon(self._lane, *self._parts)
