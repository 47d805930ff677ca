"""JSON files by chunk size: read with suspicion, replaced as a whole, by one writer at a time.

What config files and the provenance beside them have in common. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lora_autotune.errors import ConfigFileError

MAX_BYTES = 1 << 20
"""These files are a few kilobytes; one this large is something else."""

_Entry = TypeVar("_Entry")
_log = logging.getLogger(__name__)


def read_chunk_file(path: Path, entry: Callable[[str, Any], _Entry]) -> dict[int, _Entry]:
    """Chunk size -> entry.

    Args:
        path: the file.
        entry: makes one of a chunk size, as it is in the file, and its value; raises ValueError,
            with what is wrong with it.

    Raises:
        ConfigFileError: there is no such file, it cannot be read, or its content is not what it
            should be; the message names the file and what is wrong.
    """
    try:
        body = _parse(_read(path))
        return {chunk_size(key): entry(key, value) for key, value in body.items()}
    except OSError as error:
        raise ConfigFileError(f"{path}: {error.strerror or error}") from error
    except RecursionError:
        raise ConfigFileError(f"{path}: nested too deeply to be a config file") from None
    except ValueError as error:
        raise ConfigFileError(f"{path}: {error}") from error


def chunk_size(key: str) -> int:
    """The chunk size that a key is; raises ValueError."""
    if not re.fullmatch(r"[1-9][0-9]{0,6}", key):
        raise ValueError(f"has the key {key[:40]!r} where a chunk size belongs")
    return int(key)


def _read(path: Path) -> str:
    if path.is_dir():
        raise ValueError("is a directory, not a file")
    # O_NONBLOCK: opening a pipe must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None


def _parse(text: str) -> dict[str, Any]:
    if not text.strip():
        raise ValueError("is empty")
    try:
        body = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_small_int
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError("is not a JSON object of chunk sizes")
    if not body:
        raise ValueError("holds no chunk size")
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"has the key {key[:40]!r} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"holds {name}")


def _small_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"holds an integer of {len(digits)} digits")
    return int(digits)


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Nobody else writes in a file's folder meanwhile; makes it where there is none.

    Raises:
        ConfigFileError: the folder cannot be made, or something in it not be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent) as folder:
            yield
            with contextlib.suppress(OSError):  # not every file system can; the file is in place
                os.fsync(folder)
    except OSError as error:
        raise ConfigFileError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="choose another folder with --out",
        ) from error


def held_entries(path: Path, read: Callable[[Path], dict[int, _Entry]]) -> dict[int, _Entry]:
    """What is to be merged with: the file's entries, none where there is no file.

    Raises:
        ConfigFileError: it is not what is read.
    """
    if not os.path.lexists(path):
        return {}
    try:
        return read(path)
    except ConfigFileError as error:
        raise ConfigFileError(
            error.message, hint="nothing was written: mend, move or remove that file first"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    # The folder itself is the lock: no lock file to leave behind or to delete too early.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems; what was tuned is worth more
            _log.warning("%s cannot be locked (%s): run one writer at a time", folder, error)
        yield descriptor
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Put a text in a file's place; a crash at any byte leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}~")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
