"""A decoder of a served model's shape with LoRA on its projections: random weights, no torch.nn.

What costs as much with LoRA as without is kept plain: RMSNorm, torch's attention, SwiGLU, and the
vocabulary on one row for each sequence (without LoRA). Left out: the embedding, rotary positions,
the norms of q and k, and, at prefill, storing k and v.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from lora_autotune.model_shapes import ModelShape
from lora_autotune.task import offsets_from_widths

DEVICE, DTYPE = "cuda", torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear layer with the adapters of all slots.

    Attributes:
        weight: (out, in).
        a: LoRA A, (slots, S * R, in).
        b: LoRA B, (slots, out, R).
        offsets: the S + 1 boundaries of the slices in the output.
        offsets_on_device: the same, int64.
    """

    weight: Tensor
    a: Tensor
    b: Tensor
    offsets: tuple[int, ...]
    offsets_on_device: Tensor

    @property
    def slices(self) -> int:
        """S."""
        return len(self.offsets) - 1


Random = Callable[..., Tensor]
"""Of a size and a scale: normally distributed."""


def random_source(seed: int) -> Random:
    """Tensors one after the other; equal seeds give equal ones."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        made = torch.randn(size, generator=generator, device=DEVICE, dtype=DTYPE)
        return made.mul_(scale)

    return random


def random_projection(
    random: Random,
    width: int,
    offsets: tuple[int, ...],
    *,
    rank: int,
    slots: int,
    lora: float = 1.0,
) -> Projection:
    """Whose outputs are about one in size for such inputs, and what LoRA adds about ``lora``."""
    return Projection(
        weight=random(offsets[-1], width, scale=width**-0.5),
        a=random(slots, (len(offsets) - 1) * rank, width, scale=width**-0.5),
        b=random(slots, offsets[-1], rank, scale=lora * rank**-0.5),
        offsets=offsets,
        offsets_on_device=torch.tensor(offsets).to(DEVICE),
    )


Lora = Callable[[Tensor, Projection], Tensor]
"""A projection's output of an input, with what the adapters add to it."""

Attention = Callable[[int, Tensor], Tensor]
"""From a layer's number and its (rows, q + k + v) to (rows, q)."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer."""

    norms: tuple[Tensor, Tensor]
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection


class Decoder:
    """Random weights of a shape; every activation stays about one in size.

    Attributes:
        shape: the model's widths.
        layers: its layers.
    """

    def __init__(
        self, shape: ModelShape, *, layers: int, rank: int, slots: int, seed: int = 0
    ) -> None:
        assert shape.intermediate_size is not None
        assert shape.vocab_size is not None
        self.shape = shape
        random = random_source(seed)

        def projection(width: int, *outputs: int) -> Projection:
            offsets = offsets_from_widths(outputs)
            return random_projection(random, width, offsets, rank=rank, slots=slots, lora=0.1)

        hidden, between = shape.hidden_size, shape.intermediate_size
        q, kv = self.query_width, shape.num_kv_heads * shape.head_dim
        self.layers = [
            Layer(
                norms=(torch.ones(hidden, device=DEVICE, dtype=DTYPE),) * 2,
                qkv=projection(hidden, q, kv, kv),
                o=projection(q, hidden),
                gate_up=projection(hidden, between, between),
                down=projection(between, hidden),
            )
            for _ in range(layers)
        ]
        self._norm = torch.ones(hidden, device=DEVICE, dtype=DTYPE)
        self._head = random(shape.vocab_size, hidden, scale=hidden**-0.5)

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.shape.num_heads * self.shape.head_dim

    def step(self, hidden: Tensor, attend: Attention, lora: Lora | None, last: slice) -> Tensor:
        """From the rows' hidden states to the logits of the ``last`` ones."""
        for i, layer in enumerate(self.layers):
            mixed = attend(i, project(_normed(hidden, layer.norms[0]), layer.qkv, lora))
            hidden = hidden + project(mixed, layer.o, lora)
            gate_up = project(_normed(hidden, layer.norms[1]), layer.gate_up, lora)
            gate, up = gate_up.chunk(2, dim=-1)
            hidden = hidden + project(silu(gate) * up, layer.down, lora)
        return _normed(hidden[last], self._norm) @ self._head.T

    def prefill(self, sequences: int) -> Attention:
        """Causal attention of equally long sequences to themselves."""

        def attend(_layer: int, qkv: Tensor) -> Tensor:
            q, k, v = self._heads(qkv, sequences)
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return mixed.transpose(1, 2).reshape(-1, self.query_width)

        return attend

    def decode(self, sequences: int, length: int) -> Attention:
        """Attention of one token of each sequence to a cache, whose last place it fills."""
        size = (sequences, self.shape.num_kv_heads, length, self.shape.head_dim)
        caches = [
            [torch.randn(size, device=DEVICE, dtype=DTYPE) for _ in range(2)] for _ in self.layers
        ]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            q, k, v = self._heads(qkv, sequences)
            keys, values = caches[layer]
            keys[:, :, -1:].copy_(k)
            values[:, :, -1:].copy_(v)
            mixed = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
            return mixed.transpose(1, 2).reshape(-1, self.query_width)

        return attend

    def _heads(self, qkv: Tensor, sequences: int) -> list[Tensor]:
        """q, k and v as (sequences, heads, tokens, head_dim)."""
        bounds = itertools.pairwise(self.layers[0].qkv.offsets)
        return [
            qkv[:, start:end]
            .unflatten(1, (-1, self.shape.head_dim))
            .unflatten(0, (sequences, -1))
            .transpose(1, 2)
            for start, end in bounds
        ]


def project(x: Tensor, projection: Projection, lora: Lora | None) -> Tensor:
    """A linear layer, with its adapters where there are some."""
    return x @ projection.weight.T if lora is None else lora(x, projection)


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight.shape, weight)
