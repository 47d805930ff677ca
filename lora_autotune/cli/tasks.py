"""From arguments to tasks, and to the batches that they are tuned on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.task import (
    CHUNK_SIZES,
    DECODE,
    Task,
    Workload,
    default_workload,
    offsets_from_widths,
)

_OPTIONS = {
    "model": {"tp": "--tp", "lm_head": "--lm-head"},
    "kernel": {"K": "-K", "S": "-S", "slices": "--slices"},
}


def named_work(arguments: Any) -> dict[Task, Workload]:
    """The tasks that --model or --kernel name, each with its batches.

    Those are what --tokens says, or what reaches the task's chunk size. lm_head only ever sees one
    row of each sequence, so on its own tasks that is the decode batch.

    Raises:
        UsageError: arguments that name no task, or two for one entry of a config file.
        ModelError: a model that is not known, or that no tasks can be made from.
    """
    if (arguments.model is None) == (arguments.kernel is None):
        raise UsageError("name either a --model or a --kernel")
    other = "kernel" if arguments.kernel is None else "model"
    for name, option in _OPTIONS[other].items():
        if getattr(arguments, name):
            raise UsageError(f"{option} belongs to --{other}")
    if arguments.rank is None:
        raise UsageError("--rank is missing", hint="the largest rank that the server allows")
    tasks = _tasks_by_hand(arguments) if arguments.model is None else _tasks_of_model(arguments)
    refuse_shared_entries(tasks)
    return {
        task: tuple(arguments.tokens or (default_workload(task.chunk_size) if full else (DECODE,)))
        for task, full in tasks.items()
    }


def refuse_shared_entries(tasks: Iterable[Task]) -> None:
    """Raise UsageError when two tasks of one GPU and Triton belong in one entry of a config file.

    The schema knows neither dtypes nor slice boundaries, so the later would overwrite the earlier.
    """
    owners: dict[tuple[object, ...], Task] = {}
    for task in tasks:
        entry = (task.kernel, task.K, task.R, task.S, task.chunk_size)
        other = owners.setdefault(entry, task)
        if other != task:
            raise UsageError(
                f"{other.key} and {task.key} are one entry of one config file",
                hint="tune them in runs of their own, each with its --out",
            )


def _tasks_of_model(arguments: Any) -> dict[Task, bool]:
    """Each task, with whether it sees full batches."""
    shape = load_model_shape(arguments.model)
    for note in shape.notes:
        print(f"note: {note}", file=sys.stderr)
    tasks = functools.partial(
        tasks_for,
        shape,
        rank=arguments.rank,
        tp=arguments.tp or 1,
        dtype=arguments.dtype or "float16",
        chunk_sizes=_chunk_sizes(arguments),
    )
    layers = dict.fromkeys(tasks(), True)
    return layers | {task: task in layers for task in tasks(lm_head=arguments.lm_head)}


def _tasks_by_hand(arguments: Any) -> dict[Task, bool]:
    if arguments.K is None:
        raise UsageError("-K is missing", hint="shrink: input width; expand: output width")
    widths = arguments.slices
    tasks = (
        Task(
            kernel=arguments.kernel,
            K=arguments.K,
            R=arguments.rank,
            S=arguments.S or len(widths or [0]),
            chunk_size=chunk_size,
            dtype=arguments.dtype or "float16",
            slice_offsets=offsets_from_widths(widths) if widths else None,
        )
        for chunk_size in _chunk_sizes(arguments)
    )
    return dict.fromkeys(tasks, True)


def _chunk_sizes(arguments: Any) -> list[int]:
    return sorted(set(arguments.chunk_sizes or CHUNK_SIZES))
