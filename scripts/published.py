"""The published kernels: those of the SGLang that is installed, and the configs in its package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_autotune.errors import EvaluatorError
from lora_autotune.kernels.launcher import launcher
from lora_autotune.kernels.sglang import HOMES
from lora_autotune.loader import ROOT_VARIABLE, Lookup, explain_lookup
from lora_autotune.space import Config
from lora_autotune.task import Task

SET = "sglang"
"""The name of the set in `lora_autotune.kernel_set`."""


def published_name() -> str | None:
    """What is installed ("sglang-0.5.23"); None: nothing that we know."""
    try:
        return launcher(SET).name
    except EvaluatorError:
        return None


def looked_up(task: Task) -> Config:
    """What the loader finds for a task."""
    return Config.from_dict(_lookup(task).config)


def published_config(task: Task) -> Config:
    """What a server without our plug-in launches a task with: a config in SGLang's package."""
    spec = importlib.util.find_spec("sglang")
    places = (spec.submodule_search_locations or []) if spec is not None else []
    for folder in (Path(place, home) for place in places for home in HOMES):
        if (folder / "csgmv_configs").is_dir():
            with _root(folder):
                return looked_up(task)
    raise EvaluatorError("SGLang's package holds no csgmv_configs")


def config_in(folder: Path, task: Task) -> Config:
    """What the loader finds in a folder; an EvaluatorError where that is the default only."""
    with _root(folder):
        found = _lookup(task)
    if found.path is None:
        raise EvaluatorError(f"{folder} has no config of {task}: {found.reason}")
    return Config.from_dict(found.config)


def _lookup(task: Task) -> Lookup:
    return explain_lookup(task.kernel, task.K, task.R, task.S, task.chunk_size)


@contextmanager
def _root(folder: Path) -> Iterator[None]:
    """The loader reads the configs in a folder."""
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[ROOT_VARIABLE]
        if before is not None:
            os.environ[ROOT_VARIABLE] = before
