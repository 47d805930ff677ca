"""Jobs that stand in for the compiler and the GPU, in real worker processes.

They answer what a landscape recorded, and misbehave for chosen configs. Where a fault is an answer
of the GPU, the real job runs on a made-up device, so that what it makes of the answer is tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources

from lora_autotune.evaluators import compiling, correctness, measuring
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.measuring import Reply, Subject
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.landscape import read_landscape
from lora_autotune.pruning import Standings
from lora_autotune.space import Config
from lora_autotune.task import BETWEEN, Task, Workload
from lora_autotune.trial import Failure, Measurement, Resources
from tests.gpus import H200

JOB_S = 0.003


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the jobs answer, and where they misbehave.

    Attributes:
        files: the landscape of each task.
        compiling: a fault for some candidates, while they compile.
        measuring: the same, while they are measured.
        again: a fault for some tasks, while their finalists are measured again.
        losing: candidates that take twice the default's time on batches that are held out.
        notes: a folder; a fault that happens once leaves a note there.
    """

    files: Mapping[Task, Path]
    notes: Path
    compiling: Mapping[tuple[Task, Config], str] = field(default_factory=dict)
    measuring: Mapping[tuple[Task, Config], str] = field(default_factory=dict)
    again: Mapping[Task, str] = field(default_factory=dict)
    losing: Collection[tuple[Task, Config]] = ()


def get_ready(cache_dir: str) -> None:
    """There is nothing to import for what is played."""


def cannot_get_ready(cache_dir: str) -> None:
    raise ImportError("made up")


def never_ready(cache_dir: str) -> None:
    time.sleep(600)


def describe() -> Gpu:
    return H200


def answer(found: Gpu | str) -> Gpu | str:
    return found


def wait(notes: Path) -> Gpu:
    """Opens the GPU once a test says so."""
    while not (notes / "go").exists():
        time.sleep(0.01)
    return H200


def compile_config(
    plan: Plan, task: Task, workload: Workload, config: Config, kernels: str
) -> Compiled:
    fault = plan.compiling.get((task, config))
    if fault in EXCEPTIONS:
        with mock.patch.object(compiling, "task_launch", _raise(EXCEPTIONS[fault])):
            return compiling.compile_config(task, workload, config, kernels)
    _misbehave(fault, plan)
    time.sleep(JOB_S)
    trial = _recorded(plan.files[task])[config]
    failed = isinstance(trial.outcome, Failure)
    return Compiled(compile_s=0.1, failure=trial.outcome if failed else None)


def measure(plan: Plan, subject: Subject, config: Config, standings: Standings) -> Reply | str:
    fault = plan.measuring.get((subject.task, config))
    if fault in ON_THE_DEVICE:
        with ON_THE_DEVICE[fault]():
            return measuring.measure(subject, config, standings)
    _misbehave(fault, plan)
    time.sleep(JOB_S)
    outcome = _recorded(plan.files[subject.task])[config].outcome
    assert isinstance(outcome, Measurement)
    coarse = False
    for i, time_us in enumerate(outcome.times_us):
        before_us = dict(enumerate(outcome.times_us[:i]))
        coarse = coarse or time_us > standings.limit_us(1.3, before_us, i, subject.workload)
    return Reply(
        outcome=Measurement(times_us=outcome.times_us, coarse=coarse),
        resources=Resources(registers=32, spill_words=0, smem_bytes=1024),
    )


def remeasure(
    plan: Plan, subject: Subject, configs: Sequence[Config], rounds: int
) -> list[list[tuple[float, ...] | Failure]] | str:
    fault = plan.again.get(subject.task)
    if fault in ON_THE_DEVICE:
        with ON_THE_DEVICE[fault]():
            return measuring.remeasure(subject, configs, rounds)
    _misbehave(fault, plan)
    time.sleep(4 * JOB_S)
    if subject.workload == BETWEEN:  # which nothing was recorded of
        lost = [(subject.task, config) in plan.losing for config in configs]
        return [[(1.0 + loses,) * len(BETWEEN)] * rounds for loses in lost]
    recorded = _recorded(plan.files[subject.task])
    return [[recorded[config].outcome.times_us] * rounds for config in configs]


@functools.cache
def _recorded(path: Path) -> Mapping[Config, Any]:
    return read_landscape(path).trials


def _misbehave(fault: str | None, plan: Plan) -> None:
    for step in [] if fault is None else fault.split(", then "):
        if step == "once":
            if (plan.notes / "once").exists():
                return
            (plan.notes / "once").touch()
        else:
            STEPS[step](plan)


