"""The expand kernel (LoRA B): adds each row's scaled LoRA product to the layer's output."""

from __future__ import annotations

import triton
import triton.language as tl

from lora_autotune.kernels.overlap import after_previous_launch
from lora_autotune.kernels.prefetch import fetch_tile, fetch_weights
from lora_autotune.kernels.segments import inner_run, rows_beyond_grid, rows_of_run


@triton.jit
def _load_weights(tile, k, n_mask, rank, bound, BY_EIGHTS: tl.constexpr):
    """The (BLOCK_K, BLOCK_N) tile at ``tile``, zero from the rank on."""
    w = tl.load(tile, mask=n_mask[None, :] & (k[:, None] < bound), other=0.0)
    if BY_EIGHTS:
        w = tl.where(k[:, None] < rank, w, 0.0)
    return w


@triton.jit
def _add_product(
    x,
    numbers,
    m,
    w_adapter,
    out_rows,
    live,
    scaling,
    slice_offsets,
    rank,
    column,
    end,
    first_slice,
    end_slice,
    OUTPUT_DIM: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PREFETCH: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Walk the output tiles of one program, slice by slice (nearly always one), x kept in place.

    PREFETCH: an output tile is on its way to the L2 while the one before is worked off.
    ``numbers`` holds the rows' numbers from m = 0 on. They are read once more for each slice: x's
    addresses, kept for the next slice, would take registers from the tiles.
    RAGGED: the rank is no multiple of 8, which a load of 16 bytes holds. Its weights are loaded by
    whole eights all the same, where R has whole eights, and masked afterwards.
    """
    k = tl.arange(0, BLOCK_K)
    BY_EIGHTS: tl.constexpr = RAGGED and R % 8 == 0
    bound = rank
    if BY_EIGHTS:
        bound = (rank + 7) // 8 * 8
    for i in range(first_slice, end_slice):
        slice_start = 0
        slice_end = OUTPUT_DIM
        if S > 1:
            slice_start = tl.load(slice_offsets + i).to(tl.int32)
            slice_end = tl.load(slice_offsets + i + 1).to(tl.int32)
        rows = tl.load(numbers + m, mask=live, other=0).to(tl.int64)
        x_slice = x + rows * (S * R) + i * rank
        if R <= BLOCK_K:
            x_tile = tl.load(
                x_slice[:, None] + k[None, :],
                mask=live[:, None] & (k[None, :] < rank),
                other=0.0,
            )
        first_tile = tl.maximum(slice_start - column, 0) // BLOCK_N
        end_tile = tl.cdiv(tl.minimum(slice_end, end) - column, BLOCK_N)
        for tile in range(first_tile, end_tile):
            n = column + tile * BLOCK_N + tl.arange(0, BLOCK_N)
            out_tile = out_rows[:, None] + n[None, :]
            mask = live[:, None]
            if OUTPUT_DIM % BLOCK_N != 0:
                mask &= n[None, :] < OUTPUT_DIM
            old = tl.load(out_tile, mask=mask, other=0.0)
            if PREFETCH and tile + 1 < end_tile:
                fetch_tile(out_rows, column + (tile + 1) * BLOCK_N, OUTPUT_DIM, BLOCK_N)
            in_slice = (n >= slice_start) & (n < slice_end)
            w_tile = w_adapter + n[None, :] * R + k[:, None]
            if R <= BLOCK_K:
                sums = tl.dot(x_tile, _load_weights(w_tile, k, in_slice, rank, bound, BY_EIGHTS))
            else:
                sums = tl.zeros((live.shape[0], BLOCK_N), dtype=tl.float32)
                for first in range(0, R, BLOCK_K):
                    x_part = tl.load(
                        x_slice[:, None] + first + k[None, :],
                        mask=live[:, None] & (first + k[None, :] < rank),
                        other=0.0,
                    )
                    w = _load_weights(w_tile + first, first + k, in_slice, rank, bound, BY_EIGHTS)
                    sums = tl.dot(x_part, w, sums)
            new = old.to(tl.float32) + scaling * sums
            tl.store(out_tile, new.to(old.dtype), mask=mask)


@triton.jit
def _run_at(
    segment, piece, seg_indptr, weight_indices, lora_ranks, permutation, scalings, num_segs, m,
    GROUP: tl.constexpr, PIECES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A run: (its first row in permuted order, which of m are rows, rows, adapter, rank, scaling).

    Of a long segment, that of a piece. The rank is 0 where there is nothing to do.
    """
    start, length = rows_of_run(
        seg_indptr, weight_indices, segment, piece, num_segs, GROUP, PIECES, BLOCK_M
    )
    adapter = tl.load(weight_indices + segment, mask=segment < num_segs, other=0).to(tl.int64)
    rank = tl.load(lora_ranks + adapter)
    scaling = tl.load(scalings + adapter).to(tl.float32)
    live = m < length
    rows = tl.load(permutation + start + m, mask=live, other=0).to(tl.int64)
    return start, live, rows, adapter, tl.where(length > 0, rank, 0), scaling


@triton.jit
def _expand_run(
    segment,
    piece,
    x,
    weights,
    output,
    output_stride,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    scalings,
    slice_offsets,
    num_segs,
    column,
    column_end,
    first_slice,
    end_slice,
    OUTPUT_DIM: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    GROUP: tl.constexpr,
    PIECES: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
    PREFETCH: tl.constexpr,
    RAGGED_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """This program's tiles of the run that begins at a segment, or of its piece.

    The first output tile is on its way to the L2 before the launch in front has ended, even if that
    one still writes it: nothing is read yet.
    """
    m = tl.arange(0, GROUP * BLOCK_M)
    start, live, rows, adapter, rank, scaling = _run_at(
        segment, piece, seg_indptr, weight_indices, lora_ranks, permutation, scalings, num_segs, m,
        GROUP, PIECES, BLOCK_M,
    )  # fmt: skip
    if AHEAD > 0 and rank > 0:
        own = weights + adapter * (OUTPUT_DIM * R)
        fetch_weights(own, column * R, AHEAD, BLOCK_N * R, OUTPUT_DIM * R)
    if PREFETCH and rank > 0:
        fetch_tile(output + rows * output_stride, column, OUTPUT_DIM, BLOCK_N)
    after_previous_launch(OVERLAP)
    # The multiplication tells the compiler that masks and offsets made from the rank are
    # aligned. tl.multiple_of would tell it so in the other branch as well.
    if rank > 0:
        if rank % 8 == 0:
            _add_product(
                x, permutation + start, m, weights + adapter * (OUTPUT_DIM * R),
                output + rows * output_stride, live, scaling, slice_offsets, rank // 8 * 8, column,
                column_end, first_slice, end_slice, OUTPUT_DIM, R, S, PREFETCH, False, BLOCK_N,
                BLOCK_K,
            )  # fmt: skip
        else:
            # x comes element by element, so of a tall tile all its columns at once. Small tiles
            # keep this branch's code, and compiling, small. Where they are of many rows, what is
            # read anew takes no register from the other branch; the loop, of one round, hides from
            # the compiler that it is the same.
            TALL: tl.constexpr = GROUP * BLOCK_M >= 64
            HEAVY: tl.constexpr = TALL and BLOCK_K >= RAGGED_K
            NARROW: tl.constexpr = 64 if HEAVY else (32 if TALL else BLOCK_N)
            more = rank > 0
            while more:
                if HEAVY:
                    start, live, rows, adapter, rank, scaling = _run_at(
                        segment, piece, seg_indptr, weight_indices, lora_ranks, permutation,
                        scalings, num_segs, m, GROUP, PIECES, BLOCK_M,
                    )  # fmt: skip
                _add_product(
                    x, permutation + start, m, weights + adapter * (OUTPUT_DIM * R),
                    output + rows * output_stride, live, scaling, slice_offsets, rank, column,
                    column_end, first_slice, end_slice, OUTPUT_DIM, R, S, PREFETCH, True,
                    BLOCK_N if BLOCK_N < NARROW else NARROW,
                    BLOCK_K if BLOCK_K > RAGGED_K or not TALL else RAGGED_K,
                )  # fmt: skip
                more = rank < 0


@triton.jit(do_not_specialize=["num_segs", "inner", "walk"])
def expand_kernel(
    x,
    weights,
    output,
    output_stride,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    scalings,
    slice_offsets,
    num_segs,
    inner,
    walk,
    OUTPUT_DIM: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    ROUNDS: tl.constexpr,
    GROUP: tl.constexpr,
    PIECES: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
    PREFETCH: tl.constexpr,
    RAGGED_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``output[rows] += scaling * x[rows, slice] @ weights[adapter, slice].T``, some tiles of it.

    Shapes: x (s, S * R), weights (adapters, OUTPUT_DIM, R), output (s, >= OUTPUT_DIM) with inner
    stride 1; the launch grid is (spans of ``walk`` tiles, 1, groups of GROUP segments or
    PIECES of one, and ``inner`` programs for the runs that begin within a group).
    Tiles are cut at multiples of BLOCK_N whatever the slices' widths, so that none is empty and
    every access is aligned; a tile that a slice boundary crosses is visited once for each
    slice, with the rows of ``weights`` outside the slice masked. A single slice is all of
    OUTPUT_DIM. An adapter of rank r reads slice i
    of x at columns [i * r, (i + 1) * r). AHEAD: so many lines of the first tile's weights are on
    their way to the L2 before the launch in front has ended. OVERLAP: see
    :mod:`lora_autotune.kernels.overlap`. PREFETCH: see :mod:`lora_autotune.kernels.prefetch`.
    RAGGED_K: least BLOCK_K of tall tiles where the rank is no multiple of 8.
    """
    column = tl.program_id(0) * walk * BLOCK_N
    column_end = tl.minimum(column + walk * BLOCK_N, OUTPUT_DIM)
    first_slice = 0
    end_slice = 1
    for i in tl.static_range(1, S):
        boundary = tl.load(slice_offsets + i).to(tl.int32)
        first_slice += (boundary <= column).to(tl.int32)
        end_slice += (boundary < column_end).to(tl.int32)

    group = tl.program_id(2)
    if GROUP * BLOCK_M >= 64:  # tall; the layer wrote its last rows last: the L2 has those still
        group = tl.num_programs(2) - 1 - group
    if ROUNDS or GROUP > 1:
        groups = tl.num_programs(2) - inner
        is_inner = group >= groups
        place = group - groups
        beyond = False
        if ROUNDS:
            beyond = rows_beyond_grid(seg_indptr, num_segs, groups // PIECES * GROUP)
        more = group >= 0
        while more:
            segment, piece = group // PIECES * GROUP, group % PIECES
            group += groups
            more = beyond & (group // PIECES * GROUP < num_segs)
            if GROUP > 1:  # noqa: SIM102 - known to the compiler, the other is not
                if is_inner:
                    segment, runs = inner_run(weight_indices, num_segs, place, GROUP)
                    place += inner
                    more = place < runs
            _expand_run(
                segment, piece, x, weights, output, output_stride, seg_indptr, weight_indices,
                lora_ranks, permutation, scalings, slice_offsets, num_segs, column, column_end,
                first_slice, end_slice, OUTPUT_DIM, R, S, GROUP, PIECES, AHEAD, OVERLAP, PREFETCH,
                RAGGED_K, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        _expand_run(
            group // PIECES, group % PIECES, x, weights, output, output_stride, seg_indptr,
            weight_indices, lora_ranks, permutation, scalings, slice_offsets, num_segs, column,
            column_end, first_slice, end_slice, OUTPUT_DIM, R, S, GROUP, PIECES, AHEAD, OVERLAP,
            PREFETCH, RAGGED_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
