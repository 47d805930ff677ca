from __future__ import annotations

import itertools
from typing import Any

import pytest

from lora_autotune.errors import ModelError, UsageError
from lora_autotune.model import ModelShape, tasks_for
from lora_autotune.model_families import shape_from_config
from lora_autotune.task import MAX_RANK, DTypeName

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


def written(model_type: str, *values: int | None, **more: Any) -> dict[str, Any]:
    """A config.json's fields as a model on the hub has them; a value that is None is absent."""
    given = {field: value for field, value in zip(FIELDS, values, strict=False) if value}
    return {"model_type": model_type, **given, **more}


def wrapped(model_type: str, text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": text, "vision_config": {"hidden_size": 1152}}


def layers(shape: ModelShape, *, tp: int = 1) -> tuple[list[tuple[int, ...]], ...]:
    """The shrinks' (K, S), and the widths of the expands' slices."""
    tasks = tasks_for(shape, rank=16, tp=tp, chunk_sizes=[16])
    cuts = [itertools.pairwise(task.slice_offsets) for task in tasks if task.slice_offsets]
    shrink = [(task.K, task.S) for task in tasks if task.kernel == "shrink"]
    return shrink, [tuple(b - a for a, b in cut) for cut in cuts]


DENSE = {
    "Llama-3.1-8B": (
        written("llama", 4096, 14_336, 32, 8, None, 128_256),
        [(4096, 3), (4096, 1), (4096, 2), (14_336, 1)],
        [(4096, 1024, 1024), (4096,), (14_336, 14_336)],
    ),
    "llama-7b, which came before grouped queries": (
        written("llama", 4096, 11_008, 32, None, None, 32_000),
        [(4096, 3), (4096, 1), (4096, 2), (11_008, 1)],
        [(4096, 4096, 4096), (4096,), (11_008, 11_008)],
    ),
    "llava-1.5-7b, whose llama is all defaults": (
        wrapped("llava", written("llama", vocab_size=32_064)),
        [(4096, 3), (4096, 1), (4096, 2), (11_008, 1)],
        [(4096, 4096, 4096), (4096,), (11_008, 11_008)],
    ),
    "Mistral-Nemo, with heads that do not share hidden_size": (
        written("mistral", 5120, 14_336, 32, 8, 128, 131_072),
        [(5120, 3), (4096, 1), (5120, 2), (14_336, 1)],
        [(4096, 1024, 1024), (5120,), (14_336, 14_336)],
    ),
    "Mistral-Small-3.1": (
        wrapped("mistral3", written("mistral", 5120, 32_768, 32, 8, 128, 131_072)),
        [(5120, 3), (4096, 1), (5120, 2), (32_768, 1)],
        [(4096, 1024, 1024), (5120,), (32_768, 32_768)],
    ),
    "Ministral-3-8B": (
        wrapped("mistral3", written("ministral3", 4096, 14_336, 32, 8, 128, 131_072)),
        [(4096, 3), (4096, 1), (4096, 2), (14_336, 1)],
        [(4096, 1024, 1024), (4096,), (14_336, 14_336)],
    ),
    "Qwen2.5-7B": (
        written("qwen2", 3584, 18_944, 28, 4, None, 152_064),
        [(3584, 3), (3584, 1), (3584, 2), (18_944, 1)],
        [(3584, 512, 512), (3584,), (18_944, 18_944)],
    ),
    "Qwen2.5-VL-7B, flat": (
        written("qwen2_5_vl", 3584, 18_944, 28, 4, None, 152_064),
        [(3584, 3), (3584, 1), (3584, 2), (18_944, 1)],
        [(3584, 512, 512), (3584,), (18_944, 18_944)],
    ),
    "Qwen2-VL-72B, saved again: its text_config may be all defaults": (
        wrapped("qwen2_vl", written("qwen2_vl_text")),
        [(8192, 3), (8192, 1), (8192, 2), (29_568, 1)],
        [(8192, 1024, 1024), (8192,), (29_568, 29_568)],
    ),
    "Qwen3-4B": (
        written("qwen3", 2560, 9728, 32, 8, 128, 151_936),
        [(2560, 3), (4096, 1), (2560, 2), (9728, 1)],
        [(4096, 1024, 1024), (2560,), (9728, 9728)],
    ),
    "Qwen3-VL-8B": (
        wrapped("qwen3_vl", written("qwen3_vl_text", 4096, 12_288, 32, 8, 128, 151_936)),
        [(4096, 3), (4096, 1), (4096, 2), (12_288, 1)],
        [(4096, 1024, 1024), (4096,), (12_288, 12_288)],
    ),
    "gemma-7b": (
        written("gemma", 3072, 24_576, 16, 16, 256, 256_000),
        [(3072, 3), (4096, 1), (3072, 2), (24_576, 1)],
        [(4096, 4096, 4096), (3072,), (24_576, 24_576)],
    ),
    "paligemma-3b, which leaves out head_dim": (
        wrapped("paligemma", written("gemma", 2048, 16_384, 8, 1, None, 257_216)),
        [(2048, 3), (2048, 1), (2048, 2), (16_384, 1)],
        [(2048, 256, 256), (2048,), (16_384, 16_384)],
    ),
    "gemma-2-9b": (
        written("gemma2", 3584, 14_336, 16, 8, 256, 256_000),
        [(3584, 3), (4096, 1), (3584, 2), (14_336, 1)],
        [(4096, 2048, 2048), (3584,), (14_336, 14_336)],
    ),
    "gemma-3-1b": (
        written("gemma3_text", 1152, 6912, 4, 1, 256, 262_144),
        [(1152, 3), (1024, 1), (1152, 2), (6912, 1)],
        [(1024, 256, 256), (1152,), (6912, 6912)],
    ),
    "gemma-3-4b, which leaves out heads and vocabulary": (
        wrapped("gemma3", written("gemma3_text", 2560, 10_240)),
        [(2560, 3), (2048, 1), (2560, 2), (10_240, 1)],
        [(2048, 1024, 1024), (2560,), (10_240, 10_240)],
    ),
    "phi-2, whose other layers take no LoRA": (
        written("phi", 2560, 10_240, 32, 32, None, 51_200),
        [(2560, 3)],
        [(2560, 2560, 2560)],
    ),
    "Phi-3-mini, fused in its checkpoint": (
        written("phi3", 3072, 8192, 32, 32, None, 32_064),
        [(3072, 3), (3072, 1), (3072, 2), (8192, 1)],
        [(3072, 3072, 3072), (3072,), (8192, 8192)],
    ),
    "phi-4": (
        written("phi3", 5120, 17_920, 40, 10, None, 100_352),
        [(5120, 3), (5120, 1), (5120, 2), (17_920, 1)],
        [(5120, 1280, 1280), (5120,), (17_920, 17_920)],
    ),
    "Phi-4-multimodal": (
        written("phi4mm", 3072, 8192, 24, 8, None, 200_064),
        [(3072, 3), (3072, 1), (3072, 2), (8192, 1)],
        [(3072, 1024, 1024), (3072,), (8192, 8192)],
    ),
}
MIXTURES = {
    "Mixtral-8x7B": (
        written("mixtral", 4096, 14_336, 32, 8, None, 32_000, num_local_experts=8),
        [(4096, 3), (4096, 1)],
        [(4096, 1024, 1024), (4096,)],
    ),
    "Llama-4-Scout": (
        wrapped("llama4", written("llama4_text", 5120, 8192, 40, 8, 128, num_local_experts=16)),
        [(5120, 3), (5120, 1)],
        [(5120, 1024, 1024), (5120,)],
    ),
    "Qwen1.5-MoE-A2.7B": (
        written("qwen2_moe", 2048, 5632, 16, 16, None, 151_936, num_experts=60),
        [(2048, 3), (2048, 1)],
        [(2048, 2048, 2048), (2048,)],
    ),
    "Qwen3-30B-A3B": (
        written("qwen3_moe", 2048, 6144, 32, 4, 128, 151_936, num_experts=128),
        [(2048, 3), (4096, 1)],
        [(4096, 512, 512), (2048,)],
    ),
    "Qwen3-VL-30B-A3B": (
        wrapped(
            "qwen3_vl_moe",
            written("qwen3_vl_moe_text", 2048, 6144, 32, 4, 128, 151_936, num_experts=128),
        ),
        [(2048, 3), (4096, 1)],
        [(4096, 512, 512), (2048,)],
    ),
    "Phi-3.5-MoE": (
        written("phimoe", 4096, 6400, 32, 8, None, 32_064, num_local_experts=16),
        [(4096, 3), (4096, 1)],
        [(4096, 1024, 1024), (4096,)],
    ),
    "gpt-oss-20b, whose experts are not all of its name": (
        written("gpt_oss", 2880, 2880, 64, 8, 64, 201_088, num_local_experts=32, num_experts=None),
        [(2880, 3), (4096, 1)],
        [(4096, 512, 512), (2880,)],
    ),
}


@pytest.mark.parametrize("name", DENSE | MIXTURES)
def test_the_layers_of_a_model_that_people_serve(name: str) -> None:
    config, shrink, expand = (DENSE | MIXTURES)[name]

    assert layers(shape_from_config(config, name=name)) == (shrink, expand)


@pytest.mark.parametrize("name", MIXTURES)
def test_of_a_mixture_only_attention_is_tuned_and_that_is_said(name: str) -> None:
    config = MIXTURES[name][0]
    text = config.get("text_config", config)
    experts = text.get("num_experts") or text["num_local_experts"]
    shape = shape_from_config(config, name="model-x")

    (note,) = shape.notes
    assert note.startswith(f"model-x is a mixture of {experts} experts: only its attention layers")
    assert note.endswith("its experts, and any shared or dense MLP, are left out")
    # Nothing is tuned that has this width, so it is not asked for either.
    del (text := dict(text))["intermediate_size"]
    assert shape_from_config(text | {"vocab_size": shape.vocab_size}, name="model-x") == shape


@pytest.mark.parametrize("name", DENSE)
def test_of_a_dense_model_nothing_is_left_out_but_what_is_not_served_and_that_is_said(
    name: str,
) -> None:
    notes = shape_from_config(DENSE[name][0], name="model-x").notes

    left_out = "of model-x only q/k/v is tuned: SGLang has no LoRA on its dense, fc1 and fc2"
    assert notes == ((left_out,) if name.startswith("phi-2") else ())


def test_what_is_not_tuned_of_phi_is_not_asked_for() -> None:
    config = dict(DENSE["phi-2, whose other layers take no LoRA"][0])
    del config["intermediate_size"]
    shape = shape_from_config(config, name="phi-2")

    assert layers(shape, tp=2) == ([(2560, 3)], [(1280, 1280, 1280)])


def test_lm_head_has_the_vocabulary_that_was_left_out() -> None:
    config = wrapped("gemma3", written("gemma3_text", 2560, 10_240))
    shape = shape_from_config(config, name="gemma-3-4b")

    assert tasks_for(shape, rank=8, lm_head=True, chunk_sizes=[16])[-1].K == 262_208


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rank", [8, 16, 256])
def test_every_rank_and_dtype_that_adapters_have(rank: int, dtype: DTypeName) -> None:
    shape = shape_from_config(DENSE["Llama-3.1-8B"][0], name="llama")

    tasks = tasks_for(shape, rank=rank, dtype=dtype)

    assert {(task.R, task.dtype) for task in tasks} == {(rank, dtype)}


def test_a_rank_over_the_largest_is_refused() -> None:
    shape = shape_from_config(DENSE["Llama-3.1-8B"][0], name="llama")

    with pytest.raises(UsageError, match=f"over the largest supported, {MAX_RANK}"):
        tasks_for(shape, rank=MAX_RANK + 1)


@pytest.mark.parametrize(
    ("architecture", "like"),
    [
        ("LlamaForCausalLM", "llama"),
        ("LlamaForSequenceClassification", "llama"),
        ("Qwen2MoeForCausalLM", "qwen2_moe"),
        ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"),
        ("Gemma3ForCausalLM", "gemma3_text"),
        ("PhiForCausalLM", "phi"),
        ("PhiMoEForCausalLM", "phimoe"),
        ("Phi4MMForCausalLM", "phi4mm"),
        ("GptOssForCausalLM", "gpt_oss"),
    ],
)
def test_without_a_model_type_the_architecture_says(architecture: str, like: str) -> None:
    config = written(like, 2048, 8192, 16, 4, 128, 32_000, num_experts=8)
    named = config | {"model_type": None, "architectures": [architecture]}

    assert shape_from_config(named, name="x") == shape_from_config(config, name="x")


def test_a_text_config_without_a_name_has_its_wrappers() -> None:
    text = written("qwen3_vl_text", 4096, 12_288, 32, 8)
    config = wrapped("qwen3_vl", text | {"model_type": None})

    assert shape_from_config(config, name="x").head_dim == 128


FALCON = {"hidden_size": 4544, "num_attention_heads": 71, "num_kv_heads": 71, "vocab_size": 65_024}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "falcon", **FALCON},
            "unknown architecture 'falcon', and no intermediate_size, num_key_value_heads, head_d",
        ),
        (
            {"architectures": ["FalconForCausalLM"], **FALCON},
            "unknown architecture 'FalconForCausalLM', and no intermediate_size",
        ),
        (FALCON, "no model_type and no architectures, and no intermediate_size"),
        ({"architectures": [], "model_type": 5}, "no model_type and no architectures"),
        (
            written("gemma3n_text", 2048, 16_384, 8, 2, 256, 262_400),
            "unknown architecture 'gemma3n', and what its widths mean would be a guess",
        ),
        (
            wrapped("llava", written("mamba2", 4096)),
            "unknown architecture 'mamba2', and no intermediate_size",
        ),
    ],
)
def test_an_unknown_architecture_is_not_guessed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        shape_from_config(config, name="x")

    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("known: llama, mistral, ")
    assert caught.value.hint.endswith("by hand: --kernel, -K, -S, --slices")


