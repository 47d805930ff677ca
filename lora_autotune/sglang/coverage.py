"""Which cases our kernels cover: what each function returns is why not, None where they do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_SIZES = (16, 32, 64, 128)
LARGEST_RANK = 512
SPLIT_K_VARIABLE = "SGLANG_ENABLE_LORA_CSGMV_SPLIT_K"

DETERMINISTIC_VARIABLE = "SGLANG_ENABLE_DETERMINISTIC_INFERENCE"
LARGEST_BLOCK, LARGEST_TILE, MOST_STAGES = 1024, 1 << 16, 8
"""Elements and stages over which no config is taken for one: a compiler would take minutes, or fail
in the middle of a forward pass."""


def shrink_gap(
    x: Tensor, weights: Tensor, batch_info: Any, num_slices: int, split_k: int | None
) -> str | None:
    """Why SGLang's shrink must run."""
    if split_k is not None or _is_set(SPLIT_K_VARIABLE):
        return "split-K is asked for"
    gap = _invariance_gap() or _matrices_gap(x, weights) or _batch_gap(batch_info, x.device)
    if gap is not None:
        return gap
    if weights.shape[2] != x.shape[1] or weights.shape[1] % num_slices:
        return f"shapes {tuple(x.shape)}, {tuple(weights.shape)} and {num_slices} slices differ"
    return _rank_gap(weights.shape[1] // num_slices)


def expand_gap(
    x: Tensor,
    weights: Tensor,
    batch_info: Any,
    slice_offsets: Tensor,
    base_output: Tensor | None,
) -> str | None:
    """Why SGLang's expand must run."""
    import torch

    gap = _invariance_gap() or _matrices_gap(x, weights) or _batch_gap(batch_info, x.device)
    if gap is not None:
        return gap
    slices = slice_offsets.shape[0] - 1
    if slices < 1 or x.shape[1] != slices * weights.shape[2]:
        return f"shapes {tuple(x.shape)}, {tuple(weights.shape)} and {slices} slices differ"
    if slice_offsets.dtype not in (torch.int64, torch.int32) or slice_offsets.device != x.device:
        return f"slice offsets are {slice_offsets.dtype} on {slice_offsets.device}"
    if not slice_offsets.is_contiguous():
        return "slice offsets are not contiguous"
    if base_output is not None:
        if base_output.dtype != x.dtype or base_output.device != x.device:
            return f"the base output is {base_output.dtype} on {base_output.device}"
        if base_output.dim() != 2 or base_output.stride(1) != 1:
            return "the base output's inner stride is not 1"
        if base_output.shape[0] < x.shape[0] or base_output.shape[1] < weights.shape[1]:
            return f"the base output is of shape {tuple(base_output.shape)}"
    return _rank_gap(weights.shape[2])


def config_fault(config: Mapping[str, int]) -> str | None:
    """Why no kernel, ours or SGLang's, can be launched with a config that the schema allows."""
    for name in ("BLOCK_N", "BLOCK_K"):
        if config[name] < 16 or config[name] & (config[name] - 1):
            return f"{name}={config[name]} is not a power of two from 16 on"
        if config[name] > LARGEST_BLOCK:
            return f"{name}={config[name]} is over {LARGEST_BLOCK}"
    if config["BLOCK_N"] * config["BLOCK_K"] > LARGEST_TILE:
        return f"BLOCK_N * BLOCK_K is over {LARGEST_TILE}"
    if config.get("num_stages", 1) > MOST_STAGES:
        return f"num_stages={config['num_stages']} is over {MOST_STAGES}"
    if not 16 <= config.get("maxnreg", 255) <= 255:
        return f"maxnreg={config['maxnreg']} is not from 16 to 255"
    warps = config.get("num_warps", 4)
    if warps > 32 or warps & (warps - 1):
        return f"num_warps={warps} is not a power of two up to 32"
    return None


def _invariance_gap() -> str | None:
    # Which instructions and how many parts add up a row depends on the batch that it is in.
    return "deterministic inference is asked for" if _is_set(DETERMINISTIC_VARIABLE) else None


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() in ("1", "true", "yes", "on")


def _matrices_gap(x: Tensor, weights: Tensor) -> str | None:
    import torch

    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors are on {x.device.type}"
    if torch.version.hip is not None:
        return "ROCm"
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {x.dtype}"
    if weights.dtype != x.dtype or weights.device != x.device:
        return f"weights are {weights.dtype} on {weights.device}, x is {x.dtype} on {x.device}"
    if x.dim() != 2 or weights.dim() != 3:
        return f"{x.dim()} and {weights.dim()} dimensions"
    if not x.is_contiguous() or not weights.is_contiguous():
        return "a matrix is not contiguous"
    return None


def _batch_gap(batch_info: Any, device: Any) -> str | None:
    import torch

    if batch_info.max_len not in CHUNK_SIZES:
        return f"chunk size {batch_info.max_len}"
    for name in ("seg_indptr", "weight_indices", "lora_ranks", "permutation", "scalings"):
        tensor = getattr(batch_info, name)
        if tensor is None:
            return f"no {name}"
        wanted = torch.float32 if name == "scalings" else torch.int32
        if tensor.dtype != wanted or tensor.device != device or not tensor.is_contiguous():
            return f"{name} is {tensor.dtype} on {tensor.device}"
    if type(batch_info.num_segments) is not int:
        return "the number of segments is not known on the host"
    return None


def _rank_gap(rank: int) -> str | None:
    return None if 1 <= rank <= LARGEST_RANK else f"rank {rank}"
