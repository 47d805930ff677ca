"""Compiling ahead: fills the Triton cache by as many processes as the tuner would use."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.cores import compile_workers
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.worker import start_fork_server
from lora_autotune.space import Config
from lora_autotune.task import Instance, Task

Work = tuple[Task, Instance, Config, str]
"""What is compiled, for which batch, and of which set of kernels."""


def compile_ahead(work: Iterable[Work], gpu: Gpu, cache_dir: str) -> None:
    """Compile all there is; what cannot be compiled says so again when it is launched."""
    with ProcessPoolExecutor(
        compile_workers(),
        mp_context=start_fork_server(),
        initializer=compiling.set_up,
        initargs=(gpu, cache_dir),
    ) as pool:
        for task, instance, config, kernels in dict.fromkeys(work):
            pool.submit(compiling.compile_config, task, (instance,), config, kernels)
