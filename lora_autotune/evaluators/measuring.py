"""The bench worker's jobs: load, check and time candidates on the GPU, one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from triton.runtime.errors import OutOfResources

from lora_autotune.evaluators.correctness import difference_from_reference
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.timing import (
    Bench,
    GraphTimer,
    compiled_resources,
    make_bench,
    median_time_us,
)
from lora_autotune.space import Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure, Measurement, Outcome, Pruned, Resources

CLEARLY_BEHIND = 1.3
"""A candidate this many times slower than the best is not measured further than coarsely."""

MAX_SPILL_BYTES = 256
"""On the shipped landscapes every config that spills more is over 1.2 times the best's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of one candidate.

    Attributes:
        context_lost: True when the CUDA context is unusable and the worker must be replaced.
    """

    outcome: Outcome
    resources: Resources | None = None
    context_lost: bool = False


@dataclass(slots=True)
class _State:
    gpu: Gpu
    task: Task | None = None
    benches: Sequence[Bench] = ()
    generator: torch.Generator | None = None


_state: _State


def set_up(cache_dir: str) -> None:
    """Open the GPU, and take compiled kernels from a Triton cache."""
    global _state  # noqa: PLW0603 - a worker process has one state, set once
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    if torch.cuda.is_available():
        _state = _State(gpu=_describe())


def describe() -> Gpu | str:
    """The GPU, or why there is none."""
    if not torch.cuda.is_available():
        built = "has no CUDA in it" if torch.version.cuda is None else "sees no CUDA device"
        return f"torch {torch.__version__} {built}"
    return _state.gpu


def _describe() -> Gpu:
    properties = torch.cuda.get_device_properties(0)
    limits = triton.runtime.driver.active.utils.get_device_properties(0)
    return Gpu(
        name=properties.name,
        capability=properties.major * 10 + properties.minor,
        multiprocessors=properties.multi_processor_count,
        smem_bytes=limits["max_shared_mem"],
        l2_bytes=properties.L2_cache_size,
        triton=triton.__version__,
    )


def prepare(task: Task, workload: Workload, seed: int) -> str | None:
    """Put a task's operands on the GPU; returns why that cannot be done, if so."""
    _state.benches = ()
    torch.cuda.empty_cache()
    try:
        _state.benches = [
            make_bench(
                task,
                instance,
                l2_bytes=_state.gpu.l2_bytes,
                multiprocessors=_state.gpu.multiprocessors,
                seed=seed + i,
            )
            for i, instance in enumerate(workload)
        ]
    except torch.OutOfMemoryError as error:
        return f"the workload does not fit the GPU's memory: {str(error).splitlines()[0]}"
    _state.task = task
    _state.generator = torch.Generator("cuda").manual_seed(seed)
    return None


def measure(config: Config, best_us: Sequence[float] | None, prune: bool) -> Reply:
    """Check a compiled candidate, then time it on every instance.

    Args:
        config: the candidate.
        best_us: the best config's time on each instance, or None while there is none.
        prune: drop a candidate by its resources before it is timed.
    """
    try:
        resources = _checked_resources(config)
        if isinstance(resources, Reply):
            return resources
        if prune and resources.spill_bytes > MAX_SPILL_BYTES:
            rule = f"spills {resources.spill_bytes} bytes a thread, over {MAX_SPILL_BYTES}"
            return Reply(outcome=Pruned(rule=rule), resources=resources)
        times_us, coarse = [], []
        for i, bench in enumerate(_state.benches):
            limit_us = float("inf") if best_us is None else CLEARLY_BEHIND * best_us[i]
            time_us, stopped = median_time_us(GraphTimer(bench.launches(config)), limit_us)
            times_us.append(time_us)
            coarse.append(stopped)
        outcome = Measurement(times_us=tuple(times_us), coarse=any(coarse))
        return Reply(outcome=outcome, resources=resources)
    except OutOfResources as error:
        return Reply(outcome=Failure(kind="resources", message=str(error)[:300]))
    except torch.OutOfMemoryError as error:
        return Reply(outcome=Failure(kind="memory", message=str(error).splitlines()[0]))
    except RuntimeError as error:
        if "CUDA" not in str(error) and "Triton Error" not in str(error):
            raise
        message = str(error).splitlines()[0][:300]
        return Reply(outcome=Failure(kind="crash", message=message), context_lost=True)


def _checked_resources(config: Config) -> Resources | Reply:
    """The candidate's resources, or its failure if it computes the wrong thing."""
    task, generator = _state.task, _state.generator
    if task is None or generator is None:
        raise RuntimeError("measure() before prepare()")
    found = [compiled_resources(bench.launches(config)[0]()) for bench in _state.benches]
    for walk in {bench.walk(config) for bench in _state.benches}:
        wrong = difference_from_reference(task, config, walk, generator)
        if wrong is not None:
            return Reply(outcome=Failure(kind="wrong", message=wrong))
    registers, spill_bytes, smem_bytes = (max(column) for column in zip(*found, strict=True))
    return Resources(registers=registers, spill_bytes=spill_bytes, smem_bytes=smem_bytes)


def remeasure(configs: Sequence[Config], rounds: int) -> list[list[tuple[float, ...] | Failure]]:
    """Time configs against each other, interleaved; see Evaluator.remeasure."""
    timers: dict[Config, list[GraphTimer] | Failure] = {}
    for config in configs:
        if config not in timers:
            try:
                for bench in _state.benches:
                    for launch in bench.launches(config):
                        launch()
                timers[config] = [GraphTimer(b.launches(config)) for b in _state.benches]
            except OutOfResources as error:
                timers[config] = Failure(kind="resources", message=str(error)[:300])
    results: list[list[tuple[float, ...] | Failure]] = [[] for _ in configs]
    for turn in range(rounds + 1):
        for config, result in zip(configs, results, strict=True):
            graphs = timers[config]
            if isinstance(graphs, Failure):
                outcome: tuple[float, ...] | Failure = graphs
            else:
                outcome = tuple(timer.time_us() for timer in graphs)
            if turn > 0:  # the first warms up
                result.append(outcome)
    return results
