"""The processes that take seconds to start, while this one still imports what uses them."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass

from lora_autotune.evaluators import bench_jobs
from lora_autotune.evaluators.worker import Worker, start_fork_server


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures, and the Triton cache that it takes its kernels from."""

    worker: Worker
    cache_dir: str

    def close(self) -> None:
        """End the one and remove the other."""
        self.worker.close()
        shutil.rmtree(self.cache_dir, ignore_errors=True)


_early: list[Bench] = []


def start_early() -> None:
    """Start the fork server, which imports Triton, and a process that imports torch."""
    start_fork_server()
    if not _early:
        _early.append(_start())


def take_bench() -> Bench:
    """The one that was started early, where there is one and its environment is that of now."""
    if _early and _early[0].worker.environment == dict(os.environ):
        return _early.pop()
    _close_unused()
    return _start()


def _start() -> Bench:
    cache_dir = tempfile.mkdtemp(prefix="lora-autotune-triton-")
    try:
        ready = functools.partial(bench_jobs.get_ready, cache_dir)
        return Bench(Worker(bench_jobs.set_up, cache_dir, ready=ready), cache_dir)
    except BaseException:  # Ctrl-C
        shutil.rmtree(cache_dir, ignore_errors=True)
        raise


@atexit.register
def _close_unused() -> None:
    while _early:
        _early.pop().close()
