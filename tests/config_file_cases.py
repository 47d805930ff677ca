"""A good config, where its file lies in a tree, and how it gets there."""

from __future__ import annotations

from pathlib import Path

from lora_autotune.config_file import ConfigTable, config_file_path, merge_config_file

GOOD = {"BLOCK_N": 32, "BLOCK_K": 64}


def put(path: Path, table: ConfigTable) -> Path:
    merge_config_file(path, table)
    return path


def path_in(tree: Path) -> Path:
    return config_file_path(
        tree, "expand", 4096, 64, 3, device_name="NVIDIA H200", triton_version="3.6.0"
    )
