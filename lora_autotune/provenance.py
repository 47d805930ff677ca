"""Where a config is from: what it was tuned on, with what, and what was measured.

It lies beside the config file, never in it: ``NAME.json`` has ``NAME.provenance.json``, chunk size
-> entry. No serving process reads it, and nothing that it says changes a lookup.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_autotune.chunk_file import held_entries, read_chunk_file, replace_file, sole_writer
from lora_autotune.config_file import merged_config_text, read_config_file
from lora_autotune.errors import ConfigFileError
from lora_autotune.kernel_set import set_of

_SUFFIX = ".provenance.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the config of one chunk size is from. None: not known.

    Attributes:
        config: the config that this speaks of.
        command: the command line, without the paths of the machine; None: from Python.
        workload: each batch that it was tuned on, with its weight, as in a ``--workload`` file.
        dtype: of the operands.
        slices: expand: the widths of the output's slices.
        gpu: the CUDA device's name.
        driver: version of its driver.
        triton: version of Triton.
        torch: version of torch.
        kernels: which set of kernels ("builtin", "sglang-0.5.23").
        kernels_version: what tells versions of that set apart, where its name does not.
        package: version of this package.
        date: of the writing, in UTC ("2026-11-24").
        replayed: found in measurements that were recorded earlier.
        strategy: the search's.
        space: the name and the size of the space that was searched.
        trials: configs that were evaluated.
        times_us: the config's median time for each batch.
        default_times_us: the default's; empty where it does not run.
        held_out: batches that it was not tuned on and lost on none of.
    """

    config: Mapping[str, int]
    command: str | None
    workload: tuple[str, ...]
    dtype: str
    slices: tuple[int, ...] = ()
    gpu: str
    driver: str | None
    triton: str
    torch: str | None
    kernels: str
    kernels_version: str | None
    package: str
    date: str
    replayed: bool
    strategy: str
    space: str
    trials: int
    times_us: tuple[float, ...]
    default_times_us: tuple[float, ...]
    held_out: tuple[str, ...] = ()


def provenance_path(config_file: Path) -> Path:
    """Where a config file's provenance lies."""
    return config_file.with_name(config_file.name.removesuffix(".json") + _SUFFIX)


def is_provenance(path: Path) -> bool:
    """Whether a name is one of provenance: a config file has no such name."""
    return path.name.endswith(_SUFFIX)


def write_with_provenance(config_file: Path, chunk_size: int, provenance: Provenance) -> None:
    """Merge a config and its provenance into their two files.

    Both are as safe as :func:`lora_autotune.config_file.merge_config_file` makes one. A crash
    between the two leaves a provenance that readers see to be of another config.

    Raises:
        ConfigFileError: one of the two is there and is not what it should be, or is of other
            kernels (both are left as they are); or the folder cannot be written.
    """
    beside = provenance_path(config_file)
    with sole_writer(config_file):
        refuse_other_kernels(config_file, provenance.kernels)
        config_text = merged_config_text(config_file, {chunk_size: provenance.config})
        entries = held_entries(beside, read_provenance_file) | {chunk_size: provenance}
        replace_file(config_file, config_text)
        replace_file(beside, _text(entries))


def refuse_other_kernels(config_file: Path, kernels: str) -> None:
    """Raise ConfigFileError where a config file has entries that were tuned on another set."""
    for chunk, entry in held_entries(provenance_path(config_file), read_provenance_file).items():
        if set_of(entry.kernels) != set_of(kernels):
            raise ConfigFileError(
                f"{config_file}: chunk size {chunk} was tuned on the kernels {entry.kernels}, which"
                f" a config for {kernels} must not be mixed with",
                hint="choose another folder with --out",
            )


def _text(entries: Mapping[int, Provenance]) -> str:
    """A line for each field, so that a difference between two versions can be read."""
    blocks = []
    for chunk in sorted(entries):
        lines = [f'"{name}": {json.dumps(value)}' for name, value in asdict(entries[chunk]).items()]
        blocks.append(f'    "{chunk}": {{\n        ' + ",\n        ".join(lines) + "\n    }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def find_provenance(
    config_file: Path, chunk_size: int, config: Mapping[str, int]
) -> Provenance | str:
    """Where an entry of a config file is from, or why that is not known; never raises."""
    beside = provenance_path(config_file)
    try:
        entry = held_entries(beside, read_provenance_file).get(chunk_size)
    except ConfigFileError as error:
        return f"none that can be read: {error.message}"
    if entry is None:
        return "none"
    return entry if entry.config == config else "of another config (the file was edited since)"


def check_provenance(path: Path) -> None:
    """Raise ConfigFileError unless every entry is well-formed and of the config beside it."""
    entries = read_provenance_file(path)
    try:
        configs = read_config_file(path.with_name(path.name.removesuffix(_SUFFIX) + ".json"))
    except ConfigFileError as error:
        raise ConfigFileError(f"{path}: there is no good config file beside it") from error
    for chunk, entry in entries.items():
        if configs.get(chunk) != entry.config:
            raise ConfigFileError(
                f"{path}: chunk size {chunk}: is of another config than that in the file beside it",
                hint="tune that shape again, or remove the entry",
            )


def read_provenance_file(path: Path) -> dict[int, Provenance]:
    """Chunk size -> where its config is from; keys of a later version are ignored.

    Raises:
        ConfigFileError: there is no such file, it cannot be read, or is not of this form; the
            message names the file and what is wrong.
    """
    return read_chunk_file(path, _entry)


def _entry(chunk: str, values: Any) -> Provenance:
    where = f"chunk size {chunk}"
    if not isinstance(values, dict):
        raise ValueError(f"{where}: is not an object")
    values = {**_EARLIER, **values}
    for name, is_right in _FORMS.items():
        if name not in values:
            raise ValueError(f"{where}: {name} is missing")
        if not is_right(values[name]):
            raise ValueError(f"{where}: {name} cannot be {values[name]!r:.60}")
    batches = len(values["workload"])
    if len(values["times_us"]) != batches or len(values["default_times_us"]) not in (0, batches):
        raise ValueError(f"{where}: has not one time for each batch of the workload")
    known: dict[str, Any] = {name: values[name] for name in _FORMS}
    lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
    return Provenance(**{**known, **lists})


def _is_text(value: Any) -> bool:
    """Printable, because it is printed: nothing moves a terminal's cursor."""
    return isinstance(value, str) and value.isprintable()


def _is_date(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.date.fromisoformat(value))
    except ValueError:
        return False


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _each(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict) and all(map(_is_size, value.values())),
    "command": _or_none(_is_text),
    "workload": _each(_is_text),
    "dtype": _is_text,
    "slices": _each(_is_size),
    "gpu": _is_text,
    "driver": _or_none(_is_text),
    "triton": _is_text,
    "torch": _or_none(_is_text),
    "kernels": _is_text,
    "kernels_version": _or_none(_is_text),
    "package": _is_text,
    "date": _is_date,
    "replayed": lambda value: isinstance(value, bool),
    "strategy": _is_text,
    "space": _is_text,
    "trials": lambda value: type(value) is int and value >= 0,
    "times_us": _each(_is_time),
    "default_times_us": _each(_is_time),
    "held_out": _each(_is_text),
}

_EARLIER: Mapping[str, Any] = {"held_out": []}
"""What entries of earlier versions lack, and what that means."""
