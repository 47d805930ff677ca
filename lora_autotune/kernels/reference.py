"""What the kernels should compute, in float64 and without any of their structure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from lora_autotune.kernels.batch import Batch


def _segments(batch: Batch) -> Iterator[tuple[Tensor, int, int]]:
    """(rows of the matrices, adapter, its rank) of each segment that does something."""
    starts = batch.seg_indptr.tolist()
    ranks = batch.lora_ranks.tolist()
    adapters = batch.weight_indices.tolist()
    for segment in range(batch.num_segs):
        start, end = starts[segment], starts[segment + 1]
        adapter = adapters[segment]
        if end > start and ranks[adapter] > 0:
            yield batch.permutation[start:end].long(), adapter, ranks[adapter]


def shrink_reference(x: Tensor, weights: Tensor, batch: Batch, num_slices: int) -> Tensor:
    """float64 (s, S * R); NaN wherever the kernel owes nothing.

    Args:
        x: (s, K).
        weights: (adapters, S * R, K).
        batch: the rows' segments.
        num_slices: S.
    """
    result = torch.full(
        (x.shape[0], weights.shape[1]), torch.nan, dtype=torch.float64, device=x.device
    )
    for rows, adapter, rank in _segments(batch):
        columns = num_slices * rank
        product = x[rows].double() @ weights[adapter, :columns].double().T
        result[rows[:, None], torch.arange(columns, device=x.device)] = product
    return result


def expand_reference(
    x: Tensor, weights: Tensor, batch: Batch, slice_offsets: Tensor, output: Tensor
) -> Tensor:
    """float64 (s, columns of ``output``): ``output`` plus the scaled products.

    Args:
        x: (s, S * R).
        weights: (adapters, OUTPUT_DIM, R).
        batch: the rows' segments.
        slice_offsets: (S + 1,), boundaries of the slices.
        output: (s, >= OUTPUT_DIM), what is accumulated into; not changed.
    """
    result = output.to(torch.float64, copy=True)
    offsets = slice_offsets.tolist()
    for rows, adapter, rank in _segments(batch):
        scaling = float(batch.scalings[adapter])
        for i, (start, end) in enumerate(itertools.pairwise(offsets)):
            part = x[rows, i * rank : (i + 1) * rank].double()
            weight = weights[adapter, start:end, :rank].double()
            columns = torch.arange(start, end, device=x.device)
            result[rows[:, None], columns] += scaling * (part @ weight.T)
    return result
