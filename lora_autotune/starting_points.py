"""Configs that did well wherever they were measured: what a search tries before it asks its model.

From two runs of `scripts/tune` on an H200: at every shape and chunk size of theirs one of these, or
the default, is within 3% of the best that was found. The last of expand's is from decode steps on
an H100, of kernels whose few rows had no configs of their own. On another GPU all are guesses.
"""

from __future__ import annotations

from lora_autotune.space import Config, SearchSpace
from lora_autotune.task import Task

_SHRINK = (
    (64, 64, 4, 3),
    (16, 256, 4, 4),
    (64, 64, 8, 3),
    (64, 64, 8, 4),
    (32, 256, 8, 2),
    (64, 64, 4, 4),
    (32, 256, 4, 3),
)
"""BLOCK_N, BLOCK_K, warps, stages."""

_EXPAND = (
    (128, 1, 4, 1, 128),
    (128, 2, 4, 3, 168),
    (128, 1, 4, 1, None),
    (64, 1, 4, 1, 128),
    (128, 1, 4, 3, 168),
    (64, 1, 4, 3, 168),
    (64, 2, 4, 3, 128),
    (128, 1, 4, 1, 168),
    (128, 1, 8, 1, 128),
    (64, 2, 2, 3, 128),
)
"""BLOCK_N, steps in which the rank is gone through, warps, stages, maxnreg."""


def starting_points(task: Task, space: SearchSpace) -> tuple[Config, ...]:
    """Those for a task that a space holds, the most promising first."""
    found = [
        Config(BLOCK_N=block_n, BLOCK_K=block_k, num_warps=warps, num_stages=stages)
        for block_n, block_k, warps, stages in _SHRINK
    ]
    if task.kernel == "expand":
        deepest = 1 << (task.R - 1).bit_length()
        found = [
            Config(
                BLOCK_N=block_n,
                BLOCK_K=min(64, max(16, deepest // steps)),
                num_warps=warps,
                num_stages=stages,
                maxnreg=maxnreg,
            )
            for block_n, steps, warps, stages, maxnreg in _EXPAND
        ]
    return tuple(config for config in dict.fromkeys(found) if config in space)
