"""Recorded landscapes: what was measured once on a GPU, to be searched again anywhere.

JSON lines, gzipped when the name ends in ``.gz``: a header, then one line per configuration of the
space and one for the default.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_autotune.errors import LandscapeError, UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import Instance, Task, Workload
from lora_autotune.trial import (
    FAILURE_KINDS,
    Failure,
    Measurement,
    Outcome,
    Resources,
    Trial,
    relative_cost,
)

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """Every configuration of a space, measured on one task.

    Attributes:
        trials: each config's trial, without a cost; the default's among them.
        note: what the recorder knows beyond that (command, date, driver), for the header.
    """

    task: Task
    workload: Workload
    platform: Platform
    space: SearchSpace
    trials: Mapping[Config, Trial]
    note: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, config: Config) -> float | None:
        """Time relative to the default's, weighted; None for a config that failed."""
        default = self.trials[DEFAULT_CONFIGS[self.task.kernel]].outcome
        outcome = self.trials[config].outcome
        if not isinstance(outcome, Measurement) or not isinstance(default, Measurement):
            return None
        return relative_cost(outcome.times_us, default.times_us, self.workload)

    def best(self) -> tuple[Config, float]:
        """The config with the lowest cost, and its cost."""
        costs = ((self.cost(config), config) for config in self.trials)
        ranked = [(cost, str(config), config) for cost, config in costs if cost is not None]
        if not ranked:
            raise LandscapeError(f"the landscape of {self.task} has no measurement")
        cost, _, config = min(ranked)
        return config, cost


def read_landscape(path: Path) -> Landscape:
    """The landscape in a file.

    Raises:
        LandscapeError: it cannot be read, or is not a landscape; the message names the line.
    """
    number = 0
    try:
        lines = _lines(path)
        number, header = next(lines, (1, None))
        if not isinstance(header, dict) or header.get("landscape") != VERSION:
            raise ValueError(f"not the header of a landscape of version {VERSION}")
        task, workload, platform, space = _read_header(header)
        trials: dict[Config, Trial] = {}
        for number, line in lines:  # noqa: B007 - the handlers below name it
            trial = _read_trial(line, len(workload))
            if trial.config in trials:
                raise ValueError(f"{trial.config} is there twice")
            trials[trial.config] = trial
        if DEFAULT_CONFIGS[task.kernel] not in trials:
            raise ValueError("the default configuration is missing")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise LandscapeError(f"{path}: cannot be read: {error}") from error
    except KeyError as error:
        raise LandscapeError(f"{path}:{number}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, UsageError) as error:
        raise LandscapeError(f"{path}:{number}: {error}") from error
    known = {"landscape", "space", "instances", *_identity(task, platform)}
    note = {key: value for key, value in header.items() if key not in known}
    return Landscape(
        task=task, workload=workload, platform=platform, space=space, trials=trials, note=note
    )


def write_landscape(path: Path, landscape: Landscape) -> None:
    """Write a landscape; equal landscapes give equal bytes. Raises LandscapeError."""
    header = {
        "landscape": VERSION,
        **_identity(landscape.task, landscape.platform),
        "space": {name: list(values) for name, values in landscape.space.axes.items()},
        "instances": [
            {"tokens": i.tokens, "adapters": i.adapters, "weight": i.weight}
            for i in landscape.workload
        ],
        **landscape.note,
    }
    lines = [header, *(_trial_line(trial) for trial in landscape.trials.values())]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    temporary = path.with_name(path.name + "~")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise LandscapeError(f"{path}: cannot be written: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None


def _identity(task: Task, platform: Platform) -> dict[str, Any]:
    return {
        "kernel": task.kernel,
        "K": task.K,
        "R": task.R,
        "S": task.S,
        "chunk_size": task.chunk_size,
        "dtype": task.dtype,
        "slice_offsets": None if task.slice_offsets is None else list(task.slice_offsets),
        "device": platform.device,
        "triton": platform.triton,
        "kernels": platform.kernels,
    }


def _read_header(header: Mapping[str, Any]) -> tuple[Task, Workload, Platform, SearchSpace]:
    offsets = header.get("slice_offsets")
    task = Task(
        kernel=header["kernel"],
        K=header["K"],
        R=header["R"],
        S=header["S"],
        chunk_size=header["chunk_size"],
        dtype=header["dtype"],
        slice_offsets=None if offsets is None else tuple(offsets),
    )
    workload = tuple(
        Instance(tokens=i["tokens"], adapters=i["adapters"], weight=i.get("weight", 1.0))
        for i in header["instances"]
    )
    if not workload:
        raise ValueError("no instances")
    platform = Platform(
        device=header["device"], triton=header["triton"], kernels=header.get("kernels", "builtin")
    )
    space = SearchSpace({name: tuple(axis) for name, axis in header["space"].items()})
    return task, workload, platform, space


def _read_trial(line: Mapping[str, Any], instances: int) -> Trial:
    outcome: Outcome
    if "failure" in line:
        kind, message = line["failure"]["kind"], line["failure"]["message"]
        if kind not in FAILURE_KINDS:
            raise ValueError(f"unknown failure {kind!r}; known: {', '.join(FAILURE_KINDS)}")
        outcome = Failure(kind=kind, message=message)
    else:
        times_us = tuple(float(time) for time in line["times_us"])
        if len(times_us) != instances or not all(0 < time < float("inf") for time in times_us):
            raise ValueError(f"{instances} positive times_us belong here, not {times_us}")
        outcome = Measurement(times_us=times_us)
    resources = None
    if "registers" in line:
        resources = Resources(
            registers=line["registers"],
            spill_bytes=line.get("spill_bytes", 0),
            smem_bytes=line.get("smem_bytes", 0),
        )
    return Trial(
        config=Config.from_dict(line["config"]),
        outcome=outcome,
        compile_s=line.get("compile_s"),
        resources=resources,
    )


def _trial_line(trial: Trial) -> dict[str, Any]:
    line: dict[str, Any] = {"config": trial.config.as_dict()}
    if isinstance(trial.outcome, Measurement):
        line["times_us"] = [round(time, 3) for time in trial.outcome.times_us]
    elif isinstance(trial.outcome, Failure):
        line["failure"] = {"kind": trial.outcome.kind, "message": trial.outcome.message}
    else:
        raise LandscapeError(f"{trial.config} was pruned; a landscape holds full measurements")
    if trial.compile_s is not None:
        line["compile_s"] = trial.compile_s
    if trial.resources is not None:
        line["registers"] = trial.resources.registers
        line["spill_bytes"] = trial.resources.spill_bytes
        line["smem_bytes"] = trial.resources.smem_bytes
    return line
