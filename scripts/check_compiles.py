"""Our kernels compiled for GPUs that are not here, under the Triton that is: no GPU is needed.

    check_compiles.py [--arch 80 89 90 100] [--family default ranks reference wide layers | --all]

default     the default configs at every chunk size, on batches of every size: where nothing is
            tuned, the kernels choose by the batch what is launched
ranks       ranks and widths that no tile divides, with the default and another config
reference   every value of every axis of the reference space, twice
wide        the same of the wide space
layers      a layer's own product and its LoRA in one, for compute capability 9.0 alone

The others are compiled as the tuner does it, for the batches that reach their chunk size. One that
needs more shared memory than the GPU has is counted and is no failure, for the tuner drops it too;
but a default is, for a server has nothing else. Exits with 1 if anything failed. `.ci/triton` runs
this under other Triton versions.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton

from lora_autotune.evaluators import compiling
from lora_autotune.evaluators.cores import compile_workers
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.worker import start_fork_server
from lora_autotune.kernels.batch import served_batch
from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.task import (
    CHUNK_SIZES,
    DTYPES,
    KERNELS,
    Instance,
    Task,
    Workload,
    default_workload,
)
from lora_autotune.testing import covering_configs
from lora_autotune.trial import Failure

LAYERS, HOPPER = "layers", 90
GPUS = {
    80: Gpu(
        name="A100", capability=80, multiprocessors=108, smem_bytes=166_912, l2_bytes=0, triton=""
    ),
    89: Gpu(
        name="L40S", capability=89, multiprocessors=142, smem_bytes=101_376, l2_bytes=0, triton=""
    ),
    90: Gpu(
        name="H200", capability=90, multiprocessors=132, smem_bytes=232_448, l2_bytes=0, triton=""
    ),
    100: Gpu(
        name="B200", capability=100, multiprocessors=148, smem_bytes=232_448, l2_bytes=0, triton=""
    ),
}
FAMILIES = ("default", "ranks", "reference", "wide", LAYERS)
LAYER_SHAPES = ((1024, 4096, 64, 3), (200, 328, 8, 1), (4096, 6144, 128, 2))
"""K, N, R and S of layers."""

OUTCOMES = ("compiled", "too large", "failed")
Case = tuple[Task, Workload, Config]

FEW_SHAPES = (1024, 64, 2), (2048, 64, 2)
SHAPES = (
    *FEW_SHAPES,
    (2048, 128, 2),
    (3072, 64, 3),
    (12_288, 16, 1),
    (6144, 128, 3),
    (4096, 32, 2),
    (1024, 32, 1),
)
"""K, R and S of the defaults, at the least chunk size; at others of a few."""

SERVED = (
    *(Instance(tokens=tokens) for tokens in (1, 1024, 2048, 4096, 8192, 16_384, 30_720)),
    *(Instance(tokens=tokens, adapters=8) for tokens in (32, 300)),
    *(Instance(tokens=tokens, adapters=128) for tokens in (1024, 8000)),
)
"""Batches of all sizes between which a kernel chooses."""


def cases(family: str) -> Iterator[Case]:
    """What a family is made of."""
    if family == "default":
        for kernel, chunk_size in itertools.product(KERNELS, CHUNK_SIZES):
            for shape in SHAPES if chunk_size == min(CHUNK_SIZES) else FEW_SHAPES:
                task = _task(kernel, chunk_size, chunk_size // 32, *shape)
                yield task, SERVED, DEFAULT_CONFIGS[kernel]
    elif family == "ranks":
        yield from _odd_shapes()
    else:
        for kernel in KERNELS:
            configs = dict.fromkeys(covering_configs(named_space(family, kernel)))
            for place, config in enumerate(configs):
                task = _task(kernel, CHUNK_SIZES[place % 4], place // 4)
                yield task, default_workload(task.chunk_size), config


def _task(
    kernel: str, chunk_size: int, place: int, width: int = 2048, rank: int = 64, slices: int = 2
) -> Task:
    dtype = DTYPES[place % len(DTYPES)]
    return Task(kernel=kernel, K=width, R=rank, S=slices, chunk_size=chunk_size, dtype=dtype)


def _odd_shapes() -> Iterator[Case]:
    shrink = Config(BLOCK_N=32, BLOCK_K=64, num_warps=4, num_stages=3)
    expand = Config(BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2, maxnreg=96)
    offsets = {1: (0, 328), 2: (0, 200, 328), 3: (0, 200, 264, 328)}
    for (S, R), dtype in itertools.product([(1, 1), (2, 24), (3, 20), (3, 128)], DTYPES):
        shape = {"K": 328, "R": R, "S": S, "chunk_size": 16, "dtype": dtype}
        for task, config in (
            (Task(kernel="shrink", **shape), shrink),
            (Task(kernel="expand", **shape, slice_offsets=offsets[S]), expand),
        ):
            workload = default_workload(task.chunk_size)
            yield task, workload, config
            yield task, workload, DEFAULT_CONFIGS[task.kernel]


def compile_layers(shapes: Sequence[tuple[int, int, int, int]], arch: int) -> Counter[str]:
    """Compile what layers of some shapes launch, in a process of its own that has torch."""
    import torch

    from lora_autotune.kernels.linear_launch import linear_launches

    triton.runtime.driver.set_active(compiling.TargetOnly(arch))
    outcomes: Counter[str] = Counter()
    for (depth, width, rank, slices), dtype in itertools.product(shapes, DTYPES):
        instance = Instance(tokens=4096, adapters=8)
        batch = served_batch(instance, rank=rank, chunk_size=16, device="meta")

        def blank(*shape: int, dtype: str = dtype) -> Any:
            return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")

        launches = linear_launches(
            blank(4096, depth),
            blank(width, depth),
            blank(4096, slices * rank),
            blank(8, width, rank),
            blank(4096, width),
            batch,
            blank(slices + 1, dtype="int64"),
            GPUS[arch].multiprocessors,
        )
        for launch in launches:
            fits = launch.compile().metadata.shared <= GPUS[arch].smem_bytes
            outcomes["compiled" if fits else "failed"] += 1
    return outcomes


def check(arch: int, families: Sequence[str], workers: int) -> int:
    """Compile for one architecture, say what came of it, and return how many failed."""
    started_s = time.perf_counter()
    wanted = [case for family in families if family != LAYERS for case in cases(family)]
    outcomes: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(
            workers,
            mp_context=start_fork_server(),
            initializer=compiling.set_up,
            initargs=(GPUS[arch], cache),
        ) as pool,
    ):
        jobs = [
            pool.submit(compiling.compile_config, task, workload, config)
            for task, workload, config in wanted
        ]
        for (task, _, config), job in zip(wanted, jobs, strict=True):
            failure = job.result().failure
            outcome = outcome_of(failure, is_default=config == DEFAULT_CONFIGS[task.kernel])
            outcomes[outcome] += 1
            if outcome == "failed":
                print(f"  sm_{arch} {task.key} {config}: {failure.message}", flush=True)
    if LAYERS in families and arch == HOPPER:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            outcomes += pool.submit(compile_layers, LAYER_SHAPES, arch).result()
    counts = ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES)
    took_s = time.perf_counter() - started_s
    print(f"Triton {triton.__version__} sm_{arch}: {counts} ({took_s:.0f} s)", flush=True)
    return outcomes["failed"]


def outcome_of(failure: Failure | None, *, is_default: bool) -> str:
    """One of OUTCOMES."""
    if failure is None:
        return "compiled"
    return "too large" if failure.kind == "resources" and not is_default else "failed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=["default", LAYERS])
    parser.add_argument("--all", action="store_true", help="every family")
    parser.add_argument("--workers", type=int, default=compile_workers())
    options = parser.parse_args(arguments)
    families = FAMILIES if options.all else options.family
    return 1 if sum(check(arch, families, options.workers) for arch in options.arch) else 0


if __name__ == "__main__":
    sys.exit(main())
