"""The commands that only look: ``lookup``, ``check`` and ``strategies``."""

from __future__ import annotations

import sys
from typing import Any

from lora_autotune.config_file import check_tree
from lora_autotune.errors import UsageError
from lora_autotune.loader import explain_lookup
from lora_autotune.strategy import strategy_names


def lookup(arguments: Any) -> int:
    """Print what a server would get."""
    found = explain_lookup(
        arguments.kernel,
        arguments.K,
        arguments.R,
        arguments.S,
        arguments.chunk_size,
        device_name=arguments.device,
        triton_version=arguments.triton,
    )
    print("config:", " ".join(f"{name}={value}" for name, value in found.config.items()))
    print("file:  ", found.path or "none")
    if found.chunk_size is not None:
        print("entry: ", f"chunk size {found.chunk_size}")
    print("why:   ", found.reason)
    for candidate in found.passed_over:
        print("passed over:", candidate)
    return 0


def check(arguments: Any) -> int:
    """Print a line for every file that is wrong; 1 if there is one."""
    good = bad = 0
    for path in arguments.paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        verdicts = [error for _, error in check_tree(path)]
        if not verdicts:
            raise UsageError(f"{path} holds no config file")
        for error in verdicts:
            good += error is None
            bad += error is not None
            if error is not None:
                print(error, file=sys.stderr)
    print(f"{good} good, {bad} bad")
    return 1 if bad else 0


def strategies(arguments: Any) -> int:
    """Print the names that --strategy takes, and where each is from."""
    del arguments
    for name, origin in strategy_names().items():
        print(f"{name:12} {origin}")
    return 0
