"""The shrink kernel (LoRA A): each row times its adapter's A matrices, all fused slices at once."""

from __future__ import annotations

import triton
import triton.language as tl

from lora_autotune.kernels.overlap import after_previous_launch
from lora_autotune.kernels.prefetch import fetch_depth
from lora_autotune.kernels.segments import inner_run, rows_beyond_grid, rows_of_run


@triton.jit
def _part_of_sum(part, parts, K: tl.constexpr, BLOCK_K: tl.constexpr):
    share = tl.cdiv(tl.cdiv(K, BLOCK_K), parts) * BLOCK_K
    return part * share, tl.minimum(part * share + share, K)


@triton.jit
def _sums(
    x_rows,
    live,
    weights,
    column,
    begin,
    end,
    K: tl.constexpr,
    N: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """TOGETHER tiles of sums over K from ``begin`` to ``end``."""
    WHOLE: tl.constexpr = N % (BLOCK_N * TOGETHER) == 0
    n = column + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_tile = x_rows[:, None] + (begin + k)[None, :]
    w_tile = weights + n[None, :] * K + (begin + k)[:, None]
    sums = ()
    for _ in tl.static_range(TOGETHER):
        sums = sums + (tl.zeros((live.shape[0], BLOCK_N), dtype=tl.float32),)  # noqa: RUF005 - Triton
    for first in range(begin, end, BLOCK_K):
        x_mask = live[:, None]
        if K % BLOCK_K != 0:
            x_mask &= first + k[None, :] < K
        x_part = tl.load(x_tile, mask=x_mask, other=0.0)
        added = ()
        for i in tl.static_range(TOGETHER):
            if K % BLOCK_K != 0 or not WHOLE:
                w_mask = (n[None, :] + i * BLOCK_N < N) & (first + k[:, None] < K)
                w = tl.load(w_tile + i * BLOCK_N * K, mask=w_mask, other=0.0)
            else:
                w = tl.load(w_tile + i * BLOCK_N * K)
            added = added + (tl.dot(x_part, w, sums[i]),)  # noqa: RUF005 - Triton
        sums = added
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return sums


@triton.jit
def _spread_sums(
    x_rows,
    live,
    weights,
    column,
    begin,
    end,
    K: tl.constexpr,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of such sums, of which each of four warps adds up a quarter of every step.

    Few rows are one row of multiplications, each of which waits for the one before.
    """
    QUARTER: tl.constexpr = BLOCK_K // 4
    quarter = tl.arange(0, 4)[:, None, None] * QUARTER
    k_of_x = quarter + tl.arange(0, QUARTER)[None, None, :]
    k_of_w = quarter + tl.arange(0, QUARTER)[None, :, None]
    n = column + tl.arange(0, BLOCK_N)[None, None, :]
    x_tile = x_rows[None, :, None] + begin + k_of_x
    w_tile = weights + n * K + begin + k_of_w
    sums = tl.zeros((4, live.shape[0], BLOCK_N), dtype=tl.float32)
    for first in range(begin, end, BLOCK_K):
        x_mask = live[None, :, None]
        if K % BLOCK_K != 0:
            x_mask &= first + k_of_x < K
        x_part = tl.load(x_tile, mask=x_mask, other=0.0)
        if K % BLOCK_K != 0 or N % BLOCK_N != 0:
            w = tl.load(w_tile, mask=(n < N) & (first + k_of_w < K), other=0.0)
        else:
            w = tl.load(w_tile)
        sums = tl.dot(x_part, w, sums)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    # Split in halves, sums meet in registers after one exchange. tl.sum takes several.
    pairs = tl.reshape(tl.permute(sums, (1, 2, 0)), (live.shape[0], BLOCK_N, 2, 2))
    even, odd = tl.split(pairs)
    first_half, second_half = tl.split(even + odd)
    return first_half + second_half


@triton.jit
def _shrink_rows(
    x,
    weights,
    output,
    partials,
    arrivals,
    permutation,
    start,
    length,
    adapter,
    rank,
    column,
    part,
    parts,
    slot,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    SPLIT: tl.constexpr,
    SPREAD: tl.constexpr,
    TOGETHER: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """TOGETHER tiles of ROWS x BLOCK_N for one adapter's rows; with SPLIT, a part of their sums."""
    N: tl.constexpr = S * R
    m = tl.arange(0, ROWS)
    n = column + tl.arange(0, BLOCK_N)
    live = m < length
    rows = tl.load(permutation + start + m, mask=live, other=0).to(tl.int64)
    has_work = (length > 0) & (column < rank * S)
    own = weights + adapter * (N * K)
    begin, end = 0, K
    if SPLIT:
        begin, end = _part_of_sum(part, parts, K, BLOCK_K)
    if AHEAD and has_work:
        fetch_depth(own, column, begin, end, K, N, BLOCK_N, BLOCK_K)
    after_previous_launch(OVERLAP)
    if has_work:
        x_rows = x + rows * K
        if SPREAD:
            sums = (_spread_sums(x_rows, live, own, column, begin, end, K, N, BLOCK_N, BLOCK_K),)
        else:
            sums = _sums(x_rows, live, own, column, begin, end, K, N, TOGETHER, BLOCK_N, BLOCK_K)
        for i in tl.static_range(TOGETHER):
            mask = live[:, None]
            if N % (BLOCK_N * TOGETHER) != 0:
                mask &= n[None, :] + i * BLOCK_N < N
            tile = output + rows[:, None] * N + n[None, :] + i * BLOCK_N
            if SPLIT:
                # Who comes last adds the parts up, in their order: two launches give equal bits.
                shares = partials + (rows * parts)[:, None] * N + n[None, :]
                tl.store(shares + part * N, sums[i], mask=mask)
                tl.debug_barrier()
                if tl.atomic_add(arrivals + slot, 1, sem="acq_rel") == parts - 1:
                    total = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
                    for j in range(parts):
                        total += tl.load(shares + j * N, mask=mask, other=0.0, cache_modifier=".cg")
                    tl.store(tile, total.to(output.dtype.element_ty), mask=mask)
                    tl.store(arrivals + slot, 0)
            else:
                tl.store(tile, sums[i].to(output.dtype.element_ty), mask=mask)


@triton.jit
def _shrink_run(
    segment,
    piece,
    x,
    weights,
    output,
    partials,
    arrivals,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    num_segs,
    parts,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    GROUP: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPREAD: tl.constexpr,
    TOGETHER: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """This program's tiles of the run that begins at a segment, or of its piece."""
    part = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N * TOGETHER
    start, length = rows_of_run(
        seg_indptr, weight_indices, segment, piece, num_segs, GROUP, PIECES, BLOCK_M
    )
    used = segment < num_segs
    adapter = tl.load(weight_indices + segment, mask=used, other=0).to(tl.int64)
    rank = tl.load(lora_ranks + adapter)
    slot = (segment * PIECES + piece) * tl.num_programs(1) + tl.program_id(1)
    _shrink_rows(
        x, weights, output, partials, arrivals, permutation, start, length, adapter, rank,
        column, part, parts, slot, K, R, S, SPLIT, SPREAD, TOGETHER, AHEAD, OVERLAP,
        GROUP * BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_segs", "inner", "parts"])
def shrink_kernel(
    x,
    weights,
    output,
    partials,
    arrivals,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    num_segs,
    inner,
    parts,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    ROUNDS: tl.constexpr,
    GROUP: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPREAD: tl.constexpr,
    TOGETHER: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of ``output[rows] = x[rows] @ weights[adapter].T`` for GROUP consecutive segments.

    Shapes: x (s, K), weights (adapters, S * R, K), output (s, S * R); the launch grid is (parts,
    TOGETHER column tiles each, groups of segments or PIECES of one, and ``inner`` programs for the
    runs that begin within a group). An adapter of rank r fills columns [0, S * r).
    Its last tile is written whole: columns up to S * R hold no meaning, and a bound that the
    compiler does not know would cost the 16-byte stores. With SPLIT the sum over K is cut into
    ``parts``; partials (s, parts, S * R) float32 holds them, arrivals (segments * PIECES * tiles)
    int32 counts who has come, and is zero before and after; TOGETHER is 1 then. SPREAD: warps share
    each sum among them; TOGETHER is 1, too. ROUNDS: the grid may cover fewer segments than there
    are. AHEAD: the weights are on their way to the L2 before the launch in front has ended.
    OVERLAP: see :mod:`lora_autotune.kernels.overlap`.
    """
    group = tl.program_id(2)
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
            _shrink_run(
                segment, piece, x, weights, output, partials, arrivals, seg_indptr,
                weight_indices, lora_ranks, permutation, num_segs, parts, K, R, S, GROUP, PIECES,
                SPLIT, SPREAD, TOGETHER, AHEAD, OVERLAP, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        _shrink_run(
            group // PIECES, group % PIECES, x, weights, output, partials, arrivals, seg_indptr,
            weight_indices, lora_ranks, permutation, num_segs, parts, K, R, S, GROUP, PIECES,
            SPLIT, SPREAD, TOGETHER, AHEAD, OVERLAP, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
