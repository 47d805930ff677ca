"""From arguments to tasks, and to the batches that they are tuned on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.kernel_set import has_one_binary
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.task import (
    CHUNK_SIZES,
    DECODE,
    Task,
    Workload,
    default_workload,
    offsets_from_widths,
)
from lora_autotune.workload import condensed, named_workload, reaching, read_traffic

_OPTIONS = {
    "model": {"tp": "--tp", "lm_head": "--lm-head"},
    "kernel": {"K": "-K", "S": "-S", "slices": "--slices"},
}
_BATCHES = ("tokens", "workload", "traffic")


def named_work(arguments: Any) -> dict[Task, Workload]:
    """The tasks that --model or --kernel name, each with its batches.

    Those are what :func:`named_batches` has. lm_head only ever sees one row of each sequence, so on
    its own tasks that is the decode batch, unless --tokens says otherwise.

    Raises:
        UsageError: arguments that name no task, or two for one entry of a config file, or no batch.
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
    batches = named_batches(arguments)
    of = _tasks_by_hand if arguments.model is None else _tasks_of_model
    tasks = of(arguments, list(batches))
    refuse_shared_entries(tasks)
    work = {
        task: batches[task.chunk_size] if full or arguments.tokens else (DECODE,)
        for task, full in tasks.items()
    }
    _refuse_larger_ranks(work)
    return work


def names_batches(arguments: Any) -> bool:
    """Whether the arguments say anything about batches."""
    return arguments.max_lora_chunk_size is not None or says_what_is_served(arguments)


def says_what_is_served(arguments: Any) -> bool:
    """Whether they name batches: without, it may be anything."""
    return any(getattr(arguments, name) for name in _BATCHES)


def named_batches(arguments: Any) -> dict[int, Workload]:
    """The chunk sizes to tune, in ascending order, each with the batches that it is timed on.

    A batch is timed on the chunk sizes that a server of --max-lora-chunk-size runs it at, or any
    server where that is not said; --tokens alone are timed on each. A chunk size that no batch
    reaches on that server is left out, or, where --chunk-sizes asks for it, timed on what reaches
    it on another.

    Raises:
        UsageError: batches are named twice, or none reaches a chunk size that was asked for.
    """
    limit, asked = arguments.max_lora_chunk_size, arguments.chunk_sizes
    at = _batches_at(arguments)
    found = {size: at(size, limit) for size in sorted(set(asked or CHUNK_SIZES))}
    for size in [size for size, batches in found.items() if asked and not batches]:
        found[size] = at(size, None)
        if not found[size]:
            raise UsageError(
                f"no batch reaches chunk size {size}",
                hint="leave it out of --chunk-sizes, or name larger batches",
            )
    return {size: batches for size, batches in found.items() if batches}


def _batches_at(arguments: Any) -> Callable[[int, int | None], Workload]:
    """Chunk size, and the server's largest or None -> the batches."""
    named = [f"--{name}" for name in _BATCHES if getattr(arguments, name)]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} both name batches", hint="give one of them")
    if arguments.traffic is not None:
        steps = read_traffic(arguments.traffic)
        return lambda size, limit: condensed(reaching(steps, size, limit))
    if arguments.workload is not None:
        return functools.partial(reaching, named_workload(arguments.workload))
    tokens = tuple(arguments.tokens or ())
    between = has_one_binary(arguments.kernels)

    def at(size: int, limit: int | None) -> Workload:
        batches = tokens or default_workload(size, between=between)
        return batches if limit is None else reaching(batches, size, limit)

    return at


def _refuse_larger_ranks(work: Mapping[Task, Workload]) -> None:
    for task, workload in work.items():
        for instance in workload:
            if max(instance.ranks or (0,)) > task.R:
                raise UsageError(
                    f"the batch {instance} has an adapter over the largest rank, {task.R}",
                    hint="give a larger --rank, or smaller ranks",
                )


def refuse_shared_entries(tasks: Iterable[Task]) -> None:
    """Raise UsageError when two tasks of one GPU and Triton belong in one entry of a config file.

    The schema knows neither dtypes nor slice boundaries, so the later would overwrite the earlier.
    """
    owners: dict[tuple[object, ...], Task] = {}
    for task in tasks:
        entry = tuple(task.as_dict().values())
        other = owners.setdefault(entry, task)
        if other != task:
            raise UsageError(
                f"{other.key} and {task.key} are one entry of one config file",
                hint="tune them in runs of their own, each with its --out",
            )


def _tasks_of_model(arguments: Any, chunk_sizes: Sequence[int]) -> dict[Task, bool]:
    """Each task, with whether it sees full batches."""
    shape = load_model_shape(arguments.model)
    for note in shape.notes:
        print(f"note: {note}", file=sys.stderr)

    def tasks(*, lm_head: bool) -> Iterator[Task]:
        for rank in arguments.rank:
            yield from tasks_for(
                shape,
                rank=rank,
                tp=arguments.tp or 1,
                dtype=arguments.dtype or "float16",
                chunk_sizes=chunk_sizes,
                lm_head=lm_head,
            )

    layers = dict.fromkeys(tasks(lm_head=False), True)
    return layers | {task: task in layers for task in tasks(lm_head=arguments.lm_head)}


def _tasks_by_hand(arguments: Any, chunk_sizes: Sequence[int]) -> dict[Task, bool]:
    """Each task; all see full batches."""
    if arguments.K is None:
        raise UsageError("-K is missing", hint="shrink: input width; expand: output width")
    widths = arguments.slices
    tasks = (
        Task(
            kernel=arguments.kernel,
            K=arguments.K,
            R=rank,
            S=arguments.S or len(widths or [0]),
            chunk_size=chunk_size,
            dtype=arguments.dtype or "float16",
            slice_offsets=offsets_from_widths(widths) if widths else None,
        )
        for rank in arguments.rank
        for chunk_size in chunk_sizes
    )
    return dict.fromkeys(tasks, True)
