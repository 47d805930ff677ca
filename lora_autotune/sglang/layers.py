"""SGLang's linear layers with LoRA: their own product and their adapters' as one, where that pays.

A case is decided once, as in :mod:`lora_autotune.sglang.forwards`, whose decisions these are kept
with. Only about the number of rows is asked at each call, and few of them, as in a decode step, are
SGLang's before anything else is looked at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_autotune.sglang.batches import batch_view
from lora_autotune.sglang.coverage import shrink_gap
from lora_autotune.sglang.forwards import (
    Case,
    Config,
    decided,
    give_up,
    is_compiling,
    shrink_case,
    shrink_config,
    tensor_key,
)
from lora_autotune.sglang.saying import say_once, warn_once

if TYPE_CHECKING:
    from torch import Tensor

BACKEND = "csgmv"
KIND = "linear"
LAYERS_MODULE = "sglang.srt.lora.layers"
LAYERS = (
    "ColumnParallelLinearWithLoRA",
    "MergedColumnParallelLinearWithLoRA",
    "InklingQKVRLinearWithLoRA",
    "QKVParallelLinearWithLoRA",
    "RowParallelLinearWithLoRA",
    "ReplicatedLinearWithLoRA",
)
"""Whose ``apply_lora`` is a shrink with the A and an expand with the B and the offsets that they
give to the backend, and no more (Inkling's differs in how adapters are loaded). Of no other class
that is known, one that inherits from these included."""

QUANT_METHOD = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod"
"""Which multiplies with the layer's weight as it is."""


class LayerCall(NamedTuple):
    """What a layer and its adapters are multiplied with, of the arguments of a call.

    Attributes:
        backend: SGLang's, which has the batch.
        layer: SGLang's wrapper of the layer.
        x: (s, K).
        lora_a: (adapters, S * R, K).
        lora_b: (adapters, N, R).
        output_offset: (S + 1,), boundaries of the slices in the output, on the device.
        offsets: the same on the host.
    """

    backend: Any
    layer: Any
    x: Tensor
    lora_a: Tensor
    lora_b: Tensor
    output_offset: Tensor
    offsets: Sequence[int]

    @property
    def name(self) -> str:
        """For the log."""
        K, R, slices = self.lora_a.shape[-1], self.lora_b.shape[-1], len(self.offsets) - 1
        return f"LoRA layer K={K} N={self.offsets[-1]} R={R} S={slices}"


def around_forward_with_base(
    original: Callable[..., Tensor],
    backend: Any,
    layer: Any,
    x: Tensor,
    base_fn: Callable[[], Tensor],
    lora_a: Tensor,
    lora_b: Tensor,
    output_offset: Tensor,
    offsets: Sequence[int],
    *,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
    kind: str = KIND,
    pruned_batch_info: Any = None,
) -> Tensor:
    """In place of ``BaseLoRABackend.forward_with_base``.

    What is left to SGLang still comes to the two forward functions, which are hooked as well.
    """
    case: Case | None = None
    try:
        if (
            not is_compiling()
            and x.shape[0] >= _least_rows()
            and all_reduce is None
            and pruned_batch_info is None
            and kind == KIND
        ):
            call = LayerCall(backend, layer, x, lora_a, lora_b, output_offset, offsets)
            case = layer_case(call)
            is_new = case not in decided
            if is_new:
                decided[case] = _decision(call)
            config = decided[case]
            if config is not None:
                weight, ours = layer.base_layer.weight, _ours()
                batch = batch_view(backend.batch_info, x.shape[0])
                gap = ours.linear_gap(x, weight, lora_a, lora_b, batch, offsets)
                if gap is None:
                    say_once(f"{call.name}: one product with the layer's own")
                    made: Tensor = ours.linear_forward(
                        x, weight, lora_a, lora_b, batch, output_offset, shrink_config=config
                    )
                    return made
                if is_new:
                    say_once(f"{call.name}: SGLang's with {x.shape[0]} rows ({gap})")
    except Exception as error:  # nothing was written that SGLang has
        give_up("layer", case, error)
    return original(
        backend,
        layer,
        x,
        base_fn,
        lora_a,
        lora_b,
        output_offset,
        offsets,
        all_reduce=all_reduce,
        kind=kind,
        pruned_batch_info=pruned_batch_info,
    )


def layer_case(call: LayerCall) -> Case:
    """All that a decision on a layer may depend on, which the number of rows is not."""
    base, batch_info = call.layer.base_layer, call.backend.batch_info
    weight = getattr(base, "weight", None)
    return (
        "layer",
        call.backend.name,
        type(call.layer),
        type(base.quant_method),
        type(weight),
        _adds_bias(base),
        tuple(call.offsets),
        batch_info.max_len,
        batch_info.lora_ranks.shape,
        call.lora_b.shape,
        call.output_offset.shape,
        *(tensor_key(tensor) for tensor in (call.x, call.lora_a, call.output_offset)),
    )


def layer_gap(call: LayerCall) -> str | None:
    """Why a layer is SGLang's with any number of rows; None where only that may be why."""
    import torch

    if call.backend.name != BACKEND:
        return f"backend {call.backend.name}"
    kind = type(call.layer)
    if kind.__module__ != LAYERS_MODULE or kind.__qualname__ not in LAYERS:
        return f"layer {_kind(call.layer)}"
    base, offset = call.layer.base_layer, call.output_offset
    if _kind(base.quant_method) != QUANT_METHOD:
        return f"quantization {_kind(base.quant_method)}"
    if type(base.weight) not in (torch.Tensor, torch.nn.Parameter):
        return f"weight {_kind(base.weight)}"
    if _adds_bias(base):
        return "a bias is added"
    slices, columns, rank = len(call.offsets) - 1, call.lora_a.shape[1], call.lora_b.shape[2]
    if slices < 1 or columns != slices * rank:
        return f"{columns} columns for {slices} slices of rank {rank}"
    if offset.dtype not in (torch.int64, torch.int32) or offset.device != call.x.device:
        return f"slice offsets are {offset.dtype} on {offset.device}"
    if offset.shape != (slices + 1,) or not offset.is_contiguous():
        return "slice offsets are not contiguous, or not one more than slices"
    batch_info = call.backend.batch_info
    gap = shrink_gap(call.x, call.lora_a, batch_info, slices, None)
    adapters = call.lora_b.shape[0]
    if gap is None and batch_info.lora_ranks.shape[0] != adapters:
        return f"{batch_info.lora_ranks.shape[0]} ranks for {adapters} adapters"
    return gap


def _decision(call: LayerCall) -> Config | None:
    """What our shrink launches with, in front of the product; None: the layer is SGLang's."""
    gap = layer_gap(call)
    config = None
    if gap is None:
        operands = call.x, call.lora_a, call.backend.batch_info, len(call.offsets) - 1
        config = shrink_config(shrink_case(*operands), *operands)
        if config is None:
            gap = "shrink is SGLang's"
    if gap is not None:
        say_once(f"{call.name}: SGLang's ({gap})")
    return config


def _adds_bias(base: Any) -> bool:
    return getattr(base, "bias", None) is not None and not getattr(base, "skip_bias_add", False)


def _kind(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


@functools.cache
def _least_rows() -> float:
    """Rows from which on a product can be ours; infinity where our kernel cannot be imported."""
    try:
        return int(_ours().LEAST_ROWS)
    except Exception as error:
        warn_once(f"LoRA layers are left to SGLang: {type(error).__name__}: {error}")
        return math.inf


@functools.cache
def _ours() -> Any:
    from lora_autotune.kernels import linear_forward

    return linear_forward
