"""The folders that compiled kernels go to: can they be written, and loaded from?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_autotune.doctor.finding import Ability, Notebook, Section

_ROOMY_BYTES = 4 << 30
_FULL_BYTES = 256 << 20
_MOST_ENTRIES = 50_000
_MOST_S = 3.0


def examine_disk() -> Section:
    """Triton's cache, which servers compile into, and the temporary folder, which tuning does."""
    book = Notebook("Disk")
    cache = _triton_cache()
    size, complete = _size(cache)
    used = f"{'' if complete else 'over '}{_bytes(size)} used"
    facts = {"triton_cache": _judge(book, "Triton's cache", cache, used, "TRITON_CACHE_DIR", ())}
    facts["triton_cache"] |= {"used_bytes": size, "used_is_complete": complete}
    try:
        temporary = Path(tempfile.gettempdir())
    except OSError as error:
        remedy = "make one that can be written and name it: export TMPDIR=DIR"
        book.problem(f"no temporary folder: {error}", remedy, stops=("tune",))
        return book.section(facts)
    what = "temporary folder"
    facts["temporary"] = _judge(book, what, temporary, "", "TMPDIR", ("tune",))
    named = os.environ.get("TMPDIR")
    if named and Path(named).resolve() != temporary.resolve():
        book.note(f"TMPDIR is {named}, which cannot be written: not used", "export TMPDIR=DIR")
    return book.section(facts)


def _triton_cache() -> Path:
    """Where Triton keeps what it compiles: triton/knobs.py."""
    named = os.environ.get("TRITON_CACHE_DIR")
    if named:
        return Path(named)
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111 - cannot fail
    return Path(home) / ".triton" / "cache"


def _judge(
    book: Notebook,
    what: str,
    folder: Path,
    used: str,
    variable: str,
    stops: tuple[Ability, ...],
) -> dict[str, Any]:
    existing = nearest(folder)
    facts: dict[str, Any] = {"path": str(folder), "exists": folder.is_dir()}
    error = write_error(existing)
    if error is not None:
        fact = f"{what} {folder} cannot be written: {error}"
        book.problem(fact, f"export {variable}=DIR, one that can be written", stops=stops)
        return facts | {"writable": False}
    free = shutil.disk_usage(existing).free
    noexec = bool(os.statvfs(existing).f_flag & os.ST_NOEXEC)
    facts |= {"writable": True, "free_bytes": free, "noexec": noexec}
    space = ", ".join(filter(None, [used, f"{_bytes(free)} free"]))
    fact = f"{what} {folder}: {space}"
    other = f"export {variable}=DIR, one with more room"
    if noexec:
        remedy = f"export {variable}=DIR, one without noexec"
        book.problem(f"{fact}; mounted noexec, Triton's libraries do not load", remedy, stops=stops)
    elif free < _FULL_BYTES:
        book.problem(f"{fact}, too little to compile into", other, stops=stops)
    elif free < _ROOMY_BYTES:
        book.note(f"{fact}, little for a long run", other)
    else:
        book.ok(fact)
    return facts


def nearest(folder: Path) -> Path:
    """The folder, or of those above it the first that is there."""
    folder = folder.absolute()
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def write_error(folder: Path) -> str | None:
    """Why no file can be made there: tried, since root may do what permissions deny."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes of the files below, and whether that is all of them: the walk is bounded."""
    deadline_s = time.monotonic() + _MOST_S
    total = seen = 0
    for where, _, names in os.walk(folder):
        for name in names:
            seen += 1
            try:
                total += os.lstat(os.path.join(where, name)).st_size  # noqa: PTH118 - fast
            except OSError:
                continue
        if seen > _MOST_ENTRIES or time.monotonic() > deadline_s:
            return total, False
    return total, True


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
