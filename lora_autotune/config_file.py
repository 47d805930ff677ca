"""The config files: their names, a strict reader, and a writer that merges.

The schema is SGLang's; nothing here may change it. One file holds one (kernel, K, R, S) on one
device under one Triton version: chunk size -> parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lora_autotune.chunk_file import (
    chunk_size,
    held_entries,
    read_chunk_file,
    replace_file,
    sole_writer,
)
from lora_autotune.errors import UsageError

FOLDER = "csgmv_configs"
_INNER_KEYS = ("BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "maxnreg")
_REQUIRED = ("BLOCK_N", "BLOCK_K")
_MAX_VALUE = 1 << 20
_KERNELS = ("shrink", "expand")
_VERSION_FOLDER = re.compile(
    r"triton_([0-9]+(?:_[0-9]+)*)((?:_?(?:a|b|rc|dev|post)[0-9]+)*(?:\+\w+)?)"
)
_EARLY = re.compile("_?(a|b|rc|dev)")

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
    return read_chunk_file(path, partial(_parameters, shrink=_is_shrink(path)))


def _is_shrink(path: Path) -> bool:
    return path.name.startswith("lora_shrink,")


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
    if table:
        with sole_writer(path):
            replace_file(path, merged_config_text(path, table))


def merged_config_text(path: Path, table: Mapping[int, Mapping[str, int]]) -> str:
    """What a file says once some chunk sizes are put into it.

    Raises:
        ConfigFileError: what is there is not a config file.
        ValueError: the table is not what the schema allows.
    """
    merged = held_entries(path, read_config_file) | {
        chunk_size(str(chunk)): _parameters(str(chunk), dict(values), shrink=_is_shrink(path))
        for chunk, values in table.items()
    }
    return json.dumps({str(chunk): merged[chunk] for chunk in sorted(merged)}, indent=4) + "\n"
