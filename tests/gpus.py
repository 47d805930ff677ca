"""A GPU to compile for where there is none."""

from lora_autotune.evaluators.gpu import Gpu

H200 = Gpu(
    name="NVIDIA H200",
    capability=90,
    multiprocessors=132,
    smem_bytes=232_448,
    l2_bytes=60 << 20,
    triton="any",
)
