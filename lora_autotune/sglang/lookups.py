"""SGLang's lookups of configs for *its* kernels: never a config that ships for ours."""

from __future__ import annotations

import os
from collections.abc import Callable

from lora_autotune.loader import (
    DEFAULT_EXPAND_CONFIG,
    DEFAULT_SHRINK_CONFIG,
    ROOT_VARIABLE,
    get_lora_configs,
    get_lora_expand_config,
    get_lora_shrink_config,
)
from lora_autotune.sglang.coverage import config_fault
from lora_autotune.sglang.saying import warn_once

Lookup = Callable[[int, int, int, int], dict[str, int]]


def around_shrink_lookup(
    original: Lookup, K: int, R: int, num_slices: int, chunk_size: int
) -> dict[str, int]:
    """What SGLang's shrink kernel launches with; never raises."""
    shape = (K, R, num_slices, chunk_size)
    return _answer("shrink", original, get_lora_shrink_config, DEFAULT_SHRINK_CONFIG, shape)


def around_expand_lookup(
    original: Lookup, K: int, R: int, num_slices: int, chunk_size: int
) -> dict[str, int]:
    """What SGLang's expand kernel launches with; never raises."""
    shape = (K, R, num_slices, chunk_size)
    return _answer("expand", original, get_lora_expand_config, DEFAULT_EXPAND_CONFIG, shape)


def _answer(
    kernel: str,
    original: Lookup,
    ours: Callable[..., dict[str, int]],
    default: dict[str, int],
    shape: tuple[int, int, int, int],
) -> dict[str, int]:
    """Ours looks in the folder that is named, and for what ships; for the rest SGLang's does."""
    try:
        named = os.environ.get(ROOT_VARIABLE)
        if named or get_lora_configs(kernel, *shape[:3], kernels="sglang") is not None:
            config = ours(*shape, kernels="sglang")
        else:
            config = dict(original(*shape))
        fault = config_fault(config)
        if fault is None:
            return config
    except Exception as error:  # SGLang's own reader raises what the file makes it raise
        fault = f"{type(error).__name__}: {error}"
    warn_once(f"LoRA config for K, R, S, chunk size = {shape}: {fault}; using the defaults")
    return dict(default)
