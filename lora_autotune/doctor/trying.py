"""Runs in a child: starts a worker as tuning does, and evaluates a config as tuning does."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from typing import Any

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.task import Instance
from lora_autotune.trial import Measurement


def report(folder: str, timeout_s: float) -> None:
    """Print an object a line, after each step, so that a hang shows where it was.

    Args:
        folder: where temporary files go, for the parent to remove whatever happens here.
        timeout_s: for asking torch.
    """
    try:
        worker = Worker(_nothing)
    except (OSError, EOFError) as error:  # torch breaks the fork server that imports it, or a limit
        _say("worker", {"failed": _line(error)})
        _say("torch", describe_devices())
        return
    tempfile.tempdir = folder
    try:
        _say("worker", {"works": True})
        found = worker.call(describe_devices, timeout_s=timeout_s)
    finally:
        worker.close()
    devices = {"failed": found.message} if isinstance(found, Died) else found
    _say("torch", devices)
    if devices.get("devices"):
        _say("trial", _try_kernel())


def _nothing() -> None:
    pass


def _say(step: str, found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({step: found}) + "\n")
    sys.stdout.flush()


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def describe_devices() -> dict[str, Any]:
    """What torch sees; without a device, why not, as far as CUDA says it."""
    try:
        return _devices()
    except ModuleNotFoundError as error:
        return {"missing": True} if error.name == "torch" else {"failed": _line(error)}
    except Exception as error:  # whatever CUDA says no with
        return {"failed": _line(error)}


def _devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "devices": [],
    }
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            found["reason"] = str(said[-1].message) if said else None
            return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found["devices"].append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "uuid": str(getattr(properties, "uuid", "")),
            }
        )
    # Of the one that is tuned on only: asking opens a context on the device.
    found["devices"][0]["free_bytes"] = torch.cuda.mem_get_info(0)[0]
    return found


def _try_kernel() -> dict[str, Any]:
    """Compile, check and time the default of a small task."""
    try:
        from lora_autotune.benchmark import benchmark_shrink_config

        outcome = benchmark_shrink_config(
            DEFAULT_CONFIGS["shrink"].as_dict(),
            K=1024,
            R=16,
            num_slices=1,
            chunk_size=16,
            workload=(Instance(tokens=32, adapters=2),),
        ).outcome
    except EvaluatorError as error:
        return {"failed": error.message.strip().splitlines()[-1], "trace": error.message}
    except ImportError as error:
        return {"failed": _line(error)}
    if isinstance(outcome, Measurement):
        return {"time_us": outcome.times_us[0]}
    return {"failed": str(getattr(outcome, "message", outcome))}
