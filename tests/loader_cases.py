"""An empty root for lookups, config files to put there, good and spoiled, and what is logged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, ConfigTable, config_file_path, merge_config_file
from lora_autotune.loader import clear_cache, get_lora_shrink_config

H200 = "NVIDIA H200"
HERE = {"device_name": H200, "triton_version": "3.6.0"}
TABLE: ConfigTable = {
    16: {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 2, "num_stages": 3},
    64: {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
}


def empty_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(folder))
    (folder / FOLDER).mkdir()
    clear_cache()
    yield folder
    clear_cache()


def path_of(root: Path, version: str = "3.6.0", kernel: str = "shrink") -> Path:
    return config_file_path(root, kernel, 1024, 64, 3, device_name=H200, triton_version=version)


def put(root: Path, version: str = "3.6.0", table: ConfigTable = TABLE, **more: str) -> Path:
    path = path_of(root, version, **more)
    merge_config_file(path, table)
    return path


def spoil(root: Path, version: str = "3.6.0", content: bytes = b"{") -> Path:
    path = path_of(root, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def said(log: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == level]


def shrink(chunk_size: int = 16, **who: Any) -> dict[str, int]:
    return get_lora_shrink_config(1024, 64, 3, chunk_size, **(who or HERE))


def marked(mark: int) -> ConfigTable:
    return {16: {"BLOCK_N": mark, "BLOCK_K": 16}}
