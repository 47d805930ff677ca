"""A config and where it is from, for tests."""

from __future__ import annotations

from lora_autotune.provenance import Provenance

CONFIG = {"BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4}
ENTRY = Provenance(
    config=CONFIG,
    command="lora-autotune tune --rank 64",
    workload=("32:8 1.0", "30720:1 0.5"),
    dtype="float16",
    slices=(2048, 1024, 1024),
    gpu="NVIDIA H200",
    driver="580.159.04",
    triton="3.6.0",
    torch="2.11.0",
    kernels="builtin",
    kernels_version="0123456789ab",
    package="0.1.0",
    date="2026-11-24",
    replayed=False,
    strategy="auto",
    space="wide (900)",
    trials=60,
    times_us=(5.0, 200.0),
    default_times_us=(6.25, 250.0),
)
