"""The config files: their names, a strict reader, and a writer that merges.

The schema is SGLang's; nothing here may change it. One file holds one (kernel, K, R, S) on one
device under one Triton version: chunk size -> parameters.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_autotune.errors import ConfigFileError

FOLDER = "csgmv_configs"
MAX_BYTES = 1 << 20
"""A config file is a few hundred bytes; one this large is not a config file."""

_INNER_KEYS = ("BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "maxnreg")
_REQUIRED = ("BLOCK_N", "BLOCK_K")
_MAX_VALUE = 1 << 20
_NAME = re.compile(
    r"lora_(shrink|expand),K=([1-9]\d*),R=([1-9]\d*),S=([1-9]\d*),device=([^ /]+)\.json"
)
_VERSION_FOLDER = re.compile(r"triton_(\d+(?:_\d+)*)")

ConfigTable = dict[int, dict[str, int]]
"""Chunk size -> the parameters that are present."""


def config_file_name(kernel: str, K: int, R: int, S: int, device_name: str) -> str:
    """The file's bare name; spaces in the device's name become underscores."""
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


def folder_version(folder: str) -> tuple[int, ...] | None:
    """A folder's version as numbers, triton_3_10_0 -> (3, 10, 0); None for another name."""
    match = _VERSION_FOLDER.fullmatch(folder)
    return tuple(int(part) for part in match[1].split("_")) if match else None


def read_config_file(path: Path) -> ConfigTable:
    """The file's content, checked against the whole schema.

    Raises:
        ConfigFileError: there is no such file, it cannot be read, or its content is not what the
            schema says; the message names the file and what is wrong.
    """
    try:
        return _parse(_read(path), shrink=path.name.startswith("lora_shrink,"))
    except OSError as error:
        raise ConfigFileError(f"{path}: {error.strerror or error}") from error
    except RecursionError:
        raise ConfigFileError(f"{path}: nested too deeply to be a config file") from None
    except ValueError as error:
        raise ConfigFileError(f"{path}: {error}") from error


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
        body = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError("is not a JSON object of chunk sizes")
    return {_chunk_size(key): _parameters(key, body[key], shrink=shrink) for key in body}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"has the key {key!r} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"holds {name}")


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
            raise ValueError(f"{where}: {name} must be a positive integer, not {value!r:.40}")
    for name in _REQUIRED:
        if name not in values:
            raise ValueError(f"{where}: {name} is missing")
    return {name: values[name] for name in allowed if name in values}


def merge_config_file(path: Path, table: Mapping[int, Mapping[str, int]]) -> None:
    """Put some chunk sizes into a file, keeping its others; atomic, and safe among writers.

    A crash at any byte leaves the old file or the new one. Writers lock the folder, so two that
    write different chunk sizes of one file at once lose neither.

    Raises:
        ConfigFileError: what is there is not a config file (it is left as it is), or the folder
            cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent) as folder:
            merged = read_config_file(path) if path.exists() or path.is_symlink() else {}
            merged |= {chunk: dict(values) for chunk, values in table.items()}
            text = _dump(merged)
            _parse(text, shrink=path.name.startswith("lora_shrink,"))
            _replace(path, text)
            os.fsync(folder)
    except OSError as error:
        raise ConfigFileError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="choose another folder with --out",
        ) from error


def _dump(table: ConfigTable) -> str:
    ordered = {
        str(chunk): {name: table[chunk][name] for name in _INNER_KEYS if name in table[chunk]}
        for chunk in sorted(table)
    }
    return json.dumps(ordered, indent=4) + "\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix="~")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_tree(path: Path) -> Iterator[tuple[Path, ConfigFileError | None]]:
    """Every config file at or under a path, with what is wrong with it.

    In a tree, a name or a folder that no lookup would ever read is wrong as well.
    """
    if not path.is_dir():
        yield path, _wrong(path)
        return
    for file in sorted(path.rglob("*.json")):
        yield file, _misplaced(file) or _wrong(file)


def _misplaced(file: Path) -> ConfigFileError | None:
    if not _NAME.fullmatch(file.name):
        return ConfigFileError(
            f"{file}: no lookup reads a file of this name",
            hint="lora_KERNEL,K=..,R=..,S=..,device=NAME.json",
        )
    if folder_version(file.parent.name) is None or file.parent.parent.name != FOLDER:
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
