"""The families whose config.json is understood: what its fields mean, and what may be absent.

Only what is in the table is read; another family's fields can have the same names and mean
something else (a gate inside the query projection, one width per layer, latent attention).
Fields and defaults are those of Transformers' configuration classes (5.19; the same in 4.57); how
projections are fused is how SGLang (0.5.23) serves them: q/k/v as one layer of three slices and
gate/up as one of two, also where a checkpoint such as Phi-3's has them fused already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_autotune.errors import ModelError
from lora_autotune.model_shapes import ModelShape

__all__ = ["shape_from_config"]

_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)

_Defaults = tuple[int, int, int, int | None, int | None, int]

_PHI3: _Defaults = (3072, 8192, 32, None, None, 32_064)
_QWEN2_VL: _Defaults = (8192, 29_568, 64, 8, None, 152_064)
_QWEN3: _Defaults = (4096, 22_016, 32, 32, 128, 151_936)

_DENSE: dict[str, _Defaults] = {
    "llama": (4096, 11_008, 32, None, None, 32_000),
    "mistral": (4096, 14_336, 32, 8, None, 32_000),
    "ministral3": (4096, 14_336, 32, 8, 128, 131_072),
    "qwen2": (4096, 22_016, 32, 32, None, 151_936),
    "qwen2_vl": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen3": _QWEN3,
    "qwen3_vl": _QWEN3,
    "gemma": (3072, 24_576, 16, 16, 256, 256_000),
    "gemma2": (2304, 9216, 8, 4, 256, 256_000),
    "gemma3": (2304, 9216, 8, 4, 256, 262_208),
    "phi": (2048, 8192, 32, None, None, 51_200),
    "phi3": _PHI3,
    "phi4mm": (*_PHI3[:-1], 200_064),  # Its class comes with the checkpoint.
}
_MIXTURES: dict[str, _Defaults] = {
    "mixtral": (4096, 14_336, 32, 8, None, 32_000),
    "llama4": (5120, 8192, 40, 8, 128, 202_048),
    "qwen2_moe": (2048, 5632, 16, 16, None, 151_936),
    "qwen3_moe": (2048, 6144, 32, 4, None, 151_936),
    "qwen3_vl_moe": (2048, 5632, 16, 16, None, 151_936),
    "phimoe": (4096, 6400, 32, 8, None, 32_064),
    "gpt_oss": (2880, 2880, 64, 8, 64, 201_088),
}
_FAMILIES = _DENSE | _MIXTURES
"""model_type, less a final _text -> the default of each of _FIELDS; None: derived from others."""

_EXPERTS = ("num_experts", "num_local_experts")
_ONLY_QKV = ("phi",)
"""Families whose other layers are not called o_proj, gate_up_proj and down_proj: SGLang has no LoRA
on Phi's dense, fc1 and fc2."""

_OTHER_ATTENTION = {
    "kv_lora_rank": "multi-head latent attention has no q/k/v projection",
    "attn_output_gate": "its q projection also produces a gate",
}
_BY_HAND = "give the shapes by hand: --kernel, -K, -S, --slices"


def shape_from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The widths of a model's language layers, from its config.json.

    A multimodal model has them in a ``text_config``, from which Transformers may leave out what
    equals the default of its class. At the top level it writes every field, so there one that is
    absent is missing, unless the class derives it: as many key and value heads as heads, heads that
    share hidden_size.

    Raises:
        ModelError: a family that is not known, or a field that is missing or no positive integer.
    """
    text = config.get("text_config")
    fields: Mapping[str, Any] = text if isinstance(text, dict) else config
    for field, reason in _OTHER_ATTENTION.items():
        if fields.get(field):
            raise ModelError(f"{field} is set: {reason}", hint=_BY_HAND)
    given = {field: fields[field] for field in _FIELDS if fields.get(field) is not None}
    family = _known_family(fields, config, lacking=[f for f in _FIELDS[:-1] if f not in given])
    defaults = dict(zip(_FIELDS, _FAMILIES[family], strict=True))
    if fields is text:
        given = {field: value for field, value in defaults.items() if value} | given
    required = [field for field in _FIELDS[:-1] if defaults[field]]
    if family in _MIXTURES:
        given["num_experts"] = next((fields[f] for f in _EXPERTS if fields.get(f)), None)
        required[required.index("intermediate_size")] = "num_experts"
    elif family in _ONLY_QKV:
        required.remove("intermediate_size")
    missing = [field for field in required if given.get(field) is None]
    if missing:
        raise ModelError(
            f"no {', '.join(missing)}", hint=f"needed of a {family}: {', '.join(required)}"
        )
    return _shape(family, given, name)


def _known_family(*configs: Mapping[str, Any], lacking: list[str]) -> str:
    """The first name that any of the configs has, which must be that of a family."""
    family = next(filter(None, map(_family_name, configs)), None)
    if family in _FAMILIES:
        return family
    what = f"unknown architecture {family!r}" if family else "no model_type and no architectures"
    lack = f"no {', '.join(lacking)}" if lacking else "what its widths mean would be a guess"
    raise ModelError(
        f"{what}, and {lack}", hint=f"known: {', '.join(_FAMILIES)}; for another {_BY_HAND}"
    )


def _family_name(config: Mapping[str, Any]) -> str | None:
    """What a config calls its family: model_type, or else the class in architectures."""
    if isinstance(model_type := config.get("model_type"), str):
        return model_type.removesuffix("_text")
    match config.get("architectures"):
        case [str(architecture), *_]:
            stem = architecture.partition("For")[0].replace("_", "").casefold()
            named = (family for family in _FAMILIES if family.replace("_", "") == stem)
            return next(named, architecture)
    return None


def _shape(family: str, given: Mapping[str, Any], name: str) -> ModelShape:
    for field, value in given.items():
        if type(value) is not int or value < 1:
            raise ModelError(f"{field} must be a positive integer, not {value!r:.80}")
    hidden, heads = given["hidden_size"], given["num_attention_heads"]
    if "head_dim" not in given and hidden % heads:
        raise ModelError(
            f"no head_dim, and hidden_size {hidden} is not a multiple of {heads} heads"
        )
    notes = []
    if experts := given.get("num_experts"):
        notes.append(
            f"{name} is a mixture of {experts} experts: only its attention layers are tuned; "
            "its experts, and any shared or dense MLP, are left out"
        )
    only_qkv = family in _ONLY_QKV
    if only_qkv:
        notes.append(f"of {name} only q/k/v is tuned: SGLang has no LoRA on its dense, fc1 and fc2")
    return ModelShape(
        name=name,
        hidden_size=hidden,
        intermediate_size=None if experts or only_qkv else given["intermediate_size"],
        only_qkv=only_qkv,
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads", heads),
        head_dim=given.get("head_dim", hidden // heads),
        vocab_size=given.get("vocab_size"),
        notes=tuple(notes),
    )
