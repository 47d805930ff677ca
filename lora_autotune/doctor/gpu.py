"""The GPU: what there is, who else uses it, and whether a kernel can be tuned on it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_autotune.doctor.child import run
from lora_autotune.doctor.finding import Finding, Notebook, Section

OPEN_TIMEOUT_S = 60.0
"""For opening the device."""

TRIAL_TIMEOUT_S = 150.0
"""For everything: importing torch, opening the device, compiling and timing a kernel."""

SMI_TIMEOUT_S = 20.0

_REPLAY = "search recorded measurements instead: lora-autotune tune --replay"
_LITTLE_FREE = 0.25
_GIB = 1 << 30


def examine_gpu() -> Section:
    """Ask nvidia-smi and torch, and try a kernel; each in a child, under a limit."""
    smi = _ask_nvidia_smi()
    tried = _try()
    book = Notebook("GPU")
    torch: Mapping[str, Any] = tried.get("torch", {})
    devices = torch.get("devices") or []
    if devices:
        _describe(book, devices, smi, torch)
    else:
        if smi["gpus"]:
            book.ok(f"nvidia-smi: {', '.join(smi['gpus'])}; driver {smi['driver']}")
        elif smi["error"]:
            book.note(f"nvidia-smi: {smi['error']}")
        fact, remedy = _why_none(torch, smi, tried)
        book.problem(fact, remedy, stops=("tune",))
    section = book.section({"nvidia_smi": smi, **tried})
    others = _judge_workers(tried) + (_judge_trial(tried) if devices else ())
    return Section(facts=section.facts, findings=section.findings + others)


def _ask_nvidia_smi() -> dict[str, Any]:
    found: dict[str, Any] = {"gpus": [], "driver": None, "processes": [], "error": None}
    command = shutil.which("nvidia-smi")
    if command is None:
        found["error"] = "not installed"
        return found
    form = "--format=csv,noheader,nounits"
    gpus = run([command, "--query-gpu=name,driver_version", form], timeout_s=SMI_TIMEOUT_S)
    if gpus.code != 0:
        silent = f"gave no answer within {SMI_TIMEOUT_S:.0f} s"
        found["error"] = silent if gpus.code is None else gpus.last_words
        return found
    rows = [_row(line) for line in gpus.out.splitlines() if line.strip()]
    found["gpus"] = [row[0] for row in rows]
    found["driver"] = rows[0][-1] if rows else None
    query = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory"
    users = run([command, query, form], timeout_s=SMI_TIMEOUT_S)
    for row in map(_row, users.out.splitlines() if users.code == 0 else ()):
        if len(row) == 4:
            keys = ("gpu_uuid", "pid", "name", "memory_mib")
            found["processes"].append(dict(zip(keys, row, strict=True)))
    return found


def _row(line: str) -> list[str]:
    return [value.strip() for value in line.split(",")]


def _try() -> dict[str, Any]:
    """What the child reported, step by step, and how it ended."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(
        prefix="lora-autotune-doctor-", ignore_cleanup_errors=True
    ) as folder:
        code = f"from {__package__}.trying import report; report({folder!r}, {OPEN_TIMEOUT_S})"
        ended = run([sys.executable, "-c", code], timeout_s=TRIAL_TIMEOUT_S, env=env, cwd=folder)
    last_words = ended.last_words if ended.code != 0 else None
    tried: dict[str, Any] = {"timed_out": ended.code is None, "last_words": last_words}
    for line in ended.out.splitlines():
        if line.startswith("{"):
            tried.update(json.loads(line))
    return tried


