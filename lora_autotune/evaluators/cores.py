"""The cores that this process may use, and how many compile workers that makes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MAX_COMPILE_WORKERS = 30
"""As many as were seen to help: 28 tasks took 8 s less with 30 than with 16, on 32 cores."""


def usable_cores() -> float:
    """What the scheduler and the cgroups of this process allow, at least 1."""
    cores = float(len(os.sched_getaffinity(0)))
    limit = cgroup_cores(_own_cgroups(), Path("/sys/fs/cgroup"))
    return cores if limit is None else max(1.0, min(cores, limit))


def compile_workers() -> int:
    """One for each usable core: the bench worker and the tuner come first where they need one."""
    return min(MAX_COMPILE_WORKERS, int(usable_cores()))


def _own_cgroups() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/self/cgroup").read_text()
    return ""


def cgroup_cores(own: str, root: Path) -> float | None:
    """The cores that the cgroups of a process allow; None: no limit.

    Args:
        own: its /proc/PID/cgroup, cgroups(7).
        root: where cgroups are mounted.
    """
    limits = []
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = root / controllers if controllers else root
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = mount / path.lstrip("/")
        while True:
            limits.extend(_quota(folder))
            if folder in (mount, folder.parent):
                break
            folder = folder.parent
    return min(limits, default=None)


def _quota(folder: Path) -> list[float]:
    """The limit of one cgroup: cpu.max (version 2) or cpu.cfs_quota_us (version 1)."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return [] if quota_us <= 0 else [quota_us / period_us]
    return []
