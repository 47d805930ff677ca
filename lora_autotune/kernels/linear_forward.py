"""A linear layer with its adapters, as one product: when it can be, when it pays, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_autotune.kernels.batch import Batch, cdiv
from lora_autotune.kernels.forward import shrink_forward
from lora_autotune.kernels.linear_launch import BLOCK_M, BLOCK_N, linear_launches
from lora_autotune.kernels.target import target

if TYPE_CHECKING:
    from collections.abc import Hashable

CAPABILITY = 90
"""The kernel is made for warp groups and bulk copies of tiles as compute capability 9.0 has them;
it was measured nowhere else."""

ALIGNED = 8
"""Elements, 16 bytes, of which a matrix's lines must be a multiple to be copied in tiles."""

LEAST_ROWS = 2048
"""Fewer are left to the layer's own product, which has smaller tiles for them."""

LEAST_TILES, BUSY = 2.0, 0.85
"""Least tiles for each multiprocessor, which makes one at a time, and the least part of the time in
which it has one."""

MOST_MEMORY = 2
"""Most memory that is needed for a while, in that of the output: no server counts on it."""

KEPT_ANSWERS = 4096


def linear_forward(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    batch: Batch,
    slice_offsets: Tensor,
    *,
    shrink_config: Mapping[str, int] | None = None,
) -> Tensor:
    """``x @ weight.T`` and what the adapters add to it: a new tensor (s, N) in the dtype of ``x``.

    For what :func:`linear_gap` has nothing against. The adapters' part is rounded once more than by
    shrink and expand, the layer's own once less. Rows without an adapter get the product alone.

    Args:
        x: (s, K).
        weight: (N, K).
        lora_a: (adapters, S * R, K), an adapter of rank r packed in S * r rows.
        lora_b: (adapters, N, R). Where an adapter's is not finite, all of its rows are NaN.
        batch: the rows' segments.
        slice_offsets: int32 or int64 (S + 1,), on the device.
        shrink_config: None: what the loader finds for this GPU and shape.
    """
    slices = slice_offsets.shape[0] - 1
    middle = shrink_forward(x, lora_a, batch, slices, config=shrink_config)
    output = x.new_empty((x.shape[0], weight.shape[0]))
    programs = target(x.device).multiprocessors
    for launch in linear_launches(
        x, weight, middle, lora_b, output, batch, slice_offsets, programs
    ):
        launch()
    return output


def linear_gap(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    batch: Batch,
    boundaries: Sequence[int],
) -> str | None:
    """Why a layer's product is left to the layer; None where it is made here, and that pays.

    Args:
        x: (s, K).
        weight: (N, K).
        lora_a: (adapters, S * R, K).
        lora_b: (adapters, N, R).
        batch: the rows' segments.
        boundaries: of the slices in the output, S + 1.
    """
    if x.shape[0] < LEAST_ROWS:
        return f"{x.shape[0]} rows"
    matrices = x, weight, lora_a, lora_b
    for matrix in matrices:
        if matrix.dtype != x.dtype or matrix.device != x.device:
            return f"{matrix.dtype} on {matrix.device} beside {x.dtype} on {x.device}"
        if not matrix.is_contiguous():
            return "a matrix is not contiguous"
        if matrix.data_ptr() % (2 * ALIGNED):
            return "a matrix is not aligned"
    return _gap(
        tuple(matrix.shape for matrix in matrices),
        tuple(boundaries),
        batch.permutation.shape[0],
        x.dtype,
        x.device,
    )


@lru_cache(KEPT_ANSWERS)
def _gap(
    shapes: tuple[torch.Size, ...],
    boundaries: tuple[int, ...],
    batch_rows: int,
    dtype: Hashable,
    device: torch.device,
) -> str | None:
    if [len(shape) for shape in shapes] != [2, 2, 3, 3]:
        return "dimensions are not 2, 2, 3 and 3"
    (rows, depth), (width, other_depth) = shapes[:2]
    (slots, columns, a_depth), (b_slots, b_width, rank) = shapes[2:]
    slices = len(boundaries) - 1
    if dtype != torch.bfloat16:  # what is scaled before it is rounded may not fit a float16
        return f"dtype {dtype}"
    gpu = target(device)
    if gpu.capability != CAPABILITY:
        return f"compute capability {gpu.capability / 10}, not {CAPABILITY / 10}"
    if (
        not depth == other_depth == a_depth
        or slots != b_slots
        or slices < 1
        or columns != slices * rank
        or batch_rows != rows
    ):
        return f"shapes {[tuple(shape) for shape in shapes]} and {slices} slices differ"
    ends = 0, width
    if (
        (boundaries[0], boundaries[-1]) != ends
        or b_width != width
        or sorted(boundaries) != [*boundaries]
    ):
        return f"{width} columns, of which slices are {boundaries}"
    if any(length % ALIGNED for length in (depth, width, rank)):
        return f"K={depth}, N={width} or R={rank} is no multiple of {ALIGNED}"
    if any(start % BLOCK_N for start in boundaries[:-1]):
        return f"slices {boundaries} do not begin at multiples of {BLOCK_N}"
    if slots * rank * (slices * rows + width) > MOST_MEMORY * rows * width:
        return f"{slots} adapters of {slices} x {rank} columns want too much memory"
    tiles = cdiv(rows, BLOCK_M) * cdiv(width, BLOCK_N) / gpu.multiprocessors
    if tiles < max(LEAST_TILES, BUSY * math.ceil(tiles)):
        return f"{tiles:.1f} tiles a multiprocessor"
    return None
