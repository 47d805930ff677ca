"""GPUs to compile for where there are none."""

import pytest
import triton
from triton.backends.compiler import GPUTarget

from lora_autotune.evaluators.gpu import Gpu

H200 = Gpu(
    name="NVIDIA H200",
    capability=90,
    multiprocessors=132,
    smem_bytes=232_448,
    l2_bytes=60 << 20,
    triton="any",
)
L40S = Gpu(
    name="NVIDIA L40S",
    capability=89,
    multiprocessors=142,
    smem_bytes=101_376,
    l2_bytes=96 << 20,
    triton="any",
)


def compile_for(target: GPUTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's active driver knows this target, and nothing else."""

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return target

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(), raising=False)
