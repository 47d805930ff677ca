"""What each tile of rows adds to a layer's output, made ready for the layer's own product.

A layer's rows are in the order of the matrices there, not grouped by adapter. So of every tile of
consecutive rows it is found out which adapters it has, and shrink's sums are laid out again for
each of them: its terms.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOBODY = tl.constexpr(1 << 30)
"""Comes after every adapter."""


@triton.jit(do_not_specialize=["num_segs"])
def row_adapters_kernel(
    row_adapters,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    num_segs,
    SEGMENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """``row_adapters[row] = slot + 1`` (s,) of every row with an adapter; others stay as they are.

    The launch grid is (groups of SEGMENTS); none of those has more than BLOCK_M rows.
    """
    segment = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    used = segment < num_segs
    start = tl.load(seg_indptr + segment, mask=used, other=0)
    end = tl.load(seg_indptr + segment + 1, mask=used, other=0)
    adapter = tl.load(weight_indices + segment, mask=used, other=0)
    rank = tl.load(lora_ranks + adapter, mask=used, other=0)
    end = tl.where(rank > 0, end, start)
    place = start[:, None] + tl.arange(0, BLOCK_M)[None, :]
    mine = place < end[:, None]
    rows = tl.load(permutation + place, mask=mine, other=0)
    slots = tl.broadcast_to(adapter[:, None] + 1, (SEGMENTS, BLOCK_M))
    tl.store(row_adapters + rows, slots, mask=mine)


@triton.jit(do_not_specialize=["rows", "slots"])
def tile_terms_kernel(
    x,
    terms,
    row_adapters,
    tile_adapters,
    tile_order,
    counts,
    broken,
    lora_ranks,
    scalings,
    rows,
    slots,
    R: tl.constexpr,
    S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``terms[adapter, row, i * R + k] = scaling * x[row, i * rank + k]``, where there is such a k.

    Shapes: x (s, S * R) is what shrink wrote, terms (slots, s, S * R); the launch grid is (tiles of
    BLOCK_M rows, column tiles). Of each adapter that a tile has, all its rows and columns are
    written: 0 where a row is another's, and from the rank on. Nothing is written of others.
    row_adapters (s,): slot + 1, 0 for none. tile_adapters (tiles, 1 + slots): how many, and which,
    or one that is not there if there are none. tile_order (2, tiles): the tiles with at most one
    adapter, and those with more; counts (2,), zero before: how many those are. broken (slots,): 1
    where an adapter's B is not finite: then its rows are not, either, for nobody must take them for
    sound.
    """
    N: tl.constexpr = S * R
    tile = tl.program_id(0)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.load(row_adapters + row, mask=row < rows, other=0)
    own = tl.where(own > 0, own - 1, NOBODY)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    whole = (row[:, None] < rows) & (n[None, :] < N)
    line = row.to(tl.int64)[:, None] * N
    found = tile_adapters + tile * (1 + slots)
    several = 0
    adapter = tl.min(own, axis=0)
    tl.store(found + 1, tl.minimum(adapter, slots))
    while adapter < NOBODY:
        several += 1
        tl.store(found + several, adapter)
        rank = tl.load(lora_ranks + adapter)
        scaling = tl.load(scalings + adapter).to(tl.float32)
        scaling = tl.where(tl.load(broken + adapter) > 0, float("nan"), scaling)
        mine = (own == adapter)[:, None] & whole
        if rank == R:
            sums = tl.load(x + line + n[None, :], mask=mine, other=0.0)
        else:
            k = n % R
            source = n // R * rank + k
            sums = tl.load(x + line + source[None, :], mask=mine & (k[None, :] < rank), other=0.0)
        product = tl.where(mine, sums.to(tl.float32) * scaling, 0.0)
        place = terms + adapter.to(tl.int64) * rows * N + line + n[None, :]
        tl.store(place, product.to(x.dtype.element_ty), mask=whole)
        adapter = tl.min(tl.where(own > adapter, own, NOBODY), axis=0)
    if tl.program_id(1) == 0:
        tl.store(found, several)
        mixed = tl.where(several > 1, 1, 0)
        place = tl.atomic_add(counts + mixed, 1)
        tl.store(tile_order + mixed * tl.num_programs(0) + place, tile)
