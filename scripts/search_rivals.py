"""What our strategies are compared with: Optuna as one would first write it, and Kernel Tuner."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import tempfile
import warnings
from pathlib import Path

import optuna
from search_replay import Regrets

from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.space import Config

KERNEL_TUNER = "kernel-tuner==1.5.0"
KERNEL_TUNER_STRATEGIES = (
    "random_sample",
    "bayes_opt",
    "genetic_algorithm",
    "simulated_annealing",
    "dual_annealing",
    "basinhopping",
    "diff_evo",
    "pso",
    "firefly_algorithm",
    "mls",
    "greedy_mls",
    "ordered_greedy_mls",
    "greedy_ils",
    "hybrid_vndx",
    "adaptive_tabu_greywolf",
    "minimize",
)
"""All that it offers for one objective but brute_force, pyatf_strategies (fails with the pyatf that
is on the index) and skopt (does not end)."""

MAX_PROPOSALS = 20
"""Times as many proposals as configs after which plain Optuna is taken to repeat itself."""


def has_kernel_tuner() -> bool:
    """Whether Kernel Tuner can be imported here."""
    return importlib.util.find_spec("kernel_tuner") is not None


def plain_optuna(file: Path, seed: int, count: int) -> list[float]:
    """TPESampler() over categories, in sequence; failures as FAIL, known configs answered free."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    landscape = read_landscape(file)
    regrets = Regrets(landscape)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(MAX_PROPOSALS * count):
        trial = study.ask()
        values = {n: trial.suggest_categorical(n, axis) for n, axis in landscape.space.axes.items()}
        config = Config.from_dict(values)
        regrets.add(config)
        cost = landscape.cost(config)
        if cost is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, cost)
        if len(regrets.values) >= count:
            break
    return regrets.values


def kernel_tuner(strategy: str, file: Path, seed: int, count: int) -> list[float]:
    """One of Kernel Tuner's strategies with its own defaults, in its simulation mode.

    Raises:
        Exception: whatever it raises.
    """
    import kernel_tuner as kt
    import numpy as np

    landscape = read_landscape(file)
    random.seed(seed)
    np.random.seed(seed)
    axes = {name: [v or 0 for v in axis] for name, axis in landscape.space.axes.items()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = Path(folder) / "cache.json"
        cache.write_text(json.dumps(_cache(landscape, axes)), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            results, _ = kt.tune_kernel(
                landscape.task.kernel,
                f"__global__ void {landscape.task.kernel}() {{}}",
                1,
                [],
                axes,
                lang="CUDA",
                cache=str(cache),
                simulation_mode=True,
                quiet=True,
                strategy=strategy,
                strategy_options={"max_fevals": count},
            )
    regrets = Regrets(landscape)
    for result in results:
        regrets.add(Config.from_dict({name: result[name] or None for name in axes}))
    if not regrets.values:
        raise RuntimeError("it measured nothing")
    return regrets.values[:count]


def _cache(landscape: Landscape, axes: dict[str, list[int]]) -> dict[str, object]:
    """A landscape as Kernel Tuner's cache file; its axes are numbers, so 0 stands for absent."""
    lines = {}
    for config in landscape.space:
        values = {name: getattr(config, name) or 0 for name in axes}
        cost = landscape.cost(config)
        lines[",".join(map(str, values.values()))] = {
            **values,
            "time": "RuntimeFailedConfig" if cost is None else cost,
            **dict.fromkeys(("compile_time", "verification_time", "benchmark_time"), 0.0),
        }
    return {
        "device_name": landscape.platform.device,
        "kernel_name": landscape.task.kernel,
        "problem_size": 1,
        "tune_params_keys": list(axes),
        "tune_params": axes,
        "objective": "time",
        "cache": lines,
    }
