"""Where faults happen on purpose: real workers, pipeline and tuner, in real processes.

The GPU and the compiler are played by tests/fault_jobs.py. tests/test_cuda.py does the like with
real kernels.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.config_file import read_config_file
from lora_autotune.config_tree import check_tree
from lora_autotune.evaluators import bench_jobs, compiling
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.evaluators.worker import Worker, start_fork_server
from lora_autotune.job import Job
from lora_autotune.landscape import Landscape, read_landscape, write_landscape
from lora_autotune.provenance import is_provenance
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace, named_space
from lora_autotune.trial import Failure, Measurement
from lora_autotune.tuner import tune, tune_all
from tests import fault_jobs
from tests.fault_jobs import Plan
from tests.gpus import H200
from tests.search_doubles import Memory

optuna = pytest.importorskip("optuna")
from lora_autotune.journal import Journal  # noqa: E402

FOLDERS = (
    Path(__file__).parent / "stage_landscapes",
    Path(__file__).parent / "landscapes",
)
SPACES = {
    "shrink": SearchSpace(
        {"BLOCK_N": (16, 32, 64), "BLOCK_K": (64, 128), "num_warps": (4,), "num_stages": (2, 3)}
    ),
    "expand": SearchSpace(
        {
            "BLOCK_N": (32, 64, 128),
            "BLOCK_K": (32, 64),
            "num_warps": (4,),
            "num_stages": (2,),
            "maxnreg": (None, 128),
        }
    ),
}


LARGER_SPACES = {
    "shrink": named_space("reference", "shrink"),
    "expand": SearchSpace({**named_space("wide", "expand").axes, "num_stages": (2,)}),
}
NAMES = [
    "shrink-K1024-R64-S3-chunk64-tokens30720",
    "expand-K6144-R64-S2-chunk16-decode",
    "expand-K1024-R64-S1-chunk16-tokens32-30720",
]


def recorded(name: str) -> Path:
    (file,) = (file for folder in FOLDERS if (file := folder / f"{name}.jsonl.gz").exists())
    return file


def part(name: str, spaces) -> Landscape:
    """A part of a recorded landscape, and the default; all as if recorded on one GPU."""
    whole = read_landscape(recorded(name))
    space = spaces[whole.task.kernel]
    configs = [DEFAULT_CONFIGS[whole.task.kernel], *space]
    trials = {config: whole.trials[config] for config in configs}
    platform = replace(whole.platform, device=H200.name)
    return replace(whole, space=space, trials=trials, platform=platform)


SHRINK, DECODE, EXPAND = LANDSCAPES = [part(name, SPACES) for name in NAMES]
"""Of 12 configs each, all measured."""
FILES = {one.task: recorded(name) for one, name in zip(LANDSCAPES, NAMES, strict=True)}


def undisturbed(landscape: Landscape):
    return tune(
        landscape.task,
        evaluator=ReplayEvaluator(landscape),
        space=landscape.space,
        strategy="grid",
    )


WINNERS = {one.task: undisturbed(one).selection.config for one in LANDSCAPES}


def losers(landscape: Landscape) -> list:
    """The configs that do not win, the fastest first: the faults hit finalists."""
    configs = [c for c in landscape.space if c != WINNERS[landscape.task]]
    return sorted(configs, key=landscape.cost)


def processes() -> dict[int, tuple[str, int]]:
    """Process id -> its state and its process group, of all that are not just waited for."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(stat.parent.name)] = (fields[0], int(fields[2]))
    return found


def wait_until(condition, message: str = "") -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, message
        time.sleep(0.01)


class Stage:
    """A CUDA machine whose jobs are played, and what was tuned on it."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self.notes = folder / "notes"
        self.temporary = folder / "temporary"
        self.notes.mkdir()
        self.temporary.mkdir()
        start_fork_server()  # its socket is no temporary file of ours
        monkeypatch.setattr("tempfile.tempdir", str(self.temporary))
        monkeypatch.setattr(bench_jobs, "get_ready", fault_jobs.get_ready)
        monkeypatch.setattr(bench_jobs, "describe", fault_jobs.describe)
        self.groups: set[int] = set()
        start = Worker._start

        def starting(worker, *ready) -> None:
            start(worker, *ready)
            self.groups.add(worker._process.pid)

        monkeypatch.setattr(Worker, "_start", starting)
        self.records: dict = {}
        self.results: dict = {}

    def play(self, **faults) -> None:
        plan = Plan(files=FILES, notes=self.notes, **faults)
        for module, names in (
            (compiling, ["compile_config"]),
            (bench_jobs, ["measure", "remeasure"]),
        ):
            for name in names:
                job = functools.partial(getattr(fault_jobs, name), plan)
                self._monkeypatch.setattr(module, name, job)

    def jobs(self, machine, landscapes, patient=True):
        for one in landscapes:
            evaluator = machine.evaluator(one.task, one.workload, patient=patient)
            self.records[one.task] = Memory()
            yield Job(
                evaluator=evaluator,
                held_out=machine.held_out(one.task, one.workload),
                space=one.space,
                record=self.records[one.task],
            )

    def tune(
        self, landscapes, *, workers=2, patient=True, watch=None, before_closing=None, **faults
    ):
        """Tune the landscapes at once under some faults, check the books, and leave no trace."""
        self.play(**faults)
        with CudaMachine(compile_workers=workers) as machine:
            progress = None if watch is None else functools.partial(watch, machine)
            jobs = self.jobs(machine, landscapes, patient)
            for result in tune_all(jobs, strategy="grid", on_progress=progress):
                self.results[result.task] = result
            if before_closing is not None:
                before_closing()
        self.check_books(landscapes, faults)
        self.check_traces()

    def check_books(self, landscapes, faults) -> None:
        faulty = {*faults.get("compiling", {}), *faults.get("measuring", {})}
        for one in landscapes:
            assert self.results[one.task].selection.config == WINNERS[one.task]
            trials = self.records[one.task].trials
            assert Counter(t.config for t in trials) == dict.fromkeys(one.trials, 1)
            for trial in trials:
                if (one.task, trial.config) not in faulty:
                    assert isinstance(trial.outcome, Measurement)
                    assert trial.outcome.times_us == one.trials[trial.config].outcome.times_us

    def check_traces(self) -> None:
        """No process of ours, none of its group, and no file of it is left."""
        left = [pid for pid, (_, group) in processes().items() if {pid, group} & self.groups]
        assert left == []
        assert list(self.temporary.iterdir()) == []

    def failure(self, task, config) -> Failure:
        (outcome,) = (t.outcome for t in self.records[task].trials if t.config == config)
        assert isinstance(outcome, Failure)
        assert outcome.message
        assert len(outcome.message.splitlines()) == 1
        return outcome


TUNER = """
import contextlib, json, os, resource, sys, time
from lora_autotune import chunk_file, cli, journal
from lora_autotune.cli import tuning
from lora_autotune.evaluators import replay
from lora_autotune.strategies import grid, tpe

