"""From a model to its tasks: only widths are read, no code of the model is ever run."""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from lora_autotune.errors import ModelError
from lora_autotune.model_families import shape_from_config
from lora_autotune.model_shapes import SHIPPED, ModelShape, shipped_shape
from lora_autotune.task import CHUNK_SIZES, DTypeName, KernelName, Task, offsets_from_widths

__all__ = ["ModelShape", "layer_task", "layers_of", "load_model_shape", "tasks_for"]

Layer = tuple[int, tuple[int, ...]]
"""A linear layer's input width, and the widths of its output's slices."""


def load_model_shape(source: str) -> ModelShape:
    """The shape of a shipped model, a ``config.json``, a model directory, or a hub repository.

    Tried in this order; the hub only when ``huggingface_hub`` is installed, for ``config.json``
    alone. A local directory with a shipped model's name is meant by ``./name``.

    Raises:
        ModelError: nothing of that name, a config of a family that is not known, or one that lacks
            what tasks are made from.
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
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config: it holds no JSON object")
    try:
        return shape_from_config(config, name=name)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint=error.hint) from None


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
    for layers in layers_of(shape, tp), _lm_head(shape, tp) if lm_head else []:
        for kernel, layer, chunk_size in itertools.product(kernels, layers, chunk_sizes):
            task = layer_task(layer, kernel, rank=rank, chunk_size=chunk_size, dtype=dtype)
            tasks[task] = None
    return list(tasks)


def layer_task(
    layer: Layer, kernel: KernelName, *, rank: int, chunk_size: int, dtype: DTypeName
) -> Task:
    """That of one of the kernels for a layer.

    Raises:
        UsageError: a rank, dtype or chunk size that no task can have.
    """
    width, outputs = layer
    return Task(
        kernel=kernel,
        K=width if kernel == "shrink" else sum(outputs),
        R=rank,
        S=len(outputs),
        chunk_size=chunk_size,
        dtype=dtype,
        slice_offsets=None if kernel == "shrink" else offsets_from_widths(outputs),
    )


def layers_of(shape: ModelShape, tp: int = 1) -> list[Layer]:
    """The linear layers of one tensor-parallel rank of a model, its lm_head aside.

    Raises:
        ModelError: the shape cannot be divided by ``tp``.
    """
    if tp < 1:
        raise ModelError(f"a tensor-parallel size of {tp} makes no sense")
    hidden = shape.hidden_size
    q = _share(shape.num_heads, tp, "heads") * shape.head_dim
    replicated = tp > shape.num_kv_heads and tp % shape.num_kv_heads == 0
    kv_heads = 1 if replicated else _share(shape.num_kv_heads, tp, "kv heads")
    kv = kv_heads * shape.head_dim
    layers: list[Layer] = [(hidden, (q, kv, kv))]
    if not shape.only_qkv:
        layers.append((q, (hidden,)))
    if shape.intermediate_size is not None:
        inner = _share(shape.intermediate_size, tp, "columns inside the MLP")
        layers += [(hidden, (inner, inner)), (inner, (hidden,))]
    return layers


def _lm_head(shape: ModelShape, tp: int) -> list[Layer]:
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
