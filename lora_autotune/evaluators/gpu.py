"""The facts about a GPU that compiling and measuring need."""

from __future__ import annotations

from dataclasses import dataclass

from lora_autotune.kernels.schedule import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device.

    Attributes:
        name: as the driver gives it.
        capability: compute capability times ten (90 for a Hopper).
        multiprocessors: how many it has.
        smem_bytes: most shared memory one program can have.
        l2_bytes: size of its L2 cache.
        triton: version of the Triton that compiles for it.
    """

    name: str
    capability: int
    multiprocessors: int
    smem_bytes: int
    l2_bytes: int
    triton: str

    @property
    def target(self) -> Target:
        """What launches are planned for."""
        return Target(self.multiprocessors, self.capability)
