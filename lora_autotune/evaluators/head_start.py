"""The processes that take seconds to start, while this one still imports what uses them."""

from __future__ import annotations

import atexit

from lora_autotune.evaluators import bench_jobs
from lora_autotune.evaluators.worker import Worker, start_fork_server

_bench: list[Worker] = []


def start_early() -> None:
    """Start the fork server, which imports Triton, and a process that imports torch."""
    start_fork_server()
    if not _bench:
        _bench.append(Worker(ready=bench_jobs.get_ready))
        atexit.register(_close_unused)


def bench_worker(cache_dir: str) -> Worker:
    """The worker that measures; its process is the one that was started early, if one was."""
    worker = _bench.pop() if _bench else Worker(ready=bench_jobs.get_ready)
    worker.set_up_by(bench_jobs.set_up, cache_dir)
    return worker


def _close_unused() -> None:
    while _bench:
        _bench.pop().close()
