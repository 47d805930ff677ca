"""Recorded landscapes: what was measured once on a GPU, to be searched again anywhere.

JSON lines, gzipped when the name ends in ``.gz``: a header, then one line per configuration of the
space and one for the default.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from lora_autotune.errors import LandscapeError, UsageError
from lora_autotune.evaluator import DETAILS, Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import LARGEST_GRAPH_BATCH, Instance, Task, Workload
from lora_autotune.trial import (
    Failure,
    Measurement,
    Outcome,
    Resources,
    Trial,
    relative_cost,
    tuning_cost,
)
from lora_autotune.workload import workload_name

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """Every configuration of a space, measured on one task.

    Attributes:
        trials: each config's trial, without a cost; the default's among them.
        note: what the recorder knows beyond that (command, date, driver), for the header. It
            cannot change what the header says by itself.
    """

    task: Task
    workload: Workload
    platform: Platform
    space: SearchSpace
    trials: Mapping[Config, Trial]
    note: Mapping[str, Any] = field(default_factory=dict)

    def cost(self, config: Config) -> float | None:
        """What a search would be told, see :func:`tuning_cost`; None for a config that failed.

        Where the default failed, its time is relative to the first config that did not.
        """
        outcome = self.trials[config].outcome
        if not isinstance(outcome, Measurement):
            return None
        default = self.trials[DEFAULT_CONFIGS[self.task.kernel]].outcome
        if isinstance(default, Measurement):
            return tuning_cost(outcome.times_us, default.times_us, self.workload)
        outcomes = (trial.outcome for trial in self.trials.values())
        baseline = next(one for one in outcomes if isinstance(one, Measurement))
        return relative_cost(outcome.times_us, baseline.times_us, self.workload)

    def best(self) -> tuple[Config, float]:
        """The config with the lowest cost, and its cost."""
        costs = ((self.cost(config), config) for config in self.trials)
        ranked = [(cost, str(config), config) for cost, config in costs if cost is not None]
        if not ranked:
            raise LandscapeError(f"the landscape of {self.task} has no measurement")
        cost, _, config = min(ranked)
        return config, cost


def landscape_file_name(task: Task, workload: Workload) -> str:
    """What a landscape's file is called; those of one task on two workloads differ.

    The slices of an expand are not in it: who records one width cut in two ways gives each a
    folder.
    """
    shape = f"{task.kernel}-K{task.K}-R{task.R}-S{task.S}-chunk{task.chunk_size}"
    dtype = "" if task.dtype == "float16" else f"-{task.dtype}"
    return f"{shape}-{workload_name(workload, task.chunk_size)}{dtype}.jsonl.gz"


def read_landscape(path: Path) -> Landscape:
    """The landscape in a file.

    Raises:
        LandscapeError: it cannot be read, or is not a landscape; the message names the line.
    """
    number, header, trials = 1, {}, {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            header = _parse(file.readline())
            task, workload, platform, space = _read_header(header)
            for number, text in enumerate(file, start=2):  # noqa: B007 - named below
                trial = _read_trial(_parse(text), len(workload))
                if trial.config in trials:
                    raise ValueError(f"{trial.config} is there twice")
                trials[trial.config] = trial
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LandscapeError(f"{path} cannot be read: {error}") from error
    except KeyError as error:
        raise LandscapeError(f"{path}:{number}: {error} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError, UsageError) as error:
        raise LandscapeError(f"{path}:{number}: {error}") from error
    if DEFAULT_CONFIGS[task.kernel] not in trials:
        raise LandscapeError(f"{path} lacks the default configuration")
    known = {"landscape", "space", "instances", *_identity(task, platform), *platform.details}
    note = {key: value for key, value in header.items() if key not in known}
    return Landscape(
        task=task, workload=workload, platform=platform, space=space, trials=trials, note=note
    )


def write_landscape(path: Path, landscape: Landscape) -> None:
    """Write a landscape, with its times to the nanosecond; equal landscapes give equal bytes.

    Raises:
        LandscapeError: it cannot be written, or a config was pruned instead of measured.
    """
    header = {
        "landscape": VERSION,
        **_identity(landscape.task, landscape.platform),
        "space": {name: list(values) for name, values in landscape.space.axes.items()},
        "instances": [instance.as_dict() for instance in landscape.workload],
        **landscape.platform.details,
    }
    header = {**header, **landscape.note, **header}
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


def _parse(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _get(values: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A value of one of these very types; raises KeyError or ValueError."""
    value = values[name]
    if type(value) not in kinds:
        raise ValueError(f"{name} cannot be {value!r}")
    return value


