"""The config files: their names, a strict reader, and a writer that merges.

The schema is SGLang's; nothing here may change it. One file holds one (kernel, K, R, S) on one
device under one Triton version: chunk size -> parameters.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_autotune.errors import ConfigFileError, UsageError

FOLDER = "csgmv_configs"
MAX_BYTES = 1 << 20
"""A config file is a few hundred bytes; one this large is not a config file."""

_INNER_KEYS = ("BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "maxnreg")
_REQUIRED = ("BLOCK_N", "BLOCK_K")
_MAX_VALUE = 1 << 20
_KERNELS = ("shrink", "expand")
_SIZE = "[1-9][0-9]*"
_NAME = re.compile(rf"lora_(shrink|expand),K={_SIZE},R={_SIZE},S={_SIZE},device=[^ /]+\.json")
_VERSION_FOLDER = re.compile(
    r"triton_([0-9]+(?:_[0-9]+)*)((?:_?(?:a|b|rc|dev|post)[0-9]+)*(?:\+\w+)?)"
)
_EARLY = re.compile("_?(a|b|rc|dev)")
_log = logging.getLogger(__name__)

ConfigTable = dict[int, dict[str, int]]
"""Chunk size -> the parameters that are present."""


def config_file_name(kernel: str, K: int, R: int, S: int, device_name: str) -> str:
    """The file's bare name; spaces in the device's name become underscores."""
    if kernel not in _KERNELS:
        raise UsageError(f"unknown kernel {kernel!r}", hint=f"allowed: {', '.join(_KERNELS)}")
    return f"lora_{kernel},K={K},R={R},S={S},device={device_name.replace(' ', '_')}.json"


def version_folder(triton_version: str) -> str:
    """The folder of a Triton version: 3.6.0 -> triton_3_6_0."""
    return "triton_" + triton_version.replace(".", "_")


def config_file_path(
    root: Path, kernel: str, K: int, R: int, S: int, *, device_name: str, triton_version: str
) -> Path:
    """Where under a root a file belongs."""
    folder = root / FOLDER / version_folder(triton_version)
    return folder / config_file_name(kernel, K, R, S, device_name)


def folder_version(folder: str) -> tuple[tuple[int, ...], int] | None:
    """A key that sorts version folders from old to new; None: not a version's folder.

    triton_3_10_0 -> ((3, 10, 0), 0). A pre-release (triton_3_6_0rc1) is older than its release, a
    post-release or a local build (triton_3_6_0+git1234) is newer.
    """
    match = _VERSION_FOLDER.fullmatch(folder)
    if match is None:
        return None
    numbers = tuple(int(part) for part in match[1].split("_"))
    return numbers, -1 if _EARLY.match(match[2]) else int(bool(match[2]))


def read_config_file(path: Path) -> ConfigTable:
    """The file's content, checked against the whole schema.

    Raises:
        ConfigFileError: there is no such file, it cannot be read, or its content is not what the
            schema says; the message names the file and what is wrong.
    """
    try:
        return _parse(_read(path), shrink=_is_shrink(path))
    except OSError as error:
        raise ConfigFileError(f"{path}: {error.strerror or error}") from error
    except RecursionError:
        raise ConfigFileError(f"{path}: nested too deeply to be a config file") from None
    except ValueError as error:
        raise ConfigFileError(f"{path}: {error}") from error


def _is_shrink(path: Path) -> bool:
    return path.name.startswith("lora_shrink,")


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


def _parse(text: str, *, shrink: bool) -> ConfigTable:
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
    return {_chunk_size(key): _parameters(key, body[key], shrink=shrink) for key in body}


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


def _chunk_size(key: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", key):
        raise ValueError(f"has the key {key[:40]!r} where a chunk size belongs")
    return int(key)


def _parameters(chunk: str, values: Any, *, shrink: bool) -> dict[str, int]:
    where = f"chunk size {chunk}"
    if not isinstance(values, dict):
        raise ValueError(f"{where}: is not an object of parameters")
    allowed = _INNER_KEYS[:-1] if shrink else _INNER_KEYS
    for name, value in values.items():
        if name not in allowed:
            raise ValueError(f"{where}: unknown parameter {name[:40]!r}")
        if type(value) is not int or not 1 <= value <= _MAX_VALUE:
            raise ValueError(
                f"{where}: {name} must be an integer from 1 to {_MAX_VALUE}, not {value!r:.40}"
            )
    for name in _REQUIRED:
        if name not in values:
            raise ValueError(f"{where}: {name} is missing")
    return {name: values[name] for name in allowed if name in values}


def merge_config_file(path: Path, table: Mapping[int, Mapping[str, int]]) -> None:
    """Put some chunk sizes into a file, keeping its others; atomic, and safe among writers.

    A crash at any byte leaves the old file or the new one. Writers lock the folder, so two that
    write different chunk sizes of one file at once lose neither. An empty table changes nothing.

    Raises:
        ConfigFileError: what is there is not a config file (it is left as it is), or the folder
            cannot be written.
        ValueError: the table is not what the schema allows.
    """
    added = {
        _chunk_size(str(chunk)): _parameters(str(chunk), dict(values), shrink=_is_shrink(path))
        for chunk, values in table.items()
    }
    if not added:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent) as folder:
            merged = _held(path) | added
            ordered = {str(chunk): merged[chunk] for chunk in sorted(merged)}
            _replace(path, json.dumps(ordered, indent=4) + "\n")
            with contextlib.suppress(OSError):  # not every file system can; the file is in place
                os.fsync(folder)
    except OSError as error:
        raise ConfigFileError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="choose another folder with --out",
        ) from error


def _held(path: Path) -> ConfigTable:
    if not os.path.lexists(path):
        return {}
    try:
        return read_config_file(path)
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


def _replace(path: Path, text: str) -> None:
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


def check_tree(path: Path) -> Iterator[tuple[Path, ConfigFileError | None]]:
    """Every config file at or under a path, with what is wrong with it.

    In a tree, a name or a folder that no lookup would ever read is wrong as well, and so is a
    folder that cannot be listed.
    """
    if not path.is_dir():
        yield path, _wrong(path)
        return
    unlisted: list[OSError] = []
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=unlisted.append)
        for name in names
        if name.endswith(".json")
    ]
    for error in unlisted:
        folder = Path(error.filename)
        yield folder, ConfigFileError(f"{folder}: {error.strerror}")
    for file in sorted(files):
        yield file, _misplaced(file) or _wrong(file)


def _misplaced(file: Path) -> ConfigFileError | None:
    if not _NAME.fullmatch(file.name):
        return ConfigFileError(
            f"{file}: no lookup reads a file of this name",
            hint="lora_KERNEL,K=..,R=..,S=..,device=NAME.json",
        )
    folder = file.parent.resolve()
    if folder_version(folder.name) is None or folder.parent.name != FOLDER:
        return ConfigFileError(
            f"{file}: no lookup reads this folder", hint=f"{FOLDER}/triton_X_Y_Z/"
        )
    return None


def _wrong(file: Path) -> ConfigFileError | None:
    try:
        read_config_file(file)
    except ConfigFileError as error:
        return error
    return None
