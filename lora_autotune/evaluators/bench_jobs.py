"""The bench worker's jobs by their names: who submits them needs no torch, only the worker does."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence

from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.pruning import Standings
from lora_autotune.space import Config
from lora_autotune.trial import Failure


def get_ready(cache_dir: str) -> None:
    """Import torch, and meanwhile do what a process does once before its first launch."""
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    aside = threading.Thread(target=_prepare_triton)
    aside.start()
    from lora_autotune.evaluators import measuring  # noqa: F401

    aside.join()


def _prepare_triton() -> None:
    """Open the driver, hash Triton, and compile the C module that it talks to the driver by."""
    from lora_autotune.evaluators import compiling, driver

    driver.first_gpu()
    compiling.warm_up()
    with contextlib.suppress(Exception):  # it is Triton's own affair, and it does it anyway
        from triton.backends.nvidia.driver import CudaUtils

        CudaUtils()


def set_up(cache_dir: str) -> None:
    """See :func:`lora_autotune.evaluators.measuring.set_up`."""
    from lora_autotune.evaluators import measuring

    measuring.set_up(cache_dir)


def warm_up() -> None:
    """What a worker does once, and no candidate is charged for: to import torch and open the GPU.

    Setting up has done it.
    """


def describe() -> Gpu | str:
    """See :func:`lora_autotune.evaluators.measuring.describe`."""
    from lora_autotune.evaluators import measuring

    return measuring.describe()


def measure(subject: Subject, config: Config, standings: Standings) -> Reply | str:
    """See :func:`lora_autotune.evaluators.measuring.measure`."""
    from lora_autotune.evaluators import measuring

    return measuring.measure(subject, config, standings)


def remeasure(
    subject: Subject, configs: Sequence[Config], rounds: int
) -> list[list[tuple[float, ...] | Failure]] | str:
    """See :func:`lora_autotune.evaluators.measuring.remeasure`."""
    from lora_autotune.evaluators import measuring

    return measuring.remeasure(subject, configs, rounds)
