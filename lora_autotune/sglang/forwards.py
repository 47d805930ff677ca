"""The two forward functions: our kernels where they cover the case, SGLang's otherwise.

A case is decided once: all that may differ between two calls is in its key. What fails later is
given to SGLang from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lora_autotune.kernel_set import BUILTIN
from lora_autotune.loader import DEFAULT_EXPAND_CONFIG, DEFAULT_SHRINK_CONFIG, explain_lookup
from lora_autotune.provenance import Provenance, find_provenance
from lora_autotune.sglang.batches import batch_view
from lora_autotune.sglang.coverage import config_fault, expand_gap, shrink_gap
from lora_autotune.sglang.saying import say_once, warn_once

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, int]

_decided: dict[Any, Config | None] = {}
"""Case -> what our kernel launches with; None: SGLang's kernel runs."""


def around_shrink(
    original: Callable[..., Tensor],
    x: Tensor,
    weights: Tensor,
    batch_info: Any,
    num_slices: int,
    split_k: int | None = None,
) -> Tensor:
    """In place of ``chunked_sgmv_lora_shrink_forward``."""
    case: Any = None
    try:
        if not _is_compiling():
            case = ("shrink", num_slices, split_k, batch_info.max_len, _key(x), _key(weights))
            if case not in _decided:
                gap = shrink_gap(x, weights, batch_info, num_slices, split_k)
                columns, width = weights.shape[-2:]
                shape = (width, columns // num_slices, num_slices, batch_info.max_len)
                _decided[case] = _decision("shrink", shape, gap)
            config = _decided[case]
            if config is not None:
                batch = batch_view(batch_info, x.shape[0])
                made: Tensor = _ours().shrink_forward(x, weights, batch, num_slices, config=config)
                return made
    except Exception as error:  # whatever is wrong with ours, the server has its own
        _give_up("shrink", case, error)
    return original(x, weights, batch_info, num_slices, split_k)


def around_expand(
    original: Callable[..., Tensor],
    x: Tensor,
    weights: Tensor,
    batch_info: Any,
    slice_offsets: Tensor,
    max_slice_size: int,
    base_output: Tensor | None,
    slice_offsets_cpu: Tensor | None = None,
) -> Tensor:
    """In place of ``chunked_sgmv_lora_expand_forward``."""
    case: Any = None
    try:
        if not _is_compiling():
            base = None if base_output is None else _output_key(base_output, x)
            slices = slice_offsets.shape[0] - 1
            case = ("expand", slices, base, batch_info.max_len, _key(x), _key(weights))
            if case not in _decided:
                gap = expand_gap(x, weights, batch_info, slice_offsets, base_output)
                shape = (*weights.shape[-2:], slices, batch_info.max_len)
                _decided[case] = _decision("expand", shape, gap)
            config = _decided[case]
            if config is not None:
                batch = batch_view(batch_info, x.shape[0])
                output = base_output
                if output is None:
                    output = x.new_zeros((x.shape[0], weights.shape[1]))
                made: Tensor = _ours().expand_forward(
                    x, weights, batch, slice_offsets, output, config=config
                )
                return made
    except Exception as error:  # nothing was launched yet: the base output is as it was
        _give_up("expand", case, error)
    return original(
        x, weights, batch_info, slice_offsets, max_slice_size, base_output, slice_offsets_cpu
    )


def decisions() -> Mapping[Any, Config | None]:
    """Each case so far, with what our kernel launches with; None: SGLang's runs."""
    return dict(_decided)


def forget() -> None:
    """Decide every case again, and say so again; for tests and for configs that changed."""
    _decided.clear()
    say_once.cache_clear()
    warn_once.cache_clear()


def _key(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape[1:], tensor.device, tensor.is_contiguous()


def _output_key(output: Tensor, x: Tensor) -> Any:
    rows_fit = output.shape[0] >= x.shape[0]
    return output.dtype, output.shape[1:], output.device, output.stride()[1:], rows_fit


def _decision(kernel: str, shape: tuple[Any, ...], gap: str | None) -> Config | None:
    K, R, S, chunk_size = shape
    name = f"LoRA {kernel} K={K} R={R} S={S} chunk size {chunk_size}"
    if gap is not None:
        say_once(f"{name}: SGLang's kernel ({gap})")
        return None
    found = explain_lookup(kernel, K, R, S, chunk_size)
    default = DEFAULT_SHRINK_CONFIG if kernel == "shrink" else DEFAULT_EXPAND_CONFIG
    fault = config_fault(found.config)
    if fault is not None:
        warn_once(f"{name}: {found.path}: {fault}; using the defaults")
        return dict(default)
    if found.path is not None and found.chunk_size is not None:
        origin = find_provenance(found.path, found.chunk_size, found.config)
        if isinstance(origin, Provenance) and origin.kernels != BUILTIN:
            warn_once(f"{name}: {found.path} was tuned on {origin.kernels} kernels, and ours run")
    words = " ".join(f"{key}={value}" for key, value in found.config.items())
    if found.config == default:
        words = "what suits each batch, for the default is no config"
    say_once(f"{name}: lora_autotune's kernel with {words} ({found.reason})")
    return found.config


def _give_up(kernel: str, case: Any, error: Exception) -> None:
    if case is not None:
        _decided[case] = None
    warn_once(f"LoRA {kernel} goes back to SGLang's kernel: {type(error).__name__}: {error}")


@functools.cache
def _ours() -> Any:
    from lora_autotune.kernels import forward

    return forward


def _is_compiling() -> bool:
    import torch

    return torch.compiler.is_compiling()