def _describe(
    book: Notebook,
    devices: list[dict[str, Any]],
    smi: Mapping[str, Any],
    torch: Mapping[str, Any],
) -> None:
    first = devices[0]
    total, free = first["memory_bytes"], first["free_bytes"]
    memory = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    book.ok(f"{first['name']}, compute capability {first['capability']}, {memory}")
    driver = f"driver {smi['driver']}; " if smi["driver"] else ""
    book.ok(f"{driver}torch is built for CUDA {torch['cuda']}")
    if torch.get("hip"):
        fact = f"torch {torch['version']} is built for ROCm; these kernels are tuned on CUDA"
        book.problem(fact, _REPLAY, stops=("tune",))
    if len(devices) > 1:
        book.note(
            f"{len(devices)} GPUs: the first is tuned on", "CUDA_VISIBLE_DEVICES=N chooses another"
        )
    uuid = first["uuid"]
    others = [one for one in smi["processes"] if not uuid or one["gpu_uuid"].endswith(uuid)]
    if others:
        named = ", ".join(f"{one['name']} ({one['pid']})" for one in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        book.note(
            f"others use this GPU, which disturbs timings: {named}{more}",
            "stop them before tuning, or choose another with CUDA_VISIBLE_DEVICES=N",
        )
    elif free < _LITTLE_FREE * total:
        book.note(f"little of its memory is free: {memory}", "see who holds it: nvidia-smi")


def _judge_workers(tried: Mapping[str, Any]) -> tuple[Finding, ...]:
    book = Notebook("Processes")
    worker = tried.get("worker", {})
    if worker.get("works"):
        book.ok("worker processes start (forkserver)")
    elif worker or not tried["timed_out"]:
        words = str(worker.get("failed") or tried["last_words"])
        remedy = "see GPU, and whether the temporary folder can be written (Disk)"
        if "too long" in words:  # of a socket's, which has at most 107 characters: unix(7)
            remedy = "export TMPDIR=DIR, one with a shorter path"
        book.problem(f"worker processes do not start: {words}", remedy, stops=("tune",))
    return book.section({}).findings


def _judge_trial(tried: Mapping[str, Any]) -> tuple[Finding, ...]:
    book = Notebook("Trial")
    trial = tried.get("trial", {})
    if "time_us" in trial:
        book.ok(f"a kernel was compiled, checked and timed here: {trial['time_us']:.1f} us")
        return book.section({}).findings
    words = trial.get("failed") or _unanswered(tried)
    remedy = "mend any problem above first; the whole message: lora-autotune doctor --json"
    if "memory" in words:
        remedy = "see who holds the GPU's memory: nvidia-smi"
    elif "over its limit" in words or tried["timed_out"]:
        remedy = "reset the GPU or reboot, if nvidia-smi hangs as well"
    book.problem(f"a small kernel does not run here: {words}", remedy, stops=("tune",))
    return book.section({}).findings


def _unanswered(tried: Mapping[str, Any]) -> str:
    if tried["timed_out"]:
        return f"no answer within {TRIAL_TIMEOUT_S:.0f} s"
    return str(tried["last_words"])


def _why_none(
    torch: Mapping[str, Any], smi: Mapping[str, Any], tried: Mapping[str, Any]
) -> tuple[str, str]:
    """Why there is no device to tune on, and what to do."""
    if torch.get("missing"):
        if not smi["gpus"]:
            return "there is no GPU (and torch is not installed)", _REPLAY
        return (
            "there is a GPU, but torch is not installed",
            "pip install 'lora-autotune[tune,cuda]'",
        )
    if "version" not in torch:
        words = torch.get("failed") or _unanswered(tried)
        remedy = "see whether this ends: python -c 'import torch; print(torch.cuda.is_available())'"
        return f"torch cannot use a GPU here: {words}", remedy
    name = f"torch {torch['version']}"
    if torch["cuda"] is None:
        if not smi["gpus"]:
            return f"there is no CUDA device: {name} has no CUDA in it", _REPLAY
        remedy = "install a build with CUDA: pip install --force-reinstall torch triton"
        return f"there is a GPU, but {name} has no CUDA in it", remedy
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and smi["gpus"]:
        fact = f"torch sees none of the GPUs: CUDA_VISIBLE_DEVICES is {visible!r}"
        return fact, "unset CUDA_VISIBLE_DEVICES"
    reason = f": {torch['reason']}" if torch.get("reason") else ""
    if not smi["gpus"]:
        return f"there is no CUDA device: {name} sees none{reason}", _REPLAY
    remedy = f"use a driver that knows CUDA {torch['cuda']}, or a torch for driver {smi['driver']}"
    return f"there is a GPU, but {name} does not see it{reason}", remedy
