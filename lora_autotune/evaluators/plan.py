"""A task's tensors, real or blank, and the launches made from them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.blank import NOWHERE, empty, holding
from lora_autotune.kernels.launch import Launch
from lora_autotune.kernels.launcher import launcher
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.task import Instance, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """What one launch of a task reads and writes.

    Attributes:
        x: shrink (s, K), expand (s, S * R).
        weights: shrink (adapters, S * R, K), expand (adapters, K, R).
        output: shrink (s, S * R), expand (s, >= K).
    """

    x: Tensor
    weights: Tensor
    output: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all three."""
        return sum(t.numel() * t.element_size() for t in (self.x, self.weights, self.output))


def shapes(task: Task, rows: int, adapters: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of x, weights and output for a batch."""
    if task.kernel == "shrink":
        columns = task.S * task.R
        return (rows, task.K), (adapters, columns, task.K), (rows, columns)
    return (rows, task.S * task.R), (adapters, task.K, task.R), (rows, task.K)


def empty_operands(task: Task, batch: Batch, *, device: torch.device | str) -> Operands:
    """Uninitialised operands; NOWHERE they are blanks."""
    x, weights, output = (
        empty(shape, task.dtype, device)
        for shape in shapes(task, batch.permutation.shape[0], batch.lora_ranks.shape[0])
    )
    return Operands(x=x, weights=weights, output=output)


def task_offsets(task: Task, *, device: torch.device | str) -> Tensor:
    """The task's slice boundaries as the kernel reads them: int64 (S + 1,)."""
    return holding(task.slice_offsets or (0,), "int64", device)


@functools.cache
def planned_batch(task: Task, instance: Instance) -> Batch:
    """The batch of a workload's instance as blanks: what a launch of the task is planned from."""
    return served_batch(instance, rank=task.R, chunk_size=task.chunk_size, device=NOWHERE)


def schedule_of(
    task: Task,
    batch: Batch,
    config: Mapping[str, int],
    target: Target,
    *,
    kernels: str = BUILTIN,
) -> Schedule:
    """How a launch of a task on a batch maps to programs."""
    return launcher(kernels).schedule(task, batch, config, target)


def task_launch(
    task: Task,
    operands: Operands,
    batch: Batch,
    offsets: Tensor,
    config: Mapping[str, int],
    schedule: Schedule,
    *,
    kernels: str = BUILTIN,
) -> Launch:
    """The launch of a task's kernel, of one set of them, on some operands."""
    matrices = operands.x, operands.weights, operands.output
    return launcher(kernels).launch(task, matrices, batch, offsets, config, schedule)
