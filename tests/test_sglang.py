"""The plug-in in the real SGLang: found, loaded and hooked; and SGLang's kernels, to be tuned."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.worker import Worker
from lora_autotune.kernels.launcher import launcher
from lora_autotune.sglang import MODE_VARIABLE, activate
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task, default_workload
from tests.loader_cases import said
from tests.sglang_cases import H200, HOME, module, server, state

pytestmark = pytest.mark.usefixtures("fresh")


# --- found, loaded, hooked -----------------------------------------------------------------------


def test_the_entry_point_is_installed() -> None:
    (found,) = (
        entry
        for entry in metadata.entry_points(group="sglang.srt.plugins")
        if entry.value.startswith("lora_autotune.")
    )
    assert found.load() is activate


@pytest.mark.parametrize(
    ("mode", "hooked"),
    [("kernels", "11111111"), ("configs", "11110000"), ("", "11111111"), ("off", "00000000")],
)
def test_what_is_hooked(mode: str, hooked: str) -> None:
    found, _, log = state(mode)
    assert found == hooked
    warnings = [line for line in log.splitlines() if line.startswith("WARNING lora_autotune")]
    assert all("No LoRA config for Triton" in line for line in warnings)  # the H200's are of one
    assert "Failed to" not in log


def test_another_sglang_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = module("sglang.srt.plugins.hook_registry").HookRegistry
    registered: list[str] = []
    monkeypatch.setattr(registry, "register", lambda target, *rest: registered.append(target))
    expand = module(f"{HOME}.chunked_sgmv_expand")
    monkeypatch.setenv(MODE_VARIABLE, "kernels")
    with monkeypatch.context() as patch:
        patch.setattr(expand, "chunked_sgmv_lora_expand_forward", lambda x, weights: None)
        activate()
        patch.delattr(expand, "chunked_sgmv_lora_expand_forward")
        activate()
    assert registered == []
    assert [line.partition(":")[0] for line in said(caplog, "WARNING")] == [
        "LoRA is left to SGLang"
    ] * 2
    for mode, count in (("kernels", 4), ("configs", 2), ("off", 0), ("", 4)):
        registered.clear()
        monkeypatch.setenv(MODE_VARIABLE, mode)
        activate()
        assert len(registered) == count


def test_an_unknown_mode_is_said_and_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = module("sglang.srt.plugins.hook_registry").HookRegistry
    monkeypatch.setattr(registry, "register", None)
    monkeypatch.setenv(MODE_VARIABLE, "kernel")
    activate()
    (warning,) = said(caplog, "WARNING")
    assert warning.startswith("LORA_AUTOTUNE_SGLANG=kernel is none of off, configs, kernels")


# --- its kernels, to be tuned --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("kernel", "K"), [("shrink", 1024), ("expand", 4096)])
def test_its_kernels_compile_for_a_hopper_as_tuning_does_it(
    kernel: Any, K: int, dtype: Any, tmp_path: Path
) -> None:
    gpu = Gpu(
        name=H200,
        capability=90,
        multiprocessors=132,
        smem_bytes=232_448,
        l2_bytes=60 << 20,
        triton="any",
    )
    offsets = (0, 2048, 3072, 4096) if kernel == "expand" else None
    task = Task(kernel=kernel, K=K, R=64, S=3, chunk_size=16, dtype=dtype, slice_offsets=offsets)
    assert launcher("sglang").name == f"sglang-{metadata.version('sglang')}"
    worker = Worker(compiling.set_up, gpu, str(tmp_path))
    try:
        for config in (DEFAULT_CONFIGS[kernel], Config(BLOCK_N=32, BLOCK_K=32, num_warps=4)):
            job = (task, default_workload(16), config, "sglang")
            compiled = worker.call(compiling.compile_config, *job, timeout_s=120)
            assert compiled.failure is None
            assert compiled.smem_bytes > 0
    finally:
        worker.close()


CHECK = """
import torch
from lora_autotune.evaluators.correctness import difference_from_reference
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.space import Config
from lora_autotune.task import Task
rest = dict(K=72, R=16, S=3, chunk_size=16)
for task in (Task(kernel="shrink", **rest),
             Task(kernel="expand", slice_offsets=(0, 40, 56, 72), **rest)):
    generator, config = torch.Generator().manual_seed(0), Config(BLOCK_N=32, BLOCK_K=16)
    print(difference_from_reference(task, config, Schedule(), generator, kernels="sglang"))
"""


def test_its_kernels_pass_the_check_that_candidates_go_through() -> None:
    output, _ = server(CHECK, TRITON_INTERPRET="1", **{MODE_VARIABLE: "off"})
    assert output.split() == ["None", "None"]