def sleep(plan: Plan) -> None:
    time.sleep(600)


def compute(plan: Plan) -> None:
    while True:
        sum(range(10_000))


def compute_a_little(plan: Plan) -> None:
    until_s = time.process_time() + 0.8
    while time.process_time() < until_s:
        sum(range(10_000))


def spawn(plan: Plan) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (plan.notes / f"child-{child.pid}").touch()


def stop(plan: Plan) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill(plan: Plan) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(plan: Plan) -> None:
    ctypes.string_at(0)


def leave(plan: Plan) -> None:
    os._exit(3)


def answer_half(plan: Plan) -> None:
    (connection,) = (thing for thing in gc.get_objects() if isinstance(thing, Connection))
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")


def chatter(plan: Plan) -> None:
    os.write(1, b"chatter\n" * 2000 + b"\xff\xfe\n")
    os.write(2, b"\x1b[31mlast words\n")


STEPS: Mapping[str, Callable[[Plan], None]] = {
    "sleeps": sleep,
    "computes": compute,
    "computes a little": compute_a_little,
    "spawns": spawn,
    "stops": stop,
    "is killed": kill,
    "segfaults": segfault,
    "leaves": leave,
    "answers half": answer_half,
    "chatters": chatter,
}
EXCEPTIONS: Mapping[str | None, BaseException] = {
    "needs too much host memory": MemoryError("no memory\nfor this"),
    "has a bug": KeyError("of the compiler"),
}


def _raise(error: BaseException) -> Callable[..., Any]:
    def raising(*args: object, **named: object) -> None:
        raise error

    return raising


class _Bench:
    """One instance on a made-up device."""

    rotations = 0

    def __init__(self, launch: Callable[..., object]) -> None:
        self._launch = launch

    def schedule(self, config: Config) -> Schedule:
        return Schedule()

    def launches(self, config: Config) -> list[Callable[..., object]]:
        return [self._launch]


def _device(launch: Callable[..., object]) -> Any:
    prepared = measuring._Prepared([_Bench(launch)], torch.Generator().manual_seed(0))
    return mock.patch.multiple(
        measuring, _prepare=lambda subject: prepared, compiled_resources=lambda kernel: (32, 0, 1)
    )


def _crowded_device() -> Any:
    """One whose memory does not even hold the operands."""
    return mock.patch.multiple(
        measuring,
        create=True,
        _gpu=H200,
        make_bench=_raise(torch.OutOfMemoryError("CUDA out of memory. Tried much.\nAdvice")),
    )


@contextlib.contextmanager
def _computing(spoil: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """One that computes the right thing and then spoils it: (output, its rows with an adapter)."""

    def task_launch(task, operands, batch, offsets, config, schedule, *, kernels):
        def launch() -> None:
            x, weights, output = operands.x, operands.weights, operands.output
            if task.kernel == "shrink":
                right = shrink_reference(x, weights, batch, task.S)
            else:
                right = expand_reference(x, weights, batch, offsets, output)
            owed = ~right.isnan()
            output[owed] = right[owed].to(output.dtype)
            spoil(output, owed.any(dim=1).nonzero().flatten())

        return launch

    with _device(lambda: None), mock.patch.object(correctness, "task_launch", task_launch):
        yield


def _spoil_everything(output: torch.Tensor, rows: torch.Tensor) -> None:
    output[rows] *= 1.02


def _spoil_last_row(output: torch.Tensor, rows: torch.Tensor) -> None:
    output[rows[-1], 0] = torch.nan


ON_THE_DEVICE: Mapping[str | None, Callable[[], Any]] = {
    "illegal address": lambda: _device(
        _raise(RuntimeError("CUDA error: an illegal memory access was encountered\nAdvice"))
    ),
    "out of memory": lambda: _device(
        _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nAdvice"))
    ),
    "out of memory to load": lambda: _device(
        _raise(RuntimeError("Triton Error [CUDA]: out of memory"))
    ),
    "out of registers": lambda: _device(_raise(OutOfResources(80_000, 65_536, "registers"))),
    "has a bug on the device": lambda: _device(_raise(KeyError("of ours"))),
    "right result": lambda: _computing(lambda output, rows: None),
    "wrong result": lambda: _computing(_spoil_everything),
    "NaN in the last row": lambda: _computing(_spoil_last_row),
    "too large": _crowded_device,
}