@pytest.mark.parametrize(
    ("config", "message", "needed"),
    [
        (written("llama"), "no hidden_size, intermediate_size, num_attention_heads", "of a llama"),
        (
            # Of the classes that have a default of their own here, a file's silence says nothing.
            written("mistral", 4096, 14_336, 32),
            "no num_key_value_heads",
            "of a mistral: hidden_size, intermediate_size, num_attention_heads, num_key_value",
        ),
        (written("qwen3", 2560, 9728, 32, 8), "no head_dim", "num_key_value_heads, head_dim"),
        (written("gemma2", 2304, 9216, 8), "no num_key_value_heads, head_dim", "of a gemma2"),
        (written("mixtral", 4096, 14_336, 32, 8), "no num_experts", "hidden_size, num_experts"),
    ],
)
def test_a_known_family_needs_its_fields(config: dict[str, Any], message: str, needed: str) -> None:
    with pytest.raises(ModelError) as caught:
        shape_from_config(config, name="x")

    assert caught.value.message == message
    assert caught.value.hint is not None
    assert needed in caught.value.hint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (written("deepseek_v3", 7168, 18_432, 128, kv_lora_rank=512), "multi-head latent"),
        (wrapped("kimi_vl", written("deepseek_v3", kv_lora_rank=512)), "multi-head latent"),
        (written("qwen3", 2560, 9728, 32, 8, 128, attn_output_gate=True), "also produces a gate"),
        (written("qwen3_next", 2048, 5120, 16, 2, 256), "unknown architecture 'qwen3_next'"),
        (written("mixtral", 4096, 0, 32, 8, num_experts="8"), "num_experts must be a positive"),
    ],
)
def test_what_has_other_layers_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        shape_from_config(config, name="x")

    assert message in caught.value.message
