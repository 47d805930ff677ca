"""The real SGLang, for what .ci/sglang runs: hooked in fresh processes, unhooked in this one."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lora_autotune
from lora_autotune import loader
from lora_autotune.kernels.batch import make_batch
from lora_autotune.sglang import MODE_VARIABLE, forwards

H200 = "NVIDIA H200"
HOME = "sglang.kernels.ops.lora.dense"
CONFIGS = Path(lora_autotune.__file__).parent / "configs"

# torchvision's compiled half does not load beside a CPU build of torch, and this module of its
# Python half then fails on import. SGLang needs torchvision for pictures only.
PREAMBLE = """
import logging, sys, types, warnings
warnings.simplefilter("ignore")
import torch
if not torch.cuda.is_available():
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
from types import SimpleNamespace
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.kernels.ops.lora.dense import chunked_sgmv_expand as expand_module
from sglang.kernels.ops.lora.dense import chunked_sgmv_shrink as shrink_module
from sglang.kernels.ops.lora.dense import lora_tuning_config as tuning
from sglang.srt.lora.backend import chunked_backend as backend
from sglang.srt.lora.utils import LoRABatchInfo
"""

STATE = """
import json
torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
tuning.get_device_name = lambda: "NVIDIA H200"
functions = (
    tuning.get_lora_shrink_config, tuning.get_lora_expand_config,
    shrink_module.get_lora_shrink_config, expand_module.get_lora_expand_config,
    shrink_module.chunked_sgmv_lora_shrink_forward, expand_module.chunked_sgmv_lora_expand_forward,
    backend.chunked_sgmv_lora_shrink_forward, backend.chunked_sgmv_lora_expand_forward,
)
print("".join(str(int(hasattr(function, "__wrapped__"))) for function in functions))
print(json.dumps([
    shrink_module.get_lora_shrink_config(K=1024, R=64, num_slices=3, chunk_size=64),
    shrink_module.get_lora_shrink_config(K=1000, R=64, num_slices=3, chunk_size=64),
    expand_module.get_lora_expand_config(K=4096, R=64, num_slices=3, chunk_size=16),
    expand_module.get_lora_expand_config(K=1000, R=64, num_slices=1, chunk_size=16),
]))
"""


def server(code: str, **environment: str) -> tuple[str, str]:
    """What a fresh process with SGLang's plug-ins loaded prints and logs."""
    kept = {k: v for k, v in os.environ.items() if k not in (MODE_VARIABLE, loader.ROOT_VARIABLE)}
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def module(name: str) -> Any:
    """A module of SGLang, in this process, unhooked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            stub = "torchvision._meta_registrations"
            sys.modules.setdefault(stub, types.ModuleType(stub))
        return importlib.import_module(name)


def forgetful(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The plug-in as if never asked, before and after; what it says is captured."""
    monkeypatch.delenv(loader.ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(MODE_VARIABLE, raising=False)
    caplog.set_level(logging.INFO, logger="lora_autotune")
    loader.clear_cache()
    forwards.forget()
    yield
    loader.clear_cache()
    forwards.forget()


@functools.cache
def state(mode: str, **environment: str) -> tuple[str, list[dict[str, int]], str]:
    """What is hooked, what four lookups answer, and the log, in one mode."""
    output, log = server(STATE, **{MODE_VARIABLE: mode}, **environment)
    hooked, answers = output.splitlines()
    return hooked, json.loads(answers), log


def batch_info(
    rows: int = 40, *, graph: bool = False, segments: int | None = None, **changes: Any
) -> Any:
    """SGLang's description of a batch of three adapters in turns, ranks 16, 0 and 7."""
    batch = make_batch(
        [row % 3 for row in range(rows)],
        ranks=[16, 0, 7],
        scalings=[0.5, 1.0, 2.0],
        chunk_size=16,
        grid_segments=segments,
    )
    values = {
        "use_cuda_graph": graph,
        "bs": rows,
        "num_segments": batch.num_segs,
        "seg_indptr": batch.seg_indptr,
        "weight_indices": batch.weight_indices,
        "lora_ranks": batch.lora_ranks,
        "scalings": batch.scalings,
        "max_len": batch.chunk_size,
        "seg_lens": None,
        "permutation": batch.permutation,
    }
    return module("sglang.srt.lora.utils").LoRABatchInfo(**{**values, **changes})
