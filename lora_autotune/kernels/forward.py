"""The kernels as a layer calls them, with the configuration that the loader finds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.launch import expand_launch, shrink_launch
from lora_autotune.loader import get_lora_expand_config, get_lora_shrink_config


def shrink_forward(
    x: Tensor,
    weights: Tensor,
    batch: Batch,
    num_slices: int,
    *,
    config: Mapping[str, int] | None = None,
) -> Tensor:
    """LoRA A for all fused slices: (s, K) -> (s, S * R) in the dtype of ``x``.

    Args:
        x: (s, K), contiguous, float16 or bfloat16.
        weights: (adapters, S * R, K), contiguous, an adapter of rank r packed in S * r rows.
        batch: the rows' segments.
        num_slices: S.
        config: None: what the loader finds for this GPU and shape.

    Returns:
        A new tensor. Rows without an adapter, and columns from S * r on, are not written.
    """
    columns, width = weights.shape[1:]
    if config is None:
        config = get_lora_shrink_config(width, columns // num_slices, num_slices, batch.chunk_size)
    output = torch.empty((x.shape[0], columns), dtype=x.dtype, device=x.device)
    shrink_launch(x, weights, output, batch, num_slices, config)()
    return output


def expand_forward(
    x: Tensor,
    weights: Tensor,
    batch: Batch,
    slice_offsets: Tensor,
    output: Tensor,
    *,
    config: Mapping[str, int] | None = None,
) -> Tensor:
    """LoRA B for all fused slices, accumulated into ``output``, which is returned.

    Args:
        x: (s, S * R), contiguous, what shrink wrote.
        weights: (adapters, OUTPUT_DIM, R), contiguous.
        batch: the rows' segments.
        slice_offsets: int64 (S + 1,), boundaries of the slices in the output, all of which they
            are; of a single one they are not read.
        output: (s, >= OUTPUT_DIM), inner stride 1.
        config: None: what the loader finds for this GPU and shape.
    """
    output_dim, rank = weights.shape[1:]
    if config is None:
        slices = slice_offsets.shape[0] - 1
        config = get_lora_expand_config(output_dim, rank, slices, batch.chunk_size)
    expand_launch(x, weights, output, batch, slice_offsets, config)()
    return output