delay_s = float(sys.argv[1])

def watch(owner, name, describe):
    real = getattr(owner, name)
    def watched(*args, **named):
        time.sleep(delay_s)
        answer = real(*args, **named)
        with contextlib.suppress(OSError):  # the disk is full
            os.write(said, (json.dumps(describe(*args)) + "\\n").encode())
        return answer
    setattr(owner, name, watched)

watch(journal.TaskRecord, "append", lambda self, t: [self._study.study_name, t.config.as_dict()])
watch(replay.ReplayEvaluator, "remeasure", lambda self, configs: "finalists")
watch(chunk_file.Path, "replace", lambda self, path: "file")
watch(chunk_file.os, "fsync", lambda descriptor: "on the disk")

for line in sys.stdin:
    order = json.loads(line)
    said = os.open(order["said"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        if order["most_bytes"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"],) * 2)
        code = cli.main(order["words"])
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    os.close(said)
    print(pid, flush=True)
    with open(read, "rb") as printed:
        text = printed.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([status, text]), flush=True)
"""
"""Runs the command in fresh processes, forked from one that has imported everything: twenty deaths
cost no twenty imports. Each says what it has done, once it is done, in a file."""


class Tuner:
    """Runs of ``lora-autotune tune --replay`` over landscapes, one after the other."""

    def __init__(self, folder: Path, landscapes, *, strategy="grid", delay_s=0.001) -> None:
        self.out = folder / "out"
        self.journal = folder / "tune.journal"
        self.said = folder / f"said-{id(self)}"
        self.said.touch()
        self.landscapes = landscapes
        files = []
        for number, one in enumerate(landscapes):
            files.append(str(folder / f"{number}.jsonl"))
            write_landscape(Path(files[-1]), one)
        self.words = ["tune", "--replay", *files, "--strategy", strategy, "--out", str(self.out)]
        self.words += ["--trials", str(max(len(one.trials) for one in landscapes))]
        self.words += ["--journal", str(self.journal)]
        self._server = subprocess.Popen(
            [sys.executable, "-c", TUNER, str(delay_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def start(self, *, most_bytes: int = 0, words=("--resume",)) -> int:
        order = {"words": [*self.words, *words], "said": str(self.said), "most_bytes": most_bytes}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def end(self) -> tuple[int, str]:
        """The exit status of the run, negative for a signal, and what it printed."""
        status, text = json.loads(self._server.stdout.readline())
        return status, text

    def run(self, **options) -> tuple[int, str]:
        self.start(**options)
        return self.end()

    def events(self) -> int:
        return self.said.read_bytes().count(b"\n")

    def acknowledged(self) -> list:
        """(task, config) of every trial that a run said was recorded."""
        lines = map(json.loads, self.said.read_text().splitlines())
        return [(line[0], tuple(line[1].items())) for line in lines if isinstance(line, list)]

    def recorded(self) -> list:
        with Journal(self.journal) as journal:
            return [
                (one.task.key, tuple(trial.config.as_dict().items()))
                for one in self.landscapes
                for trial in journal.open(
                    one.task,
                    one.workload,
                    one.platform,
                    space=one.space,
                    replayed=True,
                    resume=True,
                ).trials
            ]

    def all_trials(self) -> Counter:
        pairs = ((one.task.key, c.as_dict()) for one in self.landscapes for c in one.trials)
        return Counter((key, tuple(values.items())) for key, values in pairs)

    def tables(self) -> dict:
        """What is in the config files, which are valid at every moment."""
        if self.out.exists():
            assert [wrong for _, wrong in check_tree(self.out) if wrong] == []
        files = [path for path in self.out.rglob("*.json") if not is_provenance(path)]
        return {path.name: read_config_file(path) for path in files}

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        assert self._server.wait() == 0

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def winners(landscapes) -> dict:
    """The config files of an undisturbed run."""
    tables: dict = {}
    for one in landscapes:
        task = one.task
        name = f"lora_{task.kernel},K={task.K},R={task.R},S={task.S},device=NVIDIA_H200.json"
        config = undisturbed(one).selection.config
        tables.setdefault(name, {})[task.chunk_size] = config.as_dict()
    return tables
