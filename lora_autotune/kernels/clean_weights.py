"""B of the adapters in a batch, such that nothing of it can reach another adapter's rows.

In a layer's own product a tile of rows is multiplied by the whole B of every adapter that one of
them has: what is not the row's own is multiplied by 0, and 0 times infinity is none.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clean_weights_kernel(
    lora_b,
    cleaned,
    broken,
    lora_ranks,
    N: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``cleaned = lora_b`` (slots, N, R), 0 from an adapter's rank on and where it is not finite.

    The launch grid is (blocks of BLOCK elements, slots). broken (slots,), zero before: 1 where
    something within the rank is not finite. Nothing is written of slots without an adapter.
    """
    slot = tl.program_id(1)
    rank = tl.load(lora_ranks + slot)
    if rank > 0:
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = place < N * R
        own = slot.to(tl.int64) * (N * R)
        weights = tl.load(lora_b + own + place, mask=inside, other=0.0)
        weights = tl.where(place % R < rank, weights, 0.0)
        finite = tl.abs(weights.to(tl.float32)) < float("inf")  # nor is what is no number
        tl.store(cleaned + own + place, tl.where(finite, weights, 0.0), mask=inside)
        if tl.sum((~finite).to(tl.int32), axis=0) > 0:
            tl.store(broken + slot, 1)
