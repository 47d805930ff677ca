"""A linear layer with LoRA as SGLang's backend sees one, without a server around it."""

from __future__ import annotations

import importlib
import itertools
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from lora_autotune.sglang import layers as hooked_layers


def layer_of(
    backend: Any,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    boundaries: tuple[int, ...],
) -> Any:
    """What the backend asks of a layer, in a class that is called like SGLang's.

    SGLang's own is not made without a server around it.

    Args:
        backend: which the adapters are given to.
        weight: (N, K).
        a: (adapters, S * R, K).
        b: (adapters, N, R).
        boundaries: of the slices in the output, S + 1.
    """
    offsets_cpu = torch.tensor(boundaries, dtype=torch.int32)
    offsets = offsets_cpu.cuda()

    def apply_lora(_: Any, base_output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = backend.run_qkv_lora(
            x=x,
            qkv_lora_a=a,
            qkv_lora_b=b,
            base_output=base_output,
            output_offset=offsets,
            output_offset_cpu=offsets_cpu,
            max_qkv_out_dim=max(end - start for start, end in itertools.pairwise(boundaries)),
            n_slices=len(boundaries) - 1,
        )
        return found

    named = {"__module__": hooked_layers.LAYERS_MODULE, "apply_lora": apply_lora}
    layer = type("QKVParallelLinearWithLoRA", (), named)()
    layer.base_layer = SimpleNamespace(
        weight=torch.nn.Parameter(weight, requires_grad=False),
        bias=None,
        skip_bias_add=False,
        quant_method=quant_method(),
    )
    layer.output_offset, layer.output_offset_cpu = offsets, offsets_cpu
    return layer


@cache
def quant_method() -> Any:
    """SGLang's for weights that are not quantized; the same product where it cannot be imported."""
    home, _, name = hooked_layers.QUANT_METHOD.rpartition(".")
    try:
        return getattr(importlib.import_module(home), name)()
    except Exception as error:  # its module imports what all quantizations need
        print(f"{name} is a stand-in: {type(error).__name__}: {error}")

    def apply(_: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)

    return type(name, (), {"__module__": home, "apply": apply})()
