"""What a model's tasks depend on, and the dimensions of a few well-known models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The widths of a decoder layer's linear projections.

    Attributes:
        name: how messages call the model.
        hidden_size: width of the residual stream.
        intermediate_size: width between gate/up and down; None: no dense MLP to tune.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of one head.
        only_qkv: nothing but the q/k/v projection takes LoRA.
        vocab_size: rows of lm_head; None when unknown.
        notes: what a user should be told about the tasks made from this shape.
    """

    name: str
    hidden_size: int
    intermediate_size: int | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    only_qkv: bool = False
    vocab_size: int | None = None
    notes: tuple[str, ...] = ()


# Hub name: hidden, intermediate, heads, kv heads, head_dim, vocabulary (from each config.json).
_DIMENSIONS = {
    "Qwen/Qwen3-0.6B": (1024, 3072, 16, 8, 128, 151_936),
    "Qwen/Qwen3-1.7B": (2048, 6144, 16, 8, 128, 151_936),
    "Qwen/Qwen3-4B": (2560, 9728, 32, 8, 128, 151_936),
    "Qwen/Qwen3-8B": (4096, 12_288, 32, 8, 128, 151_936),
    "Qwen/Qwen3-14B": (5120, 17_408, 40, 8, 128, 151_936),
    "Qwen/Qwen3-32B": (5120, 25_600, 64, 8, 128, 151_936),
    "Qwen/Qwen2.5-7B": (3584, 18_944, 28, 4, 128, 152_064),
    "meta-llama/Llama-3.1-8B": (4096, 14_336, 32, 8, 128, 128_256),
    "meta-llama/Llama-3.1-70B": (8192, 28_672, 64, 8, 128, 128_256),
    "meta-llama/Llama-3.2-1B": (2048, 8192, 32, 8, 64, 128_256),
    "meta-llama/Llama-3.2-3B": (3072, 8192, 24, 8, 128, 128_256),
    "mistralai/Mistral-7B-v0.3": (4096, 14_336, 32, 8, 128, 32_768),
}


def _shape(hub_name: str) -> ModelShape:
    hidden, intermediate, heads, kv_heads, head_dim, vocabulary = _DIMENSIONS[hub_name]
    return ModelShape(
        name=hub_name.rpartition("/")[2],
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
    )


SHIPPED: dict[str, ModelShape] = {name: _shape(name) for name in _DIMENSIONS}
"""Hub name -> shape of the models that need no network."""


def shipped_shape(source: str) -> ModelShape | None:
    """The shipped shape that a name means, with or without its organisation, in any case.

    An instruction-tuned or base variant has the dimensions of its model.
    """
    wanted = source.casefold().replace("-instruct", "").removesuffix("-base")
    for hub_name, shape in SHIPPED.items():
        if wanted in (hub_name.casefold(), shape.name.casefold()):
            return shape
    return None
