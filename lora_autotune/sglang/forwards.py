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
Case = tuple[Any, ...]

decided: dict[Case, Config | None] = {}
"""Case -> what our kernel launches with; None: SGLang's kernel runs.

Layers keep theirs here, too (:mod:`lora_autotune.sglang.layers`)."""


def around_shrink(
    original: Callable[..., Tensor],
    x: Tensor,
    weights: Tensor,
    batch_info: Any,
    num_slices: int,
    split_k: int | None = None,
) -> Tensor:
    """In place of ``chunked_sgmv_lora_shrink_forward``."""
    case: Case | None = None
    try:
        if not is_compiling():
            case = shrink_case(x, weights, batch_info, num_slices, split_k)
            config = shrink_config(case, x, weights, batch_info, num_slices, split_k)
            if config is not None:
                batch = batch_view(batch_info, x.shape[0])
                made: Tensor = _ours().shrink_forward(x, weights, batch, num_slices, config=config)
                return made
    except Exception as error:  # whatever is wrong with ours, the server has its own
        give_up("shrink", case, error)
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
    case: Case | None = None
    try:
        if not is_compiling():
            base = None if base_output is None else _output_key(base_output, x)
            slices = slice_offsets.shape[0] - 1
            keys = tensor_key(x), tensor_key(weights)
            case = ("expand", slices, base, batch_info.max_len, *keys)
            if case not in decided:
                gap = expand_gap(x, weights, batch_info, slice_offsets, base_output)
                shape = (*weights.shape[-2:], slices, batch_info.max_len)
                decided[case] = _decision("expand", shape, gap)
            config = decided[case]
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
        give_up("expand", case, error)
    return original(
        x, weights, batch_info, slice_offsets, max_slice_size, base_output, slice_offsets_cpu
    )


def shrink_case(
    x: Tensor, weights: Tensor, batch_info: Any, num_slices: int, split_k: int | None = None
) -> Case:
    """All that a decision on shrink may depend on."""
    keys = tensor_key(x), tensor_key(weights)
    return ("shrink", num_slices, split_k, batch_info.max_len, *keys)


def shrink_config(
    case: Case,
    x: Tensor,
    weights: Tensor,
    batch_info: Any,
    num_slices: int,
    split_k: int | None = None,
) -> Config | None:
    """What our shrink launches with, said when it is decided; None: SGLang's runs."""
    if case not in decided:
        gap = shrink_gap(x, weights, batch_info, num_slices, split_k)
        columns, width = weights.shape[-2:]
        shape = (width, columns // num_slices, num_slices, batch_info.max_len)
        decided[case] = _decision("shrink", shape, gap)
    return decided[case]


def decisions() -> Mapping[Case, Config | None]:
    """Each case so far, with what our kernel launches with; None: SGLang's runs."""
    return dict(decided)


def forget() -> None:
    """Decide every case again, and say so again; for tests and for configs that changed."""
    decided.clear()
    say_once.cache_clear()
    warn_once.cache_clear()


def tensor_key(tensor: Tensor) -> Any:
    """What of a tensor a decision may depend on: all but the number of its rows."""
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


def give_up(kernel: str, case: Case | None, error: Exception) -> None:
    """Leave a case to SGLang from now on, and say so; None: it was not known yet which it is."""
    if case is not None:
        decided[case] = None
    warn_once(f"LoRA {kernel} goes back to SGLang's kernel: {type(error).__name__}: {error}")


@functools.cache
def _ours() -> Any:
    from lora_autotune.kernels import forward

    return forward


def is_compiling() -> bool:
    """torch.compile is tracing, and what is decided here would be compiled in."""
    import torch

    return torch.compiler.is_compiling()
