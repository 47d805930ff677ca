"""Autotuner for the CSGMV LoRA kernels, and the loader of what it writes.

Importing the package loads neither torch, Triton nor Optuna; each name is imported when it is first
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_autotune.benchmark import benchmark_expand_config, benchmark_shrink_config
    from lora_autotune.errors import LoraAutotuneError
    from lora_autotune.evaluator import Evaluator, Platform
    from lora_autotune.job import Job
    from lora_autotune.loader import (
        DEFAULT_EXPAND_CONFIG,
        DEFAULT_SHRINK_CONFIG,
        get_lora_config_file_name,
        get_lora_configs,
        get_lora_expand_config,
        get_lora_shrink_config,
    )
    from lora_autotune.result import Progress, TuningResult, write_result
    from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace, named_space
    from lora_autotune.strategy import Strategy, StrategyOptions, make_strategy
    from lora_autotune.task import Instance, Task, default_workload
    from lora_autotune.trial import Failure, Measurement, Pruned, Trial
    from lora_autotune.tuner import tune, tune_all

__version__ = "0.1.0"

_HOMES = {
    "benchmark": ("benchmark_expand_config", "benchmark_shrink_config"),
    "errors": ("LoraAutotuneError",),
    "evaluator": ("Evaluator", "Platform"),
    "job": ("Job",),
    "loader": (
        "DEFAULT_EXPAND_CONFIG",
        "DEFAULT_SHRINK_CONFIG",
        "get_lora_config_file_name",
        "get_lora_configs",
        "get_lora_expand_config",
        "get_lora_shrink_config",
    ),
    "result": ("Progress", "TuningResult", "write_result"),
    "space": ("DEFAULT_CONFIGS", "Config", "SearchSpace", "named_space"),
    "strategy": ("Strategy", "StrategyOptions", "make_strategy"),
    "task": ("Instance", "Task", "default_workload"),
    "trial": ("Failure", "Measurement", "Pruned", "Trial"),
    "tuner": ("tune", "tune_all"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DEFAULT_CONFIGS",
    "DEFAULT_EXPAND_CONFIG",
    "DEFAULT_SHRINK_CONFIG",
    "Config",
    "Evaluator",
    "Failure",
    "Instance",
    "Job",
    "LoraAutotuneError",
    "Measurement",
    "Platform",
    "Progress",
    "Pruned",
    "SearchSpace",
    "Strategy",
    "StrategyOptions",
    "Task",
    "Trial",
    "TuningResult",
    "__version__",
    "benchmark_expand_config",
    "benchmark_shrink_config",
    "default_workload",
    "get_lora_config_file_name",
    "get_lora_configs",
    "get_lora_expand_config",
    "get_lora_shrink_config",
    "make_strategy",
    "named_space",
    "tune",
    "tune_all",
    "write_result",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
