"""From a layer's tensors to the launches that make its product and its LoRA in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lora_autotune.kernels.batch import Batch, cdiv
from lora_autotune.kernels.clean_weights import clean_weights_kernel
from lora_autotune.kernels.launch import Launch
from lora_autotune.kernels.linear import linear_kernel
from lora_autotune.kernels.tile_terms import row_adapters_kernel, tile_terms_kernel
from lora_autotune.kernels.variant import ALIGNED_BYTES, Variant

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
"""Of the layer's product: two warp groups with 64 x 256 each, and lines of 128 bytes."""

ROWS_AT_ONCE = 1024
"""Rows of the segments whose adapters one program looks up."""

CLEANED_AT_ONCE = 2048
"""Elements of B that one program copies."""

TERMS_N = 64
"""Columns of a tile of terms."""

_OPTIONS = {"BAND": 8, "num_warps": 8, "num_stages": 3}


def linear_launches(
    x: Tensor,
    weight: Tensor,
    middle: Tensor,
    lora_b: Tensor,
    output: Tensor,
    batch: Batch,
    slice_offsets: Tensor,
    programs: int,
) -> Iterator[Launch]:
    """What is launched, one after the other; tensors of their own are made on the way.

    Args:
        x: (s, K).
        weight: (N, K).
        middle: (s, S * R), what shrink wrote.
        lora_b: (adapters, N, R).
        output: (s, N), overwritten.
        batch: the rows' segments.
        slice_offsets: (S + 1,), on the device; all but the last are multiples of BLOCK_N.
        programs: of the layer's product, one for each multiprocessor.
    """
    rows, depth = x.shape
    slots, width, rank = lora_b.shape
    slices = slice_offsets.shape[0] - 1
    tiles = cdiv(rows, BLOCK_M)
    row_adapters, broken, counts = _zeros(rows, slots, 2, device=x.device)
    yield Launch(
        variant=_row_adapters(batch.chunk_size),
        grid=(cdiv(batch.sizes.grid_segments, ROWS_AT_ONCE // batch.chunk_size), 1, 1),
        args=(
            row_adapters,
            batch.seg_indptr,
            batch.weight_indices,
            batch.lora_ranks,
            batch.permutation,
            batch.num_segs,
        ),
        kind=0,
    )
    cleaned = torch.empty_like(lora_b)
    yield Launch(
        variant=_clean_weights(width, rank),
        grid=(cdiv(width * rank, CLEANED_AT_ONCE), slots, 1),
        args=(lora_b, cleaned, broken, batch.lora_ranks),
        kind=0,
    )
    terms = middle.new_empty((slots * rows, slices * rank))
    tile_adapters = row_adapters.new_empty((tiles, 1 + slots))
    tile_order = row_adapters.new_empty((2, tiles))
    yield Launch(
        variant=_tile_terms(rank, slices),
        grid=(tiles, cdiv(slices * rank, TERMS_N), 1),
        args=(
            middle,
            terms,
            row_adapters,
            tile_adapters,
            tile_order,
            counts,
            broken,
            batch.lora_ranks,
            batch.scalings,
            rows,
            slots,
        ),
        kind=0,
    )
    yield Launch(
        variant=_linear(rank, slices),
        grid=(min(programs, tiles * cdiv(width, BLOCK_N)), 1, 1),
        args=(
            _tiled(x, BLOCK_M, BLOCK_K),
            _tiled(weight, BLOCK_N, BLOCK_K),
            _tiled(terms, BLOCK_M, BLOCK_K),
            _tiled(cleaned.view(-1, rank), BLOCK_N, BLOCK_K),
            _tiled(output, BLOCK_M, BLOCK_N // 2),
            tile_adapters,
            tile_order,
            counts,
            slice_offsets,
            rows,
            width,
            depth,
            slots,
        ),
        kind=0,
    )


def _zeros(*lengths: int, device: torch.device) -> Iterator[Tensor]:
    """int32 tensors of some lengths, made by one launch, each aligned."""
    unit = ALIGNED_BYTES // 4
    starts = [*itertools.accumulate((cdiv(each, unit) * unit for each in lengths), initial=0)]
    zeros = torch.zeros(starts[-1], dtype=torch.int32, device=device)
    for start, length in zip(starts[:-1], lengths, strict=True):
        yield zeros[start : start + length]


def _tiled(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


@cache
def _row_adapters(chunk_size: int) -> Variant:
    segments = ROWS_AT_ONCE // chunk_size
    return Variant(row_adapters_kernel, {"SEGMENTS": segments, "BLOCK_M": chunk_size})


@cache
def _clean_weights(width: int, rank: int) -> Variant:
    return Variant(clean_weights_kernel, {"N": width, "R": rank, "BLOCK": CLEANED_AT_ONCE})


@cache
def _tile_terms(rank: int, slices: int) -> Variant:
    constants = {"R": rank, "S": slices, "BLOCK_M": BLOCK_M, "BLOCK_N": TERMS_N, "num_warps": 8}
    return Variant(tile_terms_kernel, constants)


@cache
def _linear(rank: int, slices: int) -> Variant:
    blocks = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    return Variant(linear_kernel, {"S": slices, "R": rank, **blocks, **_OPTIONS})
