"""The shrink kernel (LoRA A): each row times its adapter's A matrices, all fused slices at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_segs"])
def shrink_kernel(
    x,
    weights,
    output,
    seg_indptr,
    weight_indices,
    lora_ranks,
    permutation,
    num_segs,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One BLOCK_M x BLOCK_N tile of ``output[rows] = x[rows] @ weights[adapter].T``.

    Shapes: x (s, K), weights (adapters, S * R, K), output (s, S * R); programs run over
    (segment, column tile), tiles fastest. An adapter of rank r fills columns [0, S * r). Its last
    tile is written whole: columns up to S * R hold no meaning, and a bound that the compiler does
    not know would cost the 16-byte stores.
    """
    N: tl.constexpr = S * R
    TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    segment = tl.program_id(0) // TILES
    column = tl.program_id(0) % TILES * BLOCK_N
    if segment >= num_segs:
        return
    start = tl.load(seg_indptr + segment)
    length = tl.load(seg_indptr + segment + 1) - start
    if length <= 0:
        return
    adapter = tl.load(weight_indices + segment).to(tl.int64)
    if column >= tl.load(lora_ranks + adapter) * S:
        return

    m = tl.arange(0, BLOCK_M)
    n = column + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    live = m < length
    rows = tl.load(permutation + start + m, mask=live, other=0).to(tl.int64)
    x_tile = x + rows[:, None] * K + k[None, :]
    w_tile = weights + adapter * (N * K) + n[None, :] * K + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        x_mask = live[:, None]
        if K % BLOCK_K != 0:
            x_mask &= first + k[None, :] < K
        if K % BLOCK_K != 0 or N % BLOCK_N != 0:
            w = tl.load(w_tile, mask=(n[None, :] < N) & (first + k[:, None] < K), other=0.0)
        else:
            w = tl.load(w_tile)
        sums = tl.dot(tl.load(x_tile, mask=x_mask, other=0.0), w, sums)
        x_tile += BLOCK_K
        w_tile += BLOCK_K

    mask = live[:, None]
    if N % BLOCK_N != 0:
        mask &= n[None, :] < N
    tile = output + rows[:, None] * N + n[None, :]
    tl.store(tile, sums.to(output.dtype.element_ty), mask=mask)
