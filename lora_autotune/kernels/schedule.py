"""How a launch's work maps to programs: what its config does not say, and its batch decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_autotune.kernels.batch import TALL_ROWS, BatchSizes

LOW_ROWS = 32
"""Most rows of a low tile."""

PADDED = 1.5
"""A buffer this many times as long as the segments that are likely is not covered whole: to go on
in rounds costs registers."""


class Target(NamedTuple):
    """The GPU that a launch is planned for.

    Attributes:
        multiprocessors: how many it has.
        capability: compute capability times ten; 0: there is no GPU.
    """

    multiprocessors: int
    capability: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Chosen without asking the device, so that a launch can be part of a CUDA graph.

    Attributes:
        group: consecutive segments that one program takes together: those with the adapter of the
            first, as one tile.
        config: keys and values in place of the whole config that was found; None: that one.
        tile: BLOCK_N and BLOCK_K in place of that one's; None: its own.
        spread: each of shrink's sums is shared among the four warps of a program.
        together: column tiles of shrink that one program sums up at once, from one x tile.
        parts: programs among which shrink's sum over K is divided.
        walk: output tiles of expand that one program walks.
        ahead: the weights are fetched into the L2 while the launch in front still runs.
        rounds: the grid covers the segments of a batch that is cut into whole chunks, not the whole
            buffer; programs go on to those behind, should there be any.
    """

    group: int = 1
    config: tuple[tuple[str, int], ...] | None = None
    tile: tuple[int, int] | None = None
    spread: bool = False
    together: int = 1
    parts: int = 1
    walk: int = 1
    ahead: bool = False
    rounds: bool = False

    def applied_to(self, config: Mapping[str, int]) -> dict[str, int]:
        """What a launch has, given the config that was found."""
        if self.config is not None:
            return dict(self.config)
        if self.tile is None:
            return dict(config)
        return {**config, **dict(zip(("BLOCK_N", "BLOCK_K"), self.tile, strict=True))}


def power_of_two(count: int) -> int:
    """The least that is not less."""
    return 1 << (count - 1).bit_length()


def is_padded(sizes: BatchSizes) -> bool:
    """Whether most of the segment buffer is sure to be empty."""
    return PADDED * sizes.likely_segments <= sizes.grid_segments


def is_mostly_whole(sizes: BatchSizes) -> bool:
    """Whether most groups of segments have one adapter only, and as many rows as they can have."""
    return sizes.rows >= 2 * sizes.adapters * TALL_ROWS


def reads_weights_once(sizes: BatchSizes) -> bool:
    """Whether each adapter could have the rows of one program: no other fetches its weights."""
    return sizes.rows // sizes.piece_rows <= sizes.adapters
