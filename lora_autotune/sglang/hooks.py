"""What of SGLang is hooked: two config lookups, two CSGMV forward functions, linear layers."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from lora_autotune.errors import LoraAutotuneError
from lora_autotune.sglang.forwards import around_expand, around_shrink
from lora_autotune.sglang.layers import around_forward_with_base
from lora_autotune.sglang.lookups import around_expand_lookup, around_shrink_lookup
from lora_autotune.sglang.saying import warn_once

_HOME = "sglang.kernels.ops.lora.dense"
_LOOKUP = ("K", "R", "num_slices", "chunk_size")
Hook = tuple[str, Callable[..., Any], Sequence[str]]

LOOKUPS: tuple[Hook, ...] = (
    (f"{_HOME}.lora_tuning_config.get_lora_shrink_config", around_shrink_lookup, _LOOKUP),
    (f"{_HOME}.lora_tuning_config.get_lora_expand_config", around_expand_lookup, _LOOKUP),
)
FORWARDS: tuple[Hook, ...] = (
    (
        f"{_HOME}.chunked_sgmv_shrink.chunked_sgmv_lora_shrink_forward",
        around_shrink,
        ("x", "weights", "batch_info", "num_slices", "split_k"),
    ),
    (
        f"{_HOME}.chunked_sgmv_expand.chunked_sgmv_lora_expand_forward",
        around_expand,
        (
            *("x", "weights", "batch_info", "slice_offsets", "max_slice_size", "base_output"),
            "slice_offsets_cpu",
        ),
    ),
)
LAYERS: tuple[Hook, ...] = (
    (
        "sglang.srt.lora.backend.base_backend.BaseLoRABackend.forward_with_base",
        around_forward_with_base,
        (
            *("self", "layer", "x", "base_fn", "lora_a", "lora_b", "output_offset", "offsets"),
            *("all_reduce", "kind", "pruned_batch_info"),
        ),
    ),
)
"""Target, what goes around it, and the parameters that the target must have."""


def register(*, kernels: bool, layers: bool = False) -> None:
    """Hand the hooks to SGLang, all of them or none; those of layers are left out with a warning.

    Args:
        kernels: the forward functions as well as the lookups.
        layers: the linear layers as well, which an older SGLang does not give to its backend.

    Raises:
        LoraAutotuneError: a target takes other parameters than those that its hook knows.
        AttributeError, ImportError: a target is not there.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = LOOKUPS + (FORWARDS if kernels else ())
    _check(hooks)
    if layers:
        try:
            _check(LAYERS)
            hooks += LAYERS
        except Exception as error:  # the rest does not need them
            warn_once(f"LoRA layers are left to SGLang: {type(error).__name__}: {error}")
    for target, hook, _ in hooks:
        HookRegistry.register(target, hook, HookType.AROUND)


def _check(hooks: Sequence[Hook]) -> None:
    for target, _, parameters in hooks:
        found = list(inspect.signature(pkgutil.resolve_name(target)).parameters)
        if found != list(parameters):
            raise LoraAutotuneError(
                f"{target} takes ({', '.join(found)}), not ({', '.join(parameters)})",
                hint="this SGLang is not one that this package knows",
            )
