"""From a model to its tasks: only widths are read, no code of the model is ever run."""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_autotune.errors import ModelError
from lora_autotune.model_shapes import SHIPPED, ModelShape, shipped_shape
from lora_autotune.task import CHUNK_SIZES, DTypeName, KernelName, Task, offsets_from_widths

__all__ = ["ModelShape", "load_model_shape", "tasks_for"]

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_OTHER_ATTENTION = {
    "kv_lora_rank": "multi-head latent attention has no q/k/v projection",
    "attn_output_gate": "its q projection also produces a gate",
}


def load_model_shape(source: str) -> ModelShape:
    """The shape of a shipped model, a ``config.json``, a model directory, or a hub repository.

    Tried in this order; the hub only when ``huggingface_hub`` is installed, for ``config.json``
    alone. A local directory with a shipped model's name is meant by ``./name``.

    Raises:
        ModelError: nothing of that name, or a config that lacks what tasks are made from.
    """
    if shape := shipped_shape(source):
        return shape
    path = Path(source).expanduser()
    if path.is_dir():
        path /= "config.json"
        if not path.is_file():
            raise ModelError(f"{path.parent} holds no config.json")
    if path.is_file():
        # A bare "config.json" is named after the directory it lies in.
        return _shape_from_file(path, name=path.resolve().parent.name)
    if source.endswith(".json") or source.startswith((".", "/", "~")):
        raise ModelError(f"no such file or directory: {source}")
    return _shape_from_file(_from_hub(source), name=source.rpartition("/")[2])


def _from_hub(source: str) -> Path:
    names = [shape.name for shape in SHIPPED.values()]
    by_case = {name.casefold(): name for name in names}
    last_part = source.casefold().rpartition("/")[2]
    close = difflib.get_close_matches(last_part, by_case, n=1, cutoff=0.75)
    hint = f"did you mean {by_case[close[0]]}?" if close else f"shipped: {', '.join(names)}"
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ModelError(
            f"no model {source!r} here, and the hub cannot be asked without huggingface_hub",
            hint=f"{hint}; or give a config.json or a model directory",
        ) from None
    try:
        return Path(hub.hf_hub_download(source, "config.json"))
    except Exception as error:  # no network, no such repository, no access: the hub's own classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"no model {source!r} on the hub: {reason}", hint=hint) from error


def _shape_from_file(path: Path, *, name: str) -> ModelShape:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config: it holds no JSON object")
    try:
        return _shape_from_config(config, name=name)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint=error.hint) from None


def _shape_from_config(config: Mapping[str, Any], *, name: str) -> ModelShape:
    for field, reason in _OTHER_ATTENTION.items():
        if config.get(field):
            raise ModelError(
                f"{field} is set: {reason}",
                hint="give the shapes by hand: --kernel, -K, -S, --slices",
            )
    experts = max((config[field] for field in _EXPERTS if _positive(config.get(field))), default=0)
    required = ["hidden_size", "num_attention_heads"] + ["intermediate_size"] * (not experts)
    optional = ["num_key_value_heads", "head_dim", "vocab_size"]
    given = {field: config[field] for field in required + optional if config.get(field) is not None}
    if missing := [field for field in required if field not in given]:
        raise ModelError(f"no {', '.join(missing)}", hint=f"needed: {', '.join(required)}")
    for field, value in given.items():
        if not _positive(value):
            raise ModelError(f"{field} must be a positive integer, not {value!r:.80}")
    hidden, heads = given["hidden_size"], given["num_attention_heads"]
    if "head_dim" not in given and hidden % heads:
        raise ModelError(
            f"no head_dim, and hidden_size {hidden} is not a multiple of {heads} heads"
        )
    note = f"{name} is a mixture of {experts} experts: only its attention layers are tuned"
    return ModelShape(
        name=name,
        hidden_size=hidden,
        intermediate_size=None if experts else given["intermediate_size"],
        num_heads=heads,
        num_kv_heads=given.get("num_key_value_heads", heads),
        head_dim=given.get("head_dim", hidden // heads),
        vocab_size=given.get("vocab_size"),
        notes=(f"{note}; its experts, and any shared or dense MLP, are left out",) * bool(experts),
    )


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def tasks_for(
    shape: ModelShape,
    *,
    rank: int,
    tp: int = 1,
    dtype: DTypeName = "float16",
    chunk_sizes: Sequence[int] = CHUNK_SIZES,
    lm_head: bool = False,
) -> list[Task]:
    """Every distinct task of one tensor-parallel rank of a model, shrink first, lm_head last.

    Within one model only layers of one slice can share a width, so tasks that share a config file
    (kernel, K, R, S) also share their slice boundaries. Two *models* can differ there: the same
    (K, S) cut elsewhere. Their configs then share one file, and the run that comes last wins.

    Raises:
        ModelError: the shape cannot be divided by ``tp``, or lm_head is asked of a shape without a
            vocabulary size.
        UsageError: a rank, dtype or chunk size that no task can have.
    """
    kernels: tuple[KernelName, ...] = ("shrink", "expand")
    tasks: dict[Task, None] = {}
    for layers in _layers(shape, tp), _lm_head(shape, tp) if lm_head else []:
        for kernel, (width, outputs), chunk_size in itertools.product(kernels, layers, chunk_sizes):
            task = Task(
                kernel=kernel,
                K=width if kernel == "shrink" else sum(outputs),
                R=rank,
                S=len(outputs),
                chunk_size=chunk_size,
                dtype=dtype,
                slice_offsets=None if kernel == "shrink" else offsets_from_widths(outputs),
            )
            tasks[task] = None
    return list(tasks)


_Layer = tuple[int, tuple[int, ...]]
"""Input width, and the widths of the output's slices."""


def _layers(shape: ModelShape, tp: int) -> list[_Layer]:
    if tp < 1:
        raise ModelError(f"a tensor-parallel size of {tp} makes no sense")
    hidden = shape.hidden_size
    q = _share(shape.num_heads, tp, "heads") * shape.head_dim
    replicated = tp > shape.num_kv_heads and tp % shape.num_kv_heads == 0
    kv_heads = 1 if replicated else _share(shape.num_kv_heads, tp, "kv heads")
    kv = kv_heads * shape.head_dim
    layers = [(hidden, (q, kv, kv)), (q, (hidden,))]
    if shape.intermediate_size is not None:
        inner = _share(shape.intermediate_size, tp, "columns between gate/up and down")
        layers += [(hidden, (inner, inner)), (inner, (hidden,))]
    return layers


def _lm_head(shape: ModelShape, tp: int) -> list[_Layer]:
    if shape.vocab_size is None:
        raise ModelError(f"{shape.name} has no vocab_size, which lm_head needs")
    return [(shape.hidden_size, (_share(shape.vocab_size, tp, "rows of the vocabulary"),))]


def _share(count: int, tp: int, what: str) -> int:
    if count % tp:
        raise ModelError(
            f"{count} {what} cannot be divided over {tp} tensor-parallel ranks",
            hint="choose another --tp",
        )
    return count // tp
