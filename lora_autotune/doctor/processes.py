"""Cores, load and limits: how much can be compiled at a time."""

from __future__ import annotations

import os
import resource

from lora_autotune.doctor.finding import Notebook, Section
from lora_autotune.evaluators.cores import compile_workers, usable_cores

_FEW_FILES = 512


def examine_processes() -> Section:
    """What the scheduler and the container let us have."""
    book = Notebook("Processes")
    cores, workers, load = usable_cores(), compile_workers(), os.getloadavg()[0]
    book.ok(f"{cores:.3g} cores: {_count(workers, 'compile worker')}; load {load:.1f}")
    if load > cores:
        book.note(
            f"the machine is busy: load {load:.1f} on {cores:.3g} cores",
            "tune when it is idle: the search takes longer, and compiles may reach their limit",
        )
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _FEW_FILES:
        book.note(f"only {files} open files are allowed", f"ulimit -n {4 * _FEW_FILES}")
    return book.section(
        {
            "cores": cores,
            "load": load,
            "compile_workers": workers,
            "open_files": files,
            "open_files_hard": most_files,
        }
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")
