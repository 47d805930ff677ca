"""How long one launch takes: CUDA graphs of many launches over operands that the L2 cannot hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import Operands, schedule_of, shapes, task_launch, task_offsets
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.launch import Launch
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.pruning import REPLAYS
from lora_autotune.space import Config
from lora_autotune.task import Instance, Task

MAX_SETS = 64
GRAPH_US = 500.0
"""About how long a graph of the fastest candidate takes, so that starting it weighs little: with a
fifth of it, a 38 us kernel was timed up to 4% too slow on an H200. With four times as much, timing
took longer than compiling."""


@dataclass(slots=True, kw_only=True)
class Bench:
    """One instance of a task's workload, in device memory.

    Attributes:
        sets: operands to rotate over; together at least twice the L2, or MAX_SETS.
        kernels: the set of them that is launched.
        rotations: times that a graph goes through the sets; alike for all candidates but those
            before the fastest, so that what starting a graph costs is too. 0: not known yet.
        known_us: launch -> the config that was timed in full with it, and its time: of few rows,
            all configs make the same launch.
    """

    task: Task
    batch: Batch
    offsets: Tensor
    sets: Sequence[Operands]
    target: Target
    kernels: str = BUILTIN
    rotations: int = 0
    known_us: dict[Hashable, tuple[Config, float]] = field(default_factory=dict, init=False)

    def schedule(self, config: Config) -> Schedule:
        """How a config's launch maps to programs."""
        options = config.as_dict()
        return schedule_of(self.task, self.batch, options, self.target, kernels=self.kernels)

    def launches(self, config: Config) -> list[Launch]:
        """One launch for each set of operands."""
        options, schedule = config.as_dict(), self.schedule(config)
        return [
            task_launch(
                self.task,
                operands,
                self.batch,
                self.offsets,
                options,
                schedule,
                kernels=self.kernels,
            )
            for operands in self.sets
        ]


def make_bench(
    task: Task,
    instance: Instance,
    *,
    gpu: Gpu,
    seed: int,
    kernels: str = BUILTIN,
) -> Bench:
    """Random operands on the current device; small weights, so that accumulating stays finite."""
    device = torch.device("cuda")
    generator = torch.Generator(device).manual_seed(seed)
    batch = served_batch(instance, rank=task.R, chunk_size=task.chunk_size, device=device)
    dtype = getattr(torch, task.dtype)
    rows, adapters = batch.permutation.shape[0], batch.lora_ranks.shape[0]
    x_shape, weight_shape, output_shape = shapes(task, rows, adapters)

    def random(shape: tuple[int, ...], scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    def operands() -> Operands:
        return Operands(
            x=random(x_shape, 1.0),
            weights=random(weight_shape, 0.002),
            output=random(output_shape, 1.0),
        )

    sets = [operands()]
    count = min(MAX_SETS, -(-2 * gpu.l2_bytes // sets[0].nbytes))
    sets += [operands() for _ in range(count - 1)]
    return Bench(
        task=task,
        batch=batch,
        offsets=task_offsets(task, device=device),
        sets=sets,
        target=gpu.target,
        kernels=kernels,
    )


class GraphTimer:
    """A CUDA graph of launches that can be timed again and again.

    Attributes:
        rotations: times that it goes through the bench's operands.
    """

    def __init__(self, bench: Bench, config: Config) -> None:
        launches = bench.launches(config)
        self.rotations = max(1, bench.rotations)
        self._capture(launches * self.rotations)
        self.time_us()  # warms up
        took_us = self.time_us() * len(self._launches)
        if took_us < GRAPH_US / 2 or bench.rotations == 0:
            bench.rotations = math.ceil(GRAPH_US * self.rotations / took_us)
            self.rotations = bench.rotations
            self._capture(launches * self.rotations)

    def _capture(self, launches: Sequence[Launch]) -> None:
        # A graph knows addresses only, and capturing the next one empties torch's cache: what this
        # one's launches allocated lives as long as it does.
        self._launches = launches
        stream = _capture_stream()
        # A graph that finds no memory for the state of its random numbers aborts the process as it
        # is let go of (torch 2.11). Beside this there is some, or this is what fails.
        with torch.cuda.stream(stream):
            beside = torch.empty(1, device="cuda")
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            for launch in launches:
                launch()
        del beside

    def time_us(self) -> float:
        """Microseconds of one launch, in one replay of the graph."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        elapsed_ms: float = start.elapsed_time(end)
        return elapsed_ms * 1e3 / len(self._launches)


@cache
def _capture_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def median_time_us(timer: GraphTimer, limits_us: Mapping[int, float]) -> tuple[float, bool]:
    """Median microseconds of one launch, and whether it stopped early.

    Args:
        timer: what is timed.
        limits_us: number of replays -> the time over which no more are made.
    """
    timer.time_us()  # warms up
    times_us: list[float] = []
    while len(times_us) < REPLAYS:
        times_us.append(timer.time_us())
        if min(times_us) > limits_us.get(len(times_us), math.inf):
            return statistics.median(times_us), True
    return statistics.median(times_us), False


def compiled_resources(kernel: Any) -> tuple[int, int, int]:
    """(registers, spilled words, shared-memory bytes) of a kernel that Triton has loaded."""
    return kernel.n_regs, kernel.n_spills, kernel.metadata.shared
