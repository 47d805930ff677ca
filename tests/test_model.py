from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.errors import ModelError, UsageError
from lora_autotune.model import ModelShape, load_model_shape, tasks_for
from lora_autotune.model_shapes import SHIPPED
from lora_autotune.task import Task

QWEN = load_model_shape("Qwen3-0.6B")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def shape_of(tmp_path: Path, **changes: Any) -> ModelShape:
    config = {field: value for field, value in (CONFIG | changes).items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return load_model_shape(str(tmp_path))


def shapes(tasks: list[Task], kernel: str) -> list[tuple[int, int]]:
    return list(dict.fromkeys((task.K, task.S) for task in tasks if task.kernel == kernel))


def test_the_tasks_of_qwen3_at_rank_64() -> None:
    tasks = tasks_for(QWEN, rank=64)

    assert len(tasks) == len(set(tasks)) == 28
    assert shapes(tasks, "shrink") == [(1024, 3), (2048, 1), (1024, 2), (3072, 1)]
    assert shapes(tasks, "expand") == [(4096, 3), (1024, 1), (6144, 2)]
    (qkv,) = {task.slice_offsets for task in tasks if (task.kernel, task.S) == ("expand", 3)}
    assert qkv == (0, 2048, 3072, 4096)
    assert {task.R for task in tasks} == {64}
    assert [task.chunk_size for task in tasks[:4]] == [16, 32, 64, 128]


def test_a_tensor_parallel_rank_has_its_share() -> None:
    tasks = tasks_for(QWEN, rank=16, tp=2, chunk_sizes=[64], dtype="bfloat16")

    # Column-parallel layers (qkv, gate/up) lose outputs, row-parallel ones (o, down) inputs.
    assert shapes(tasks, "shrink") == [(1024, 3), (1024, 1), (1024, 2), (1536, 1)]
    assert shapes(tasks, "expand") == [(2048, 3), (1024, 1), (3072, 2)]
    assert tasks[-3].slice_offsets == (0, 1024, 1536, 2048)
    assert {task.dtype for task in tasks} == {"bfloat16"}


def test_kv_heads_are_replicated_when_ranks_outnumber_them() -> None:
    (qkv,) = (
        task
        for task in tasks_for(QWEN, rank=64, tp=16, chunk_sizes=[16])
        if (task.kernel, task.S) == ("expand", 3)
    )

    assert qkv.slice_offsets == (0, 128, 256, 384)


@pytest.mark.parametrize(
    ("tp", "what"), [(3, "16 heads"), (32, "16 heads"), (0, "size of 0"), (-2, "size of -2")]
)
def test_a_size_that_does_not_divide_is_refused(tp: int, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        tasks_for(QWEN, rank=64, tp=tp)


def test_kv_heads_that_neither_divide_nor_repeat_are_refused(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, num_attention_heads=12, num_key_value_heads=3, head_dim=64)

    with pytest.raises(ModelError, match="3 kv heads"):
        tasks_for(shape, rank=64, tp=4)


def test_an_mlp_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="inside the MLP"):
        tasks_for(shape_of(tmp_path, intermediate_size=1535), rank=64, tp=2)


def test_lm_head_comes_last_and_only_on_request() -> None:
    layers = tasks_for(QWEN, rank=64, tp=2)
    with_head = tasks_for(QWEN, rank=64, tp=2, lm_head=True)

    assert with_head[: len(layers)] == layers
    # The head's own shrink is the shape that o_proj already has at this size.
    assert shapes(with_head[len(layers) :], "shrink") == []
    assert shapes(with_head[len(layers) :], "expand") == [(151_936 // 2, 1)]


def test_lm_head_needs_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vocab_size"):
        tasks_for(shape_of(tmp_path, vocab_size=...), rank=8, lm_head=True)


def test_a_rank_no_task_can_have_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="R must be"):
        tasks_for(QWEN, rank=0)


@given(
    shape=st.sampled_from(list(SHIPPED.values())),
    tp=st.sampled_from([1, 2, 4, 8, 16, 32, 64]),
    rank=st.sampled_from([8, 64]),
    lm_head=st.booleans(),
)
def test_the_ranks_together_cover_the_model(
    shape: ModelShape, tp: int, rank: int, lm_head: bool
) -> None:
    try:
        tasks = tasks_for(shape, rank=rank, tp=tp, chunk_sizes=[16], lm_head=lm_head)
    except ModelError:
        assert shape.num_heads % tp or (tp > shape.num_kv_heads and tp % shape.num_kv_heads)
        return
    assert len(set(tasks)) == len(tasks)
    for task in tasks:
        assert task.slice_offsets is None or task.slice_offsets[-1] == task.K
    (qkv,) = (task for task in tasks if (task.kernel, task.S) == ("expand", 3))
    q_dim, kv_dim = (heads * shape.head_dim for heads in (shape.num_heads, shape.num_kv_heads))
    assert qkv.K * tp == q_dim + 2 * max(kv_dim, tp * shape.head_dim)
    gate_up = [task for task in tasks if (task.kernel, task.S) == ("expand", 2)]
    assert [task.K * tp for task in gate_up] == [2 * (shape.intermediate_size or 0)]


@pytest.mark.parametrize("spelling", ["qwen3-0.6b", "Qwen/Qwen3-0.6B", "QWEN/qwen3-0.6b-base"])
def test_shipped_names_are_forgiving(spelling: str) -> None:
    assert load_model_shape(spelling) == QWEN


def test_variants_have_the_dimensions_of_their_model() -> None:
    assert load_model_shape("Mistral-7B-Instruct-v0.3") == load_model_shape("Mistral-7B-v0.3")


def test_somebody_elses_model_is_not_the_shipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(ModelError, match=r"did you mean Qwen3-0\.6B\?"):
        load_model_shape("somebody/Qwen3-0.6B")


def test_a_misspelt_name_gets_the_close_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(ModelError, match=r"did you mean Llama-3\.1-8B\?"):
        load_model_shape("LLama3.1-8b")
    with pytest.raises(ModelError, match=r"shipped: Qwen3-0\.6B, .*, Mistral-7B-v0\.3"):
        load_model_shape("nothing-like-it")


def test_the_hub_is_asked_for_config_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    asked = []

    def download(*arguments: str) -> str:
        asked.append(arguments)
        return str(path)

    hub = SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    assert load_model_shape("somebody/Model-X").name == "Model-X"
    assert asked == [("somebody/Model-X", "config.json")]


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: str) -> str:
        raise ConnectionError("no route\nand more lines")

    hub = SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    with pytest.raises(ModelError, match=r"on the hub: no route \(") as caught:
        load_model_shape("somebody/Model-X")
    assert "\n" not in str(caught.value)


def test_a_config_is_read_with_its_defaults(tmp_path: Path) -> None:
    shape = shape_of(tmp_path, num_key_value_heads=..., head_dim=None)

    assert (shape.num_kv_heads, shape.head_dim, shape.vocab_size) == (8, 64, 1000)
    assert shape.name == tmp_path.name
    assert load_model_shape(str(tmp_path / "config.json")) == shape


def test_head_dim_may_differ_from_the_quotient(tmp_path: Path) -> None:
    assert shape_of(tmp_path, head_dim=128).head_dim == 128


def test_a_text_config_inside_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 9, "text_config": CONFIG}))

    assert load_model_shape(str(tmp_path)).hidden_size == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "no hidden_size"),
        ({"hidden_size": ..., "intermediate_size": ...}, "no hidden_size, intermediate_size"),
        ({"hidden_size": "512"}, "hidden_size must be a positive integer, not '512'"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive integer"),
        ({"num_key_value_heads": [2, 4]}, "num_key_value_heads must be a positive integer"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, not 0"),
        ({"num_attention_heads": 7}, "not a multiple of 7 heads"),
        ({"model_type": "falcon"}, "unknown architecture 'falcon'"),
    ],
)
def test_a_config_that_tasks_cannot_be_made_from(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=r"config\.json: ") as caught:
        shape_of(tmp_path, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_shape(str(path))


def test_paths_that_are_not_there_are_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_model_shape(str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="no such file"):
        load_model_shape("missing/config.json")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model_shape(str(tmp_path))
