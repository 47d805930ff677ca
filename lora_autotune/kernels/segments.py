"""Which segments a program works off: several short ones as one tall tile, where it can."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def group_of_segments(group, weight_indices, num_segs, GROUP: tl.constexpr):
    """(first segment of a group, runs of one adapter that the group is worked off in).

    One run where all segments have one adapter; else as many as there are segments. Segments are
    contiguous in permuted order, so that those of one run are one range of rows.
    """
    first = group * GROUP
    runs = 1
    if GROUP > 1:
        g = first + tl.arange(0, GROUP)
        inside = g < num_segs
        adapters = tl.load(weight_indices + g, mask=inside, other=0)
        own = tl.load(weight_indices + first, mask=first < num_segs, other=0)
        if tl.sum((inside & (adapters != own)).to(tl.int32), axis=0) > 0:
            runs = tl.minimum(GROUP, num_segs - first)
    return first, runs


@triton.jit
def rows_of_segment(seg_indptr, segment, first, runs, num_segs, GROUP: tl.constexpr):
    """(first row in permuted order, rows) of a segment, or of its group where that is one run."""
    end = segment + 1
    if GROUP > 1:
        end = tl.where(runs > 1, end, tl.minimum(first + GROUP, num_segs))
    start = tl.load(seg_indptr + segment)
    return start, tl.where(segment < num_segs, tl.load(seg_indptr + end) - start, 0)


@triton.jit
def rows_beyond_grid(seg_indptr, num_segs, GROUP: tl.constexpr):
    """Whether segments behind those that the launch grid covers hold rows.

    The grid covers what a batch can have whose adapters' runs are cut into whole chunks; a batch
    that is cut finer is worked off in rounds.
    """
    covered = tl.minimum(tl.num_programs(2) * GROUP, num_segs)
    return tl.load(seg_indptr + covered) < tl.load(seg_indptr + num_segs)
