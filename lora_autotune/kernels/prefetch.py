"""Loads begun before anybody can use them: lines on their way to the L2 take no registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import triton
import triton.language as tl

from lora_autotune.kernels.batch import TALL_ROWS
from lora_autotune.kernels.target import capability

if TYPE_CHECKING:
    import torch

LINE = 64
"""Elements of two bytes in a line of 128 bytes, which one instruction fetches."""


def prefetches(device: torch.device | Literal["nowhere"], rows: int) -> bool:
    """Whether a kernel on a device fetches tiles of so many rows ahead: tall ones gain 3 to 10%."""
    return rows == TALL_ROWS and capability(device) > 0


@triton.jit
def fetch_tile(rows, column, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bring a tile of two-byte elements to the L2, line by line.

    ``rows`` (TALL_ROWS,) point at the rows' first elements, each of WIDTH.
    """
    LINES: tl.constexpr = BLOCK_N // 64 if BLOCK_N > 64 else 1
    n = column + tl.arange(0, LINES) * 64
    if WIDTH % BLOCK_N != 0:
        n = tl.minimum(n, WIDTH - 1)
    _fetch(rows[:, None] + n[None, :])


@triton.jit
def fetch_weights(matrix, begin, LINES: tl.constexpr, LENGTH: tl.constexpr, SIZE: tl.constexpr):
    """Bring LENGTH two-byte elements of a matrix of SIZE to the L2, those that follow each other.

    LINES: as many as they are at least, a power of two.
    """
    place = begin + tl.minimum(tl.arange(0, LINES) * 64, LENGTH - 1)
    _fetch(matrix + tl.minimum(place, SIZE - 1))


@triton.jit
def fetch_depth(
    matrix, row, begin, end,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Bring BLOCK_N rows of a matrix (ROWS, WIDTH) of two-byte elements to the L2, from ``row`` on.

    Of each what lies between ``begin`` and ``end``, BLOCK_K elements at a time.
    """
    LINES: tl.constexpr = BLOCK_K // 64 if BLOCK_K > 64 else 1
    rows = tl.minimum(row + tl.arange(0, BLOCK_N), ROWS - 1)
    for first in range(begin, end, BLOCK_K):
        k = tl.minimum(first + tl.arange(0, LINES) * 64, WIDTH - 1)
        _fetch(matrix + rows[:, None] * WIDTH + k[None, :])


@triton.jit
def _fetch(lines):
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [lines.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
