"""What is tuned: a task, what measures it, and where its best config is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Evaluator, HeldOut
from lora_autotune.neighbours import Problem
from lora_autotune.search import Record
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.task import Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One task to tune, and with what.

    Attributes:
        evaluator: measures the candidates of its task; stays open.
        held_out: measures winners on batches that candidates are not measured on; None: there are
            none. It is the same task's and stays open.
        space: where to search; None: the wide space of the task's kernel.
        record: where every trial is made durable before the strategy hears of it; what it knows
            already is told to the strategy and costs nothing.
    """

    evaluator: Evaluator
    held_out: HeldOut | None = None
    space: SearchSpace | None = None
    record: Record | None = None

    def __post_init__(self) -> None:
        if self.held_out is not None and self.held_out.task != self.task:
            raise EvaluatorError(f"what measures {self.held_out.task} cannot hold out {self.task}")

    @property
    def task(self) -> Task:
        """The evaluator's."""
        return self.evaluator.task

    @property
    def problem(self) -> Problem:
        """The task and what its best config depends on."""
        return Problem(
            task=self.task,
            workload=self.evaluator.workload,
            platform=self.evaluator.platform,
            space=self.space or named_space("wide", self.task.kernel),
        )
