"""What a serving process imports: the lookup of tuned configs. Standard library only.

The rules are those of the serving process (see README, lookup): the root, then the running Triton
version's folder, then the others from the newest; in a file the exact chunk size, else the nearest.
No file, good or bad, ever makes a lookup raise.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lora_autotune.config_file import (
    FOLDER,
    ConfigTable,
    config_file_name,
    folder_version,
    read_config_file,
    version_folder,
)
from lora_autotune.errors import ConfigFileError, DeviceUnknownError

DEFAULT_SHRINK_CONFIG = {"BLOCK_N": 16, "BLOCK_K": 256}
DEFAULT_EXPAND_CONFIG = {"BLOCK_N": 64, "BLOCK_K": 16}
ROOT_VARIABLE = "SGLANG_LORA_CONFIG_DIR"

_DEFAULTS = {
    "shrink": tuple(DEFAULT_SHRINK_CONFIG.items()),
    "expand": tuple(DEFAULT_EXPAND_CONFIG.items()),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lookup:
    """A lookup's answer, and how it came about.

    Attributes:
        config: the parameters that a launch gets.
        path: the file that they are from; None: the defaults.
        chunk_size: the entry of the file that was taken; None without a file.
        reason: why this one, in words.
        passed_over: candidates that were looked at first, with why each was not taken.
    """

    config: dict[str, int]
    path: Path | None
    chunk_size: int | None
    reason: str
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    table: ConfigTable | None
    path: Path | None
    reason: str
    passed_over: tuple[str, ...]


def get_lora_config_file_name(
    kernel: str,
    K: int,
    R: int,
    S: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,  # noqa: ARG001 - the four functions take the same
) -> str:
    """The bare name of a config file.

    Raises:
        DeviceUnknownError: no ``device_name`` was given and this process has no CUDA device.
    """
    return config_file_name(kernel, K, R, S, device_name or _device_name())


def get_lora_configs(
    kernel: str,
    K: int,
    R: int,
    S: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
) -> ConfigTable | None:
    """Chunk size -> parameters, from the first good file; None when there is none."""
    table = _find(kernel, K, R, S, _root(), device_name, triton_version).table
    return None if table is None else {chunk: dict(config) for chunk, config in table.items()}


def get_lora_shrink_config(
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
) -> dict[str, int]:
    """Parameters of the shrink kernel (K: the layer's input width); the caller's own copy."""
    root = _root()
    return dict(_config("shrink", K, R, num_slices, chunk_size, root, device_name, triton_version))


def get_lora_expand_config(
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
) -> dict[str, int]:
    """Parameters of the expand kernel (K: the layer's output width); the caller's own copy."""
    root = _root()
    return dict(_config("expand", K, R, num_slices, chunk_size, root, device_name, triton_version))


def explain_lookup(
    kernel: str,
    K: int,
    R: int,
    S: int,
    chunk_size: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
) -> Lookup:
    """What the lookup functions answer, and why."""
    found = _find(kernel, K, R, S, _root(), device_name, triton_version)
    config = dict(_config(kernel, K, R, S, chunk_size, _root(), device_name, triton_version))
    nearest = _nearest(found.table, chunk_size) if found.table else None
    reason = found.reason
    if nearest is not None and nearest != chunk_size:
        reason += f"; it has no chunk size {chunk_size}, the nearest is {nearest}"
    return Lookup(config, found.path, nearest, reason, found.passed_over)


def clear_cache() -> None:
    """Forget every lookup, so that files written since are seen."""
    _find.cache_clear()
    _config.cache_clear()


def _root() -> str:
    return os.environ.get(ROOT_VARIABLE) or str(Path(__file__).parent / "configs")


def _nearest(table: ConfigTable, chunk_size: int) -> int:
    return min(table, key=lambda chunk: (abs(chunk - chunk_size), chunk))


@functools.cache
def _config(
    kernel: str,
    K: int,
    R: int,
    S: int,
    chunk_size: int,
    root: str,
    device_name: str | None,
    triton_version: str | None,
) -> tuple[tuple[str, int], ...]:
    table = _find(kernel, K, R, S, root, device_name, triton_version).table
    if not table:
        return _DEFAULTS[kernel]
    return tuple(table[_nearest(table, chunk_size)].items())


@functools.cache
def _find(
    kernel: str,
    K: int,
    R: int,
    S: int,
    root: str,
    device_name: str | None,
    triton_version: str | None,
) -> _Found:
    try:
        name = config_file_name(kernel, K, R, S, device_name or _device_name())
        running = triton_version or _triton_version()
    except DeviceUnknownError as error:
        _log.warning("LoRA configs: %s; using the defaults", error)
        return _Found(None, None, f"{error}: the defaults", ())
    passed_over: list[str] = []
    for folder, note in _folders(Path(root) / FOLDER, running):
        path = folder / name
        try:
            if not os.path.lexists(path):
                passed_over.append(f"{path}: not there")
                continue
            table = read_config_file(path)
        except (ConfigFileError, OSError) as error:
            _log.error("LoRA config file passed over: %s", error)
            passed_over.append(str(error))
            continue
        if not table:
            passed_over.append(f"{path}: holds no chunk size")
            continue
        if note:
            _log.warning("No LoRA config for Triton %s; using %s", running, path)
        return _Found(table, path, note or f"tuned for Triton {running}", tuple(passed_over))
    return _Found(None, None, "no file for this shape and device: the defaults", tuple(passed_over))


def _folders(root: Path, running: str) -> list[tuple[Path, str]]:
    """The version folders in the order of the lookup, each with why it is not the first choice."""
    exact = version_folder(running)
    public = version_folder(re.split(r"[^0-9.]", running)[0].rstrip("."))
    first = [(root / exact, "")]
    if public != exact:  # "3.6.0+git1234" also reads what was tuned under 3.6.0
        first.append((root / public, f"tuned for the release that {running} is built from"))
    try:
        names = [entry.name for entry in root.iterdir()]
    except OSError:
        names = []
    others = [(v, n) for n in names if n not in {exact, public} and (v := folder_version(n))]
    return first + [
        (root / name, f"tuned for Triton {'.'.join(map(str, v))}: nothing for {running}")
        for v, name in sorted(others, reverse=True)
    ]


def _device_name() -> str:
    try:
        torch = sys.modules.get("torch") or import_module("torch")
        name: str = torch.cuda.get_device_name()
    except Exception as error:  # whatever CUDA says no with, there is no device to name
        raise DeviceUnknownError(
            "no CUDA device to look configs up for", hint="give device_name, for another GPU"
        ) from error
    return name


def _triton_version() -> str:
    loaded = getattr(sys.modules.get("triton"), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return version("triton")
    except PackageNotFoundError:
        raise DeviceUnknownError(
            "Triton is not installed", hint="give triton_version, for another machine"
        ) from None
