"""The commands that only look: ``lookup``, ``check`` and ``strategies``."""

from __future__ import annotations

import sys
from typing import Any

from lora_autotune.config_tree import check_tree
from lora_autotune.errors import UsageError
from lora_autotune.kernel_set import BUILTIN, set_of
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.loader import config_root, explain_lookup
from lora_autotune.provenance import Provenance, find_provenance
from lora_autotune.space import DEFAULT_CONFIGS
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
        kernels=arguments.kernels,
    )
    print("for:   ", f"{arguments.kernels} kernels, from {config_root(arguments.kernels)}")
    print("config:", " ".join(f"{name}={value}" for name, value in found.config.items()))
    print("file:  ", found.path or "none")
    if found.chunk_size is not None:
        print("entry: ", f"chunk size {found.chunk_size}")
    print("why:   ", found.reason)
    if arguments.kernels == BUILTIN and found.config == DEFAULT_CONFIGS[arguments.kernel].as_dict():
        print("launch:", "what suits each batch: to these kernels the default is no config")
    for candidate in found.passed_over:
        print("passed over:", candidate)
    if found.path is not None and found.chunk_size is not None:
        entry = find_provenance(found.path, found.chunk_size, found.config)
        print_provenance(entry)
        if isinstance(entry, Provenance) and set_of(entry.kernels) != arguments.kernels:
            print(f"warning: looked up for {arguments.kernels}, but tuned on {entry.kernels}")
    return 0


def print_provenance(entry: Provenance | str) -> None:
    """Which kernels a config was tuned on, and where else it is from; or why nobody knows."""
    if isinstance(entry, str):
        print("kernels:", "not known")
        print("provenance:", entry)
        return
    print("kernels:", " ".join(filter(None, [entry.kernels, entry.kernels_version, _age(entry)])))
    print("provenance:", "a replay of recorded measurements" if entry.replayed else "measured")
    versions = {"driver": entry.driver, "Triton": entry.triton, "torch": entry.torch}
    known = [f"{name} {version}" for name, version in versions.items() if version is not None]
    print("  command:", entry.command or "none: from Python")
    print("  date:   ", f"{entry.date}, lora-autotune {entry.package}")
    print("  on:     ", ", ".join([entry.gpu, *known]))
    print("  search: ", f"{entry.strategy}, {entry.trials} configs of the space {entry.space}")
    widths = f", slices {'+'.join(map(str, entry.slices))}" if len(entry.slices) > 1 else ""
    print("  dtype:  ", f"{entry.dtype}{widths}")
    defaults = entry.default_times_us or (None,) * len(entry.times_us)
    for batch, time_us, default_us in zip(entry.workload, entry.times_us, defaults, strict=True):
        against = "the default does not run"
        if default_us is not None:
            against = f"default {default_us:.1f} us, {default_us / time_us:.2f}x"
        print("  batch:  ", f"{batch}: {time_us:.1f} us ({against})")
    if entry.held_out:
        print("  lost on none of, though not tuned on:", ", ".join(entry.held_out))


def _age(entry: Provenance) -> str | None:
    """What to know of the kernels' version: those that are here may be others."""
    if entry.kernels != BUILTIN:
        return None
    if entry.kernels_version is None:
        return "(their version was not recorded)"
    here = builtin_kernels_version()
    return None if entry.kernels_version == here else f"(those here are {here}: changed since)"


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
