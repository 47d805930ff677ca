"""What a serving process imports: the lookup of tuned configs. Standard library only.

The rules are those of the serving process (see README, lookup): the root, then the running Triton
version's folder, then the others from the newest; in a file the exact chunk size, else the nearest.
No file, good or bad, ever makes a lookup raise. What a lookup has to say (a file of another
version, a malformed one, no device) is logged once.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
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
_PACKAGED = str(Path(__file__).parent / "configs")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    table: ConfigTable | None = None
    path: Path | None = None
    reason: str
    passed_over: tuple[str, ...] = ()


def get_lora_config_file_name(
    kernel: str,
    K: int,
    R: int,
    S: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,  # noqa: ARG001 - the four functions take the same
    kernels: str = "builtin",  # noqa: ARG001
) -> str:
    """The bare name of a config file.

    Raises:
        UsageError: no such kernel.
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
    kernels: str = "builtin",
) -> ConfigTable | None:
    """Chunk size -> parameters, from the first good file; None when there is none.

    Args:
        kernel: "shrink" or "expand".
        K: shrink: the layer's input width; expand: its output width.
        R: the largest rank.
        S: fused slices.
        device_name: None: this machine's GPU.
        triton_version: None: the one that is here.
        kernels: whose configs, where SGLANG_LORA_CONFIG_DIR does not say which: those that ship for
            ours ("builtin") or for SGLang's own ("sglang").
    """
    root = config_root(kernels)
    table = _find(kernel, K, R, S, root, device_name, triton_version).table
    return None if table is None else {chunk: dict(config) for chunk, config in table.items()}


def get_lora_shrink_config(
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
    kernels: str = "builtin",
) -> dict[str, int]:
    """Parameters of the shrink kernel (K: the layer's input width); the caller's own copy."""
    root = config_root(kernels)
    return dict(_config("shrink", K, R, num_slices, chunk_size, root, device_name, triton_version))


def get_lora_expand_config(
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    *,
    device_name: str | None = None,
    triton_version: str | None = None,
    kernels: str = "builtin",
) -> dict[str, int]:
    """Parameters of the expand kernel (K: the layer's output width); the caller's own copy."""
    root = config_root(kernels)
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
    kernels: str = "builtin",
) -> Lookup:
    """What the lookup functions answer, and why."""
    root = config_root(kernels)
    found = _find(kernel, K, R, S, root, device_name, triton_version)
    config = dict(_config(kernel, K, R, S, chunk_size, root, device_name, triton_version))
    nearest = _nearest(found.table, chunk_size) if found.table else None
    reason = found.reason
    if nearest is not None and nearest != chunk_size:
        reason += f"; it has no chunk size {chunk_size}, the nearest is {nearest}"
    return Lookup(
        config=config,
        path=found.path,
        chunk_size=nearest,
        reason=reason,
        passed_over=found.passed_over,
    )


def clear_cache() -> None:
    """Forget every lookup and what was said about it, so that files written since are seen."""
    _find.cache_clear()
    _config.cache_clear()
    _log_once.cache_clear()


def config_root(kernels: str = "builtin") -> str:
    """Where configs for a set of kernels are looked up: SGLANG_LORA_CONFIG_DIR, else what ships."""
    shipped = _PACKAGED if kernels == "builtin" else f"{_PACKAGED}/{kernels}"
    return os.environ.get(ROOT_VARIABLE) or shipped


def _nearest(table: ConfigTable, chunk_size: int) -> int:
    return min(table, key=lambda chunk: (abs(chunk - chunk_size), chunk))


# typed: what 1024.0 finds (nothing) must not be what 1024 gets afterwards.
@functools.lru_cache(maxsize=None, typed=True)
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


@functools.lru_cache(maxsize=None, typed=True)
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
        _log_once(logging.WARNING, f"LoRA configs: {error}; using the defaults")
        return _Found(reason=f"{error}: the defaults")
    passed_over: list[str] = []
    for folder, note in _folders(Path(root) / FOLDER, running):
        path = folder / name
        try:
            table = read_config_file(path)
        except ConfigFileError as error:
            if _is_absent(path, error):
                passed_over.append(f"{path}: not there")
            else:
                _log_once(logging.ERROR, f"LoRA config file passed over: {error}")
                passed_over.append(str(error))
            continue
        if note:
            _log_once(logging.WARNING, f"No LoRA config for Triton {running}; using {path}")
        reason = note or f"tuned for Triton {running}"
        return _Found(table=table, path=path, reason=reason, passed_over=tuple(passed_over))
    reason = "no file for this shape and device: the defaults"
    return _Found(reason=reason, passed_over=tuple(passed_over))


def _is_absent(path: Path, error: ConfigFileError) -> bool:
    """Whether there is no such file: a link that leads nowhere is a broken one instead."""
    absent = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
    return absent and not path.is_symlink()


def _folders(root: Path, running: str) -> list[tuple[Path, str]]:
    """The version folders in the order of the lookup, each with why it is not the first choice."""
    exact = version_folder(running)
    public = version_folder(re.split(r"[^0-9.]", running)[0].rstrip("."))
    first = [(root / exact, "")]
    if public != exact:  # "3.6.0+git1234" also reads what was tuned under 3.6.0
        first.append((root / public, f"tuned for the release that {running} is built from"))
    try:
        names = [entry.name for entry in root.iterdir()]
    except OSError as error:
        if not root.is_relative_to(_PACKAGED):  # else none ship for these kernels
            _log_once(logging.WARNING, f"LoRA configs: {root} cannot be listed: {error}")
        names = []
    others = [(v, n) for n in names if n not in {exact, public} and (v := folder_version(n))]
    return first + [
        (root / name, f"from Triton {_version_of(name)}: nothing for {running}")
        for _, name in sorted(others, reverse=True)
    ]


def _version_of(folder: str) -> str:
    return folder.removeprefix("triton_").replace("_", ".")


@functools.cache
def _log_once(level: int, message: str) -> None:
    _log.log(level, "%s", message)


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
    from importlib import metadata  # slow to import, and seldom needed

    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        raise DeviceUnknownError(
            "Triton is not installed", hint="give triton_version, for another machine"
        ) from None
