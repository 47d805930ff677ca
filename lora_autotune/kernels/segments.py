"""Which rows a program works off: several short segments as one tall tile, where it can.

Segments are contiguous in permuted order. GROUP of them are a group, and those of a group that
follow each other and have one adapter are a run: one range of rows, one tile. A program takes the
run that a group begins with. Where adapters change within a group another run begins, an inner one;
those are few, and have programs of their own, behind those of the groups (expand's tall tiles are
worked off from the last to the first). A segment that is longer than a tile has PIECES of ROWS
rows, with a program for each; it is a group of its own then.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inner_run(weight_indices, num_segs, place, GROUP: tl.constexpr):
    """(where the inner run at a place begins, how many there are); num_segs: there is none."""
    SCAN: tl.constexpr = 1024
    found = num_segs
    runs = 0
    for first in range(0, num_segs, SCAN):
        segment = first + tl.arange(0, SCAN)
        follows = (segment < num_segs) & (segment % GROUP != 0)
        own = tl.load(weight_indices + segment, mask=follows, other=0)
        before = tl.load(weight_indices + segment - 1, mask=follows, other=0)
        begins = (own != before).to(tl.int32)
        here = (begins == 1) & (runs + tl.cumsum(begins, axis=0) - 1 == place)
        found = tl.minimum(found, tl.min(tl.where(here, segment, num_segs), axis=0))
        runs += tl.sum(begins, axis=0)
    return found, runs


@triton.jit
def rows_of_run(
    seg_indptr, weight_indices, segment, piece, num_segs,
    GROUP: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(first row in permuted order, rows) of the run that begins at a segment, or of its piece.

    Behind the last rows there are less than none.
    """
    used = segment < num_segs
    end = segment + 1
    if GROUP > 1:
        first = segment // GROUP * GROUP
        stop = tl.minimum(first + GROUP, num_segs)
        g = first + tl.arange(0, GROUP)
        behind = (g > segment) & (g < stop)
        adapters = tl.load(weight_indices + g, mask=behind, other=0)
        own = tl.load(weight_indices + segment, mask=used, other=0)
        end = tl.min(tl.where(behind & (adapters != own), g, stop), axis=0)
    start = tl.load(seg_indptr + segment)
    length = tl.where(used, tl.load(seg_indptr + tl.where(used, end, segment)) - start, 0)
    if PIECES > 1:
        start += piece * ROWS
        length = tl.minimum(length - piece * ROWS, ROWS)
    return start, length


@triton.jit
def rows_beyond_grid(seg_indptr, num_segs, segments):
    """Whether segments behind the first few, which the launch grid covers, hold rows.

    The grid covers what a batch can have whose adapters' runs are cut into whole chunks; a batch
    that is cut finer is worked off in rounds.
    """
    covered = tl.minimum(segments, num_segs)
    return tl.load(seg_indptr + covered) < tl.load(seg_indptr + num_segs)
