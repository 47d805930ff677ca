"""From arguments to tasks."""

from __future__ import annotations

from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.task import Task, Workload, default_workload, offsets_from_widths


def named_tasks(arguments: Any) -> list[Task]:
    """The tasks that --model or --kernel name; raises UsageError or ModelError."""
    if (arguments.model is None) == (arguments.kernel is None):
        raise UsageError("name either a --model or a --kernel")
    if arguments.rank is None:
        raise UsageError("--rank is missing", hint="the largest rank that the server allows")
    chunk_sizes = sorted(set(arguments.chunk_sizes))
    if arguments.model is not None:
        return tasks_for(
            load_model_shape(arguments.model),
            rank=arguments.rank,
            tp=arguments.tp,
            dtype=arguments.dtype,
            chunk_sizes=chunk_sizes,
        )
    if arguments.K is None:
        raise UsageError("-K is missing", hint="shrink: input width; expand: output width")
    offsets = None
    if arguments.slices is not None:
        offsets = offsets_from_widths(arguments.slices)
    return [
        Task(
            kernel=arguments.kernel,
            K=arguments.K,
            R=arguments.rank,
            S=arguments.S,
            chunk_size=chunk_size,
            dtype=arguments.dtype,
            slice_offsets=offsets,
        )
        for chunk_size in chunk_sizes
    ]


def named_workload(arguments: Any, task: Task) -> Workload:
    """The batches that --tokens name, or those that reach the task's chunk size."""
    return tuple(arguments.tokens or ()) or default_workload(task.chunk_size)
