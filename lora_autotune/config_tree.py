"""A tree of config files, with the provenance beside them: what is wrong in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lora_autotune.config_file import FOLDER, folder_version, read_config_file
from lora_autotune.errors import ConfigFileError
from lora_autotune.provenance import check_provenance, is_provenance

_SIZE = "[1-9][0-9]*"
_NAME = re.compile(rf"lora_(shrink|expand),K={_SIZE},R={_SIZE},S={_SIZE},device=[^ /]+\.json")


def check_tree(path: Path) -> Iterator[tuple[Path, ConfigFileError | None]]:
    """Every config file at or under a path, with what is wrong with it.

    In a tree, a name or a folder that no lookup would ever read is wrong as well, and so is a
    folder that cannot be listed. A provenance file is named only where it is wrong: malformed, or
    of configs that are not in the file beside it.
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
        wrong = _wrong(file) if is_provenance(file) else _misplaced(file) or _wrong(file)
        if wrong is not None or not is_provenance(file):
            yield file, wrong


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
        if is_provenance(file):
            check_provenance(file)
        else:
            read_config_file(file)
    except ConfigFileError as error:
        return error
    return None
