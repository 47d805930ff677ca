"""A made-up GPU, whose clock is exact: what a launch takes is what a table says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lora_autotune.evaluators.timing import GraphTimer
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.space import Config

START_US = 5.0
"""What starting a graph takes."""

SLOW = Config(BLOCK_N=16, BLOCK_K=256)
FAST = Config(BLOCK_N=64, BLOCK_K=64)
TIMES_US = {SLOW: 240.0, FAST: 40.0}


KERNEL = SimpleNamespace(n_regs=32, n_spills=0, metadata=SimpleNamespace(shared=1024))
"""What a launch loads."""


class Bench:
    """One set of operands; a launch of a config is how long it takes."""

    def __init__(self, sets: int = 1) -> None:
        self.rotations = 0
        self.known_us = {}
        self.sets = sets

    def launches(self, config: Config) -> list:
        class Launch(float):
            def __call__(self):
                return KERNEL

        return [Launch(TIMES_US[config])] * self.sets

    def schedule(self, _config: Config) -> Schedule:
        return Schedule()


def make_up_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(self, launches):
        self._launches = launches
        self.took_us = START_US + sum(launches)
        self.replays = 0

    def time_us(self):
        self.replays += 1
        return self.took_us / len(self._launches)

    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr(GraphTimer, "_capture", capture)
    monkeypatch.setattr(GraphTimer, "time_us", time_us)
