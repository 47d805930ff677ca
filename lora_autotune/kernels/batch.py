"""A batch as the kernels see it: rows grouped by adapter, cut into segments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lora_autotune.errors import UsageError
from lora_autotune.kernels.blank import holding
from lora_autotune.task import Instance

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER_SLOTS = 8
"""``max_loras_per_batch`` of a default server; one of the slots is rank 0, for no adapter."""

TALL_ROWS = 64
"""Most rows that a program takes as one tile: of a longer segment a piece, of shorter ones several,
where there are enough of them. It is what warp groups multiply (wgmma)."""


def cdiv(length: int, block: int) -> int:
    """Blocks that a length takes. Triton's own takes microseconds on the host."""
    return -(-length // block)


class BatchSizes(NamedTuple):
    """What the host knows of a batch without asking the device.

    Attributes:
        rows: of all adapters.
        adapters: slots.
        segments: in use, as far as the host knows; under a CUDA graph the whole buffer.
        grid_segments: segments that a launch covers: the whole buffer.
        chunk_size: most rows in a segment.
    """

    rows: int
    adapters: int
    segments: int
    grid_segments: int
    chunk_size: int

    @property
    def likely_segments(self) -> int:
        """Upper bound on the segments with rows."""
        return min(self.grid_segments, self.rows // self.chunk_size + self.adapters, self.rows)

    @property
    def piece_rows(self) -> int:
        """Most rows in a piece of a segment: what a program takes of it."""
        return min(self.chunk_size, TALL_ROWS)

    @property
    def pieces(self) -> int:
        """Pieces of a whole segment."""
        return cdiv(self.chunk_size, TALL_ROWS)

    @property
    def likely_pieces(self) -> int:
        """Upper bound on the pieces with rows, where runs are cut into whole chunks."""
        segments = self.grid_segments * self.pieces
        return min(segments, self.rows // self.piece_rows + self.adapters, self.rows)

    def likely_runs(self, group: int) -> int:
        """About how many tiles there are where most are full.

        Segments beyond those that the rows would fill tell of several adapters, each with a last
        tile that is not full. Where tiles have several segments, most adapters begin in one, too;
        adapters that all fill whole segments look like one, and some more tiles than this.

        Args:
            group: segments that a tile can have, where it is not of a piece.
        """
        beyond = max(0, self.segments - cdiv(self.rows, self.chunk_size))
        ends = 2 * (beyond + 1) if beyond and group > 1 else beyond
        full = cdiv(self.rows, group * self.piece_rows)
        return full + min(ends, self.adapters - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What both kernels read besides their matrices. All tensors are on one device.

    A launch may read them while the one in front of it on the stream still runs (see
    :mod:`lora_autotune.kernels.overlap`): so that one must not be a kernel that writes them. A copy
    from the host may.

    Attributes:
        seg_indptr: int32 (buffer + 1,), where each segment starts in permuted order.
        weight_indices: int32 (buffer,), each segment's adapter slot.
        lora_ranks: int32 (adapters,), each adapter's rank; 0: no adapter.
        scalings: float32 (adapters,), what each adapter's product is multiplied with.
        permutation: int32 (s,), row in permuted order -> row of the matrices.
        num_segs: segments in use, or all of the buffer where nobody knows; that is launched whole.
        chunk_size: most rows in a segment.
    """

    seg_indptr: Tensor
    weight_indices: Tensor
    lora_ranks: Tensor
    scalings: Tensor
    permutation: Tensor
    num_segs: int
    chunk_size: int

    @property
    def sizes(self) -> BatchSizes:
        """What launches are planned from."""
        return BatchSizes(
            self.permutation.shape[0],
            self.lora_ranks.shape[0],
            self.num_segs,
            self.weight_indices.shape[0],
            self.chunk_size,
        )


def make_batch(
    adapter_of_row: Sequence[int] | Tensor,
    *,
    ranks: Sequence[int],
    scalings: Sequence[float],
    chunk_size: int,
    grid_segments: int | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """Group rows by adapter (in row order within one) and cut each run into segments.

    Args:
        adapter_of_row: (s,), the adapter slot of each row.
        ranks: each adapter's rank.
        scalings: each adapter's scaling.
        chunk_size: most rows in a segment.
        grid_segments: length of the segment buffer; None: as many as there are segments. The
            surplus segments are empty.
        device: where the tensors go; NOWHERE: they are blanks.

    Raises:
        UsageError: the buffer is too short, or a row names an adapter that is not there.
    """
    owners = adapter_of_row if isinstance(adapter_of_row, Sequence) else adapter_of_row.tolist()
    if len(ranks) != len(scalings):
        raise UsageError(f"{len(ranks)} ranks but {len(scalings)} scalings")
    if not all(0 <= owner < len(ranks) for owner in set(owners)):
        raise UsageError(f"a row names an adapter outside the {len(ranks)} slots")
    rows_of: list[list[int]] = [[] for _ in ranks]
    for row, owner in enumerate(owners):
        rows_of[owner].append(row)
    lengths: list[int] = []
    adapters: list[int] = []
    for adapter, rows in enumerate(rows_of):
        whole, rest = divmod(len(rows), chunk_size)
        pieces = [chunk_size] * whole + [rest] * (rest > 0)
        lengths += pieces
        adapters += [adapter] * len(pieces)
    surplus = 0 if grid_segments is None else grid_segments - len(lengths)
    if surplus < 0:
        raise UsageError(f"{len(lengths)} segments do not fit a buffer of {grid_segments}")
    starts = [*itertools.accumulate(lengths, initial=0), *[len(owners)] * surplus]
    return Batch(
        seg_indptr=holding(starts, "int32", device),
        weight_indices=holding([*adapters, *[0] * surplus], "int32", device),
        lora_ranks=holding(ranks, "int32", device),
        scalings=holding(scalings, "float32", device),
        permutation=holding([*itertools.chain(*rows_of)], "int32", device),
        num_segs=len(lengths),
        chunk_size=chunk_size,
    )


def served_batch(
    instance: Instance, *, rank: int, chunk_size: int, device: torch.device | str
) -> Batch:
    """The batch of a workload's instance, with the segment buffer of a server.

    The buffer covers the largest CUDA-graph batch at decode (requests of one token; a batch that no
    graph is captured for has just its own), and the most segments that the batch can have plus the
    adapter slots at prefill.
    """
    slots = max(ADAPTER_SLOTS, instance.adapters)
    if instance.phase == "decode":
        buffer = max(instance.graph_batch, instance.tokens)
    else:
        buffer = max(cdiv(instance.tokens, chunk_size), 16) + slots
    own = instance.ranks or (rank,)
    ranks = [own[i % len(own)] if i < instance.adapters else 0 for i in range(slots)]
    rows = rows_per_adapter(instance)
    return make_batch(
        [adapter for adapter, count in enumerate(rows) for _ in range(count)],
        ranks=ranks,
        scalings=[0.5] * slots,
        chunk_size=chunk_size,
        grid_segments=buffer,
        device=device,
    )


def rows_per_adapter(instance: Instance) -> list[int]:
    """How many of an instance's rows each adapter has, at least one; the first has the most.

    Zipf's shares are rounded down after one row is given to each; what is left over goes to the
    first ones, so that the counts never increase.
    """
    tokens, adapters = instance.tokens, instance.adapters
    if instance.spread == "even":
        starts = [cdiv(i * tokens, adapters) for i in range(adapters + 1)]
        return [end - start for start, end in itertools.pairwise(starts)]
    spare = tokens - adapters
    total = sum(1 / i for i in range(1, adapters + 1))
    counts = [1 + int(spare / (i * total)) for i in range(1, adapters + 1)]
    left = tokens - sum(counts)
    return [count + (i < left) for i, count in enumerate(counts)]
