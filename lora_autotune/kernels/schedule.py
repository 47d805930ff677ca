"""How a launch's work maps to programs: what its config does not say, and its batch decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_autotune.kernels.batch import Batch

GROUPED_ROWS = 64
"""Rows that the segments of one program have together, where there are enough of them."""

TALL_COLUMNS, LEAST_DEPTH = 64, 32
"""Columns that a tall tile of shrink has at least, and the least BLOCK_K that is left to it."""

MAX_STEP = 24 * 1024
"""Most elements of x and of the weights in one step over K: more, and no pipeline fits."""

MAX_TOGETHER = 4
"""Most column tiles that one shrink program sums up together."""

MAX_WALK = 8
"""Most output tiles that one expand program walks with its x tile kept."""

MAX_PARTS = 16
"""Most parts that shrink's sum over K is cut into."""

PADDED = 1.5
"""A buffer this many times as long as the segments that are likely is not covered whole: to go on
in rounds costs registers."""

LEAST_SPLIT, LEAST_PART = 2048, 512
"""Least K that is cut into parts, and least K of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Chosen without asking the device, so that a launch can be part of a CUDA graph.

    Attributes:
        group: consecutive segments that one program takes together, as one tile if one adapter has
            them all.
        widened: how much wider, and less deep, a tile of shrink is than its config says.
        together: column tiles of shrink that one program sums up at once, from one x tile.
        parts: programs among which shrink's sum over K is divided.
        walk: output tiles of expand that one program walks.
        rounds: the grid covers the segments of a batch that is cut into whole chunks, not the whole
            buffer; programs go on to those behind, should there be any.
    """

    group: int = 1
    widened: int = 1
    together: int = 1
    parts: int = 1
    walk: int = 1
    rounds: bool = False


def cdiv(length: int, block: int) -> int:
    """Blocks that a length takes. Triton's own takes microseconds on the host."""
    return -(-length // block)


def shrink_schedule(
    batch: Batch, columns: int, width: int, config: Mapping[str, int], multiprocessors: int
) -> Schedule:
    """Large tiles where there is work for every multiprocessor anyway, else parts of the sum.

    Few rows want narrow, deep tiles, many rows wide ones: where rows are many, a narrow tile is
    taken for one of the same area, so that one config can serve both; as wide a one as leaves every
    multiprocessor a program.

    Args:
        batch: the rows' segments.
        columns: S * R.
        width: K.
        config: BLOCK_N and BLOCK_K.
        multiprocessors: of the device.
    """
    block_n, block_k = config["BLOCK_N"], config["BLOCK_K"]
    tiles = cdiv(columns, block_n)
    group = _group(batch, tiles, multiprocessors)
    segments = cdiv(batch.likely_segments, group)
    rounds = _is_padded(batch)
    widened = 1
    if group > 1 or segments >= multiprocessors:
        widened = widening(block_n, block_k, columns)
        while widened > 1 and segments * cdiv(columns, block_n * widened) < multiprocessors:
            widened //= 2
        block_n, block_k = block_n * widened, block_k // widened
        tiles = cdiv(columns, block_n)
    if segments >= multiprocessors:
        step = (group * batch.chunk_size + tiles * block_n) * block_k
        together = 1 if tiles > MAX_TOGETHER or step > MAX_STEP else tiles
        return Schedule(group=group, widened=widened, together=together, rounds=rounds)
    parts = 1
    while (
        width >= max(LEAST_SPLIT, 2 * parts * LEAST_PART)
        and 2 * parts <= MAX_PARTS
        and segments * tiles * parts <= multiprocessors
    ):
        parts *= 2
    return Schedule(group=group, widened=widened, parts=parts, rounds=rounds)


def widening(block_n: int, block_k: int, columns: int) -> int:
    """How much wider, and less deep, a tile of shrink becomes where rows are many."""
    widened = 1
    while block_n * widened < min(columns, TALL_COLUMNS) and block_k // widened >= 2 * LEAST_DEPTH:
        widened *= 2
    return widened


def expand_schedule(batch: Batch, tiles: int, multiprocessors: int) -> Schedule:
    """Tall tiles as for shrink; then as many a program as leave a multiprocessor 6 programs.

    Args:
        batch: the rows' segments.
        tiles: output tiles of one segment.
        multiprocessors: of the device.
    """
    group = _group(batch, tiles, multiprocessors)
    groups = cdiv(batch.likely_segments, group)
    walk = MAX_WALK
    while walk > 1 and groups * cdiv(tiles, walk) < 6 * multiprocessors:
        walk //= 2
    return Schedule(group=group, walk=walk, rounds=_is_padded(batch))


def _is_padded(batch: Batch) -> bool:
    return PADDED * batch.likely_segments <= batch.grid_segments


def _group(batch: Batch, tiles: int, multiprocessors: int) -> int:
    rows, adapters = batch.permutation.shape[0], batch.lora_ranks.shape[0]
    group = max(1, GROUPED_ROWS // batch.chunk_size)
    mostly_whole = rows >= 2 * adapters * GROUPED_ROWS  # else adapters change within a group
    enough = rows // (batch.chunk_size * group) * tiles >= multiprocessors
    return group if mostly_whole and enough else 1
