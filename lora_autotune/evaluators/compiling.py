"""The compile workers' jobs: Triton for a GPU that this process never touches, without torch."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from lora_autotune.evaluators.bounds import smem_failure
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import (
    empty_operands,
    planned_batch,
    schedule_of,
    task_launch,
    task_offsets,
)
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.blank import NOWHERE
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A candidate in the Triton cache, ready to be loaded.

    Attributes:
        compile_s: seconds that it took.
        compute_s: those that this process and its children computed, 0 where it failed.
        smem_bytes: shared memory per program, the most of its variants.
        failure: why it cannot run, if so.
    """

    compile_s: float
    compute_s: float = 0.0
    smem_bytes: int = 0
    failure: Failure | None = None


class TargetOnly:
    """A Triton driver that knows what to compile for, and can do nothing else."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """What Triton compiles for."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        """The default one."""
        return 0


class _NoTorch(MetaPathFinder):
    """Leaves a process without torch.

    Triton 3.6 and 3.7 import it, where they can, at a process's first compile: to know its tensors,
    of which there are none here. That takes seconds.
    """

    def find_spec(self, fullname: str, _path: object, _target: object = None, /) -> None:
        if fullname == "torch":
            raise ModuleNotFoundError("compile workers do without", name=fullname)


_gpu: Gpu


NICENESS = 5
"""The process that measures, and the tuner that feeds it, come first where cores are short."""


def set_up(gpu: Gpu, cache_dir: str) -> None:
    """Make this process compile for a GPU, into a Triton cache."""
    with contextlib.suppress(OSError):  # a sandbox may refuse it
        os.nice(NICENESS)
    global _gpu  # noqa: PLW0603 - a worker process has one state, set once
    _gpu = gpu
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = cache_dir  # what a compile leaves that is killed goes when the cache goes
    sys.meta_path.insert(0, _NoTorch())
    triton.runtime.driver.set_active(TargetOnly(gpu.capability))


def warm_up() -> None:
    """What a worker does once, and no candidate is charged for: its imports, and Triton's own hash.

    Triton names what it caches after a hash of itself, a fifth of a second that it remembers.
    """
    for home in ("triton.runtime.cache", "triton.compiler.compiler"):  # by version
        triton_key = getattr(importlib.import_module(home), "triton_key", None)
        if triton_key is not None:
            triton_key()
            return


def _prepare_launching(kernel: Any) -> None:
    """Compile the C module that starts a kernel, which before Triton 3.7 its first launch does.

    It is the same for all configs. Without it the GPU waits a third of a second for it.
    """
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(kernel.src, kernel.metadata)


def compile_config(
    task: Task, workload: Workload, config: Config, kernels: str = BUILTIN
) -> Compiled:
    """Compile a config as the task's workload launches it."""
    started_s, computed_before_s = time.perf_counter(), _computed_s()
    options = config.as_dict()
    compiled: list[Any] = []
    try:
        for instance in workload:
            batch = planned_batch(task, instance)
            operands = empty_operands(task, batch, device=NOWHERE)
            offsets = task_offsets(task, device=NOWHERE)
            schedule = schedule_of(task, batch, options, _gpu.target, kernels=kernels)
            launch = task_launch(task, operands, batch, offsets, options, schedule, kernels=kernels)
            compiled.append(launch.compile())
            if compiled[-1].metadata.shared > _gpu.smem_bytes:
                break
    except Exception as error:  # whatever the compiler says no with is the candidate's failure
        text = str(error).split("Repro command")[0]
        message = f"{type(error).__name__}: {' '.join(text.split())[:300]}"
        failure = Failure(kind="compile", message=message)
        return Compiled(compile_s=time.perf_counter() - started_s, failure=failure)
    compute_s = _computed_s() - computed_before_s
    if config == DEFAULT_CONFIGS[task.kernel]:
        for kernel in compiled:
            _prepare_launching(kernel)
    smem_bytes = max(kernel.metadata.shared for kernel in compiled)
    return Compiled(
        compile_s=time.perf_counter() - started_s,
        compute_s=compute_s,
        smem_bytes=smem_bytes,
        failure=smem_failure(smem_bytes, _gpu),
    )


def _computed_s() -> float:
    """Seconds that this process and the children that it waited for have computed."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
