"""Warm starts: what did well on a task is worth an early try on a task like it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lora_autotune.space import Config
from lora_autotune.task import Task

FARTHEST = 1.5
"""Distance of two tasks beyond which what one learned says nothing about the other."""


def hints(task: Task, finished: Mapping[Task, Sequence[Config]]) -> tuple[Config, ...]:
    """What did best on the finished task that is most like this one, the best first.

    Args:
        task: what is to be tuned.
        finished: tasks that were tuned, each with its best configs.
    """
    near = [(distance(task, other), configs) for other, configs in finished.items()]
    near = [pair for pair in near if pair[0] <= FARTHEST]
    return tuple(min(near, key=lambda pair: pair[0])[1]) if near else ()


def distance(one: Task, other: Task) -> float:
    """Doublings of chunk size, width and rank between two tasks, and half of one per slice.

    Infinite between kernels and between dtypes.
    """
    if (one.kernel, one.dtype) != (other.kernel, other.dtype):
        return math.inf
    pairs = ((one.chunk_size, other.chunk_size), (one.K, other.K), (one.R, other.R))
    return sum(abs(math.log2(a / b)) for a, b in pairs) + abs(one.S - other.S) / 2