def _identity(task: Task, platform: Platform) -> dict[str, Any]:
    return {
        **task.as_dict(),
        "dtype": task.dtype,
        "slice_offsets": None if task.slice_offsets is None else list(task.slice_offsets),
        **platform.identity,
    }


def _read_header(header: Mapping[str, Any]) -> tuple[Task, Workload, Platform, SearchSpace]:
    if header.get("landscape") != VERSION:
        raise ValueError(f"not the header of a landscape of version {VERSION}")
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
    workload = tuple(_read_instance(instance) for instance in header["instances"])
    if not workload:
        raise ValueError("no instances")
    platform = Platform(
        device=_get(header, "device", str),
        triton=_get(header, "triton", str),
        kernels=_get({"kernels": "builtin", **header}, "kernels", str),
        **{name: header[name] for name in DETAILS if isinstance(header.get(name), str)},
    )
    space = SearchSpace({name: tuple(axis) for name, axis in header["space"].items()})
    return task, workload, platform, space


def _read_instance(values: Mapping[str, Any]) -> Instance:
    given = {"weight": 1.0, "spread": "even", "phase": None, "ranks": None, **values}
    ranks = _get(given, "ranks", list, type(None))
    return Instance(
        tokens=_get(values, "tokens", int),
        adapters=_get(values, "adapters", int),
        weight=float(_get(given, "weight", int, float)),
        spread=_get(given, "spread", str),
        phase=_get(given, "phase", str, type(None)),
        graph_batch=_get({"graph_batch": LARGEST_GRAPH_BATCH, **values}, "graph_batch", int),
        ranks=None if ranks is None else tuple(_get({"rank": r}, "rank", int) for r in ranks),
    )


def _read_trial(line: Mapping[str, Any], instances: int) -> Trial:
    outcome: Outcome
    failure = line.get("failure")
    if failure is not None:
        # A kind that another recorder came up with is replayed as it stands.
        outcome = Failure(kind=_get(failure, "kind", str), message=_get(failure, "message", str))
    else:
        times_us = tuple(line["times_us"])
        if len(times_us) != instances or not all(_is_time(time) for time in times_us):
            raise ValueError(f"{instances} positive times_us belong here, not {list(times_us)}")
        outcome = Measurement(
            times_us=tuple(float(time) for time in times_us),
            coarse=_get({"coarse": False, **line}, "coarse", bool),
        )
    resources = None
    if line.get("registers") is not None:
        rest = {"spill_words": 0, "smem_bytes": 0, **line}
        resources = Resources(
            registers=_get(line, "registers", int),
            spill_words=_get(rest, "spill_words", int),
            smem_bytes=_get(rest, "smem_bytes", int),
        )
    return Trial(
        config=Config.from_dict(_get(line, "config", dict)),
        outcome=outcome,
        compile_s=_get({"compile_s": None, **line}, "compile_s", int, float, type(None)),
        resources=resources,
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _trial_line(trial: Trial) -> dict[str, Any]:
    line: dict[str, Any] = {"config": trial.config.as_dict()}
    if isinstance(trial.outcome, Measurement):
        line["times_us"] = [round(time, 3) for time in trial.outcome.times_us]
        if trial.outcome.coarse:
            line["coarse"] = True
    elif isinstance(trial.outcome, Failure):
        line["failure"] = {"kind": trial.outcome.kind, "message": trial.outcome.message}
    else:
        raise LandscapeError(f"{trial.config} was pruned; a landscape holds full measurements")
    if trial.compile_s is not None:
        line["compile_s"] = trial.compile_s
    if trial.resources is not None:
        line["registers"] = trial.resources.registers
        line["spill_words"] = trial.resources.spill_words
        line["smem_bytes"] = trial.resources.smem_bytes
    return line
