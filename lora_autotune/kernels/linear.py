"""A layer's own product and its LoRA in one: the sum over K goes on over the rank."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_at(place, tiles, column_tiles, tile_order, BAND: tl.constexpr):
    """(tile of rows, tile of columns): bands of BAND tiles of rows, column by column (the L2)."""
    band = place // (BAND * column_tiles)
    first = band * BAND
    height = tl.minimum(tiles - first, BAND)
    within = place % (BAND * column_tiles)
    return tl.load(tile_order + first + within % height), within // height


@triton.jit
def _make_tile(
    x, weight, terms, lora_b, output, tile_adapters, slice_offsets, tile, column_tile, rows, width,
    steps, slots, S: tl.constexpr, R: tl.constexpr, MIXED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the output. MIXED: it has several adapters; else one, or one that is not there.

    What of a tile is outside its matrix is loaded as 0, and not stored.
    """
    STEPS_OF_RANK: tl.constexpr = (R + BLOCK_K - 1) // BLOCK_K
    row, column = tile * BLOCK_M, column_tile * BLOCK_N
    found = tile_adapters + tile * (1 + slots) + 1
    first_adapter = tl.load(found)
    several = 1
    if MIXED:
        several = tl.load(found - 1)
    slice_start = 0
    for i in tl.static_range(1, S):
        slice_start += (tl.load(slice_offsets + i).to(tl.int32) <= column).to(tl.int32) * R
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(steps + several * STEPS_OF_RANK):
        left, right = x, weight
        left_row, left_column = row, step * BLOCK_K
        right_row, right_column = column, step * BLOCK_K
        if step >= steps:
            beyond = step - steps
            adapter = first_adapter
            if MIXED:
                adapter = tl.load(found + beyond // STEPS_OF_RANK)
            k = beyond % STEPS_OF_RANK * BLOCK_K
            left, right = terms, lora_b
            left_row, left_column = adapter * rows + row, slice_start + k
            right_row, right_column = adapter * width + column, k
        left_tile = left.load([left_row, left_column])
        sums = tl.dot(left_tile, right.load([right_row, right_column]).T, sums)
    # In halves, so that the next tile's pipeline has the room.
    halves = tl.permute(tl.reshape(sums, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
    first_half, second_half = tl.split(halves)
    output.store([row, column], first_half.to(output.dtype))
    output.store([row, column + BLOCK_N // 2], second_half.to(output.dtype))


@triton.jit(do_not_specialize=["rows", "width", "depth", "slots"])
def linear_kernel(
    x,
    weight,
    terms,
    lora_b,
    output,
    tile_adapters,
    tile_order,
    counts,
    slice_offsets,
    rows,
    width,
    depth,
    slots,
    S: tl.constexpr,
    R: tl.constexpr,
    BAND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``output = x @ weight.T``, and for each adapter of a row ``+= terms[adapter] @ lora_b.T``.

    Shapes, as tensor descriptors: x (s, K), weight (N, K), terms (slots * s, S * R), lora_b (slots
    * N, R), output (s, N) in tiles of half the columns; rows s, width N, depth K; the launch grid
    is (programs). tile_adapters, tile_order and counts: see
    :mod:`lora_autotune.kernels.tile_terms`. Slices begin at multiples of BLOCK_N. All R columns of
    lora_b are multiplied by all rows of a tile: it is what
    :mod:`lora_autotune.kernels.clean_weights` makes of it.

    Tiles with one adapter at most, nearly all of them, are as deep as each other: that lets the
    compiler load the next tile while one is stored (``flatten``). Those with more come after them.
    """
    column_tiles = tl.cdiv(width, BLOCK_N)
    steps = tl.cdiv(depth, BLOCK_K)
    program, programs = tl.program_id(0), tl.num_programs(0)
    tiles = tl.load(counts)
    for place in tl.range(program, tiles * column_tiles, programs, flatten=True):
        tile, column_tile = _tile_at(place, tiles, column_tiles, tile_order, BAND)
        _make_tile(
            x, weight, terms, lora_b, output, tile_adapters, slice_offsets, tile, column_tile, rows,
            width, steps, slots, S, R, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    mixed = tl.load(counts + 1)
    begin = (program + programs - tiles * column_tiles % programs) % programs
    for place in range(begin, mixed * column_tiles, programs):
        mixed_order = tile_order + tl.cdiv(rows, BLOCK_M)
        tile, column_tile = _tile_at(place, mixed, column_tiles, mixed_order, BAND)
        _make_tile(
            x, weight, terms, lora_b, output, tile_adapters, slice_offsets, tile, column_tile, rows,
            width, steps, slots, S, R, True, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
