"""Trials to record, and records of them, written in this process or by another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna

from lora_autotune.evaluator import Platform
from lora_autotune.journal import Journal
from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Resources, Trial

PLATFORM = Platform(device="NVIDIA H200", triton="3.6.0")
TASK = Task(kernel="expand", K=1024, R=64, S=1, chunk_size=16)
WORKLOAD = (replace(DECODE, weight=3.0), PREFILL)
SPACE = named_space("wide", "expand")
DEFAULT = DEFAULT_CONFIGS["expand"]
TRIALS = [
    Trial(config=DEFAULT, outcome=Measurement(times_us=(5.1, 200.7))),
    Trial(
        config=Config(BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=2, maxnreg=96),
        outcome=Measurement(times_us=(0.1 + 0.2, 1e-7), coarse=True),
        compile_s=0.57,
        resources=Resources(registers=96, spill_words=8, smem_bytes=16384),
    ),
    Trial(
        config=Config(BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2),
        outcome=Failure(kind="resources", message='no "room"\n\u00b5\ud800 \x00'),
        compile_s=0.1,
    ),
    Trial(
        config=Config(BLOCK_N=48, BLOCK_K=32, num_warps=4, num_stages=2),  # not in the space
        outcome=Pruned(rule="spills", times_us=(9.0,)),
    ),
]
WRITER = """
import sys
from pathlib import Path
from lora_autotune.journal import Journal
from tests_shared import PLATFORM, SPACE, TASK, WORKLOAD, measured
name, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
record = Journal(Path(name)).open(TASK, WORKLOAD, PLATFORM, space=SPACE, resume=True)
print("ready", flush=True)
sys.stdin.readline()
for number in range(start, start + count):
    record.append(measured(number))
    print(number, flush=True)
"""


def open_record(path: Path, **changes):
    named = {"workload": WORKLOAD, "platform": PLATFORM, "space": SPACE, "task": TASK} | changes
    task, workload, platform = named.pop("task"), named.pop("workload"), named.pop("platform")
    return Journal(path).open(task, workload, platform, **named)


def filled(path: Path) -> Path:
    record = open_record(path)
    for trial in TRIALS:
        record.append(trial)
    return path


def study_of(path: Path):
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=TASK.key, storage=storage)


def writer(folder: Path, path: Path, start: int, count: int) -> subprocess.Popen:
    (folder / "tests_shared.py").write_text(
        "from lora_autotune.evaluator import Platform\n"
        "from lora_autotune.space import Config, named_space\n"
        "from lora_autotune.task import DECODE, PREFILL, Task\n"
        "from lora_autotune.trial import Measurement, Trial\n"
        "from dataclasses import replace\n"
        f"PLATFORM = {PLATFORM!r}\nTASK = {TASK!r}\n"
        "WORKLOAD = (replace(DECODE, weight=3.0), PREFILL)\n"
        "SPACE = named_space('wide', 'expand')\n"
        "def measured(number):\n"
        "    return Trial(config=Config(BLOCK_N=16, BLOCK_K=number + 1),\n"
        "                 outcome=Measurement(times_us=(1.0, number + 1.0)))\n"
    )
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(folder)])}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(start), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen) -> None:
    child.stdin.write("\n")
    child.stdin.flush()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
