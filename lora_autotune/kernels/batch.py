"""A batch as the kernels see it: rows grouped by adapter, cut into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_autotune.errors import UsageError
from lora_autotune.task import Instance

ADAPTER_SLOTS = 8
"""``max_loras_per_batch`` of a default server; one of the slots is rank 0, for no adapter."""

LARGEST_GRAPH_BATCH = 256
"""The largest decode batch that CUDA graphs are assumed to be captured for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What both kernels read besides their matrices. All tensors are on one device.

    Attributes:
        seg_indptr: int32 (buffer + 1,), where each segment starts in permuted order.
        weight_indices: int32 (buffer,), each segment's adapter slot.
        lora_ranks: int32 (adapters,), each adapter's rank; 0: no adapter.
        scalings: float32 (adapters,), what each adapter's product is multiplied with.
        permutation: int32 (s,), row in permuted order -> row of the matrices.
        num_segs: segments in use; the buffer may be longer, and is launched whole.
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
    def grid_segments(self) -> int:
        """Segments that a launch covers: the whole buffer."""
        return self.weight_indices.shape[0]

    @property
    def likely_segments(self) -> int:
        """Upper bound on the segments with rows, known without asking the device."""
        rows, adapters = self.permutation.shape[0], self.lora_ranks.shape[0]
        return min(self.grid_segments, rows // self.chunk_size + adapters, rows)


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
        device: where the tensors go.

    Raises:
        UsageError: the buffer is too short, or a row names an adapter that is not there.
    """
    owners = torch.as_tensor(adapter_of_row, dtype=torch.int64).cpu()
    if len(ranks) != len(scalings):
        raise UsageError(f"{len(ranks)} ranks but {len(scalings)} scalings")
    if owners.numel() and not 0 <= int(owners.min()) <= int(owners.max()) < len(ranks):
        raise UsageError(f"a row names an adapter outside the {len(ranks)} slots")
    counts = torch.bincount(owners, minlength=len(ranks)).tolist()
    lengths: list[int] = []
    adapters: list[int] = []
    for adapter, count in enumerate(counts):
        pieces = [chunk_size] * (count // chunk_size)
        pieces += [count % chunk_size] if count % chunk_size else []
        lengths += pieces
        adapters += [adapter] * len(pieces)
    surplus = 0 if grid_segments is None else grid_segments - len(lengths)
    if surplus < 0:
        raise UsageError(f"{len(lengths)} segments do not fit a buffer of {grid_segments}")
    ends = torch.tensor([0, *lengths, *[0] * surplus]).cumsum(0)

    def int32(values: Sequence[int] | Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32).to(device)

    return Batch(
        seg_indptr=int32(ends),
        weight_indices=int32([*adapters, *[0] * surplus]),
        lora_ranks=int32(ranks),
        scalings=torch.tensor(scalings, dtype=torch.float32).to(device),
        permutation=int32(owners.argsort(stable=True)),
        num_segs=len(lengths),
        chunk_size=chunk_size,
    )


def served_batch(
    instance: Instance, *, rank: int, chunk_size: int, device: torch.device | str
) -> Batch:
    """The batch of a workload's instance, at full rank, with the segment buffer of a server.

    Rows are spread evenly over the adapters. A server's buffer covers its largest CUDA-graph batch
    at decode (taken as LARGEST_GRAPH_BATCH requests of one token), and the most segments that the
    batch can have plus the adapter slots at prefill.
    """
    slots = max(ADAPTER_SLOTS, instance.adapters)
    owners = torch.arange(instance.tokens) * instance.adapters // instance.tokens
    if instance.tokens <= LARGEST_GRAPH_BATCH:
        buffer = LARGEST_GRAPH_BATCH
    else:
        buffer = max(-(-instance.tokens // chunk_size), 16) + slots
    ranks = [rank if i < instance.adapters else 0 for i in range(slots)]
    return make_batch(
        owners,
        ranks=ranks,
        scalings=[0.5] * slots,
        chunk_size=chunk_size,
        grid_segments=buffer,
        device=device,
    )
