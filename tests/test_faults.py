"""Faults on purpose, in real processes: nothing is lost, nothing is left, the winner is the same.

Real workers, pipeline and tuner; the GPU and the compiler are played by tests/fault_jobs.py.
tests/test_cuda.py does the like with real kernels.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune import cli
from lora_autotune.config_file import merge_config_file, read_config_file
from lora_autotune.config_tree import check_tree
from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, candidate, compiling, driver, pipeline
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.evaluators.torch_build import TorchBuild
from lora_autotune.evaluators.worker import Worker, start_fork_server
from lora_autotune.landscape import Landscape, read_landscape, write_landscape
from lora_autotune.provenance import is_provenance
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace, named_space
from lora_autotune.trial import Failure, Measurement
from lora_autotune.tuner import Job, tune, tune_all
from tests import fault_jobs
from tests.fault_jobs import Plan
from tests.gpus import H200

optuna = pytest.importorskip("optuna")
from lora_autotune.journal import Journal  # noqa: E402

SHIPPED = Path(lora_autotune.__file__).parent / "configs" / "landscapes"
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
    "expand-K6144-R64-S2-chunk16-tokens32",
    "expand-K1024-R64-S1-chunk16-tokens32-30720",
]


def part(name: str, spaces) -> Landscape:
    """A part of a shipped landscape, and the default."""
    whole = read_landscape(SHIPPED / f"{name}.jsonl.gz")
    space = spaces[whole.task.kernel]
    configs = [DEFAULT_CONFIGS[whole.task.kernel], *space]
    return replace(whole, space=space, trials={c: whole.trials[c] for c in configs})


SHRINK, DECODE, EXPAND = LANDSCAPES = [part(name, SPACES) for name in NAMES]
"""Of 12 configs each, all measured."""
FILES = {
    one.task: SHIPPED / f"{name}.jsonl.gz" for one, name in zip(LANDSCAPES, NAMES, strict=True)
}


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
            yield Job(evaluator=evaluator, space=one.space, record=self.records[one.task])

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


class Memory:
    def __init__(self) -> None:
        self.trials: list = []

    def append(self, trial) -> None:
        self.trials.append(trial)


@pytest.fixture
def stage(monkeypatch, tmp_path):
    one = Stage(monkeypatch, tmp_path)
    yield one
    one.check_traces()


def test_without_faults_everything_is_measured_and_the_winners_are_the_replays(stage):
    stage.tune(LANDSCAPES)
    assert all(result.failures == {} for result in stage.results.values())


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("sleeps", "timeout", "while measuring: over its limit of 1.5 s"),
        ("computes", "timeout", "while measuring: over its limit of 1.5 s"),
        ("spawns, then stops", "timeout", "while measuring: over its limit of 1.5 s"),
        ("is killed", "crash", "while measuring: the process died: killed by SIGKILL"),
        ("spawns, then is killed", "crash", "killed by SIGKILL"),
        ("segfaults", "crash", "while measuring: the process died: killed by SIGSEGV"),
        ("spawns, then segfaults", "crash", "killed by SIGSEGV"),
        ("chatters, then segfaults", "crash", "killed by SIGSEGV: \x1b[31mlast words"),
        ("chatters, then leaves", "crash", "exit code 3: \x1b[31mlast words"),
        ("answers half, then leaves", "crash", "exit code 3"),
        ("illegal address", "crash", "CUDA error: an illegal memory access was encountered"),
        ("out of memory", "memory", "CUDA out of memory. Tried to allocate 9 GiB."),
        ("out of registers", "resources", "out of resource: registers"),
        ("wrong result", "wrong", "relative error 0.02"),
        ("NaN in the last row", "wrong", "relative error nan"),
    ],
)
def test_a_fault_while_measuring_is_the_failure_of_its_candidate(
    stage, monkeypatch, capfd, fault, kind, words
):
    if kind == "timeout":
        monkeypatch.setattr(pipeline, "MEASURE_TIMEOUT_S", 1.5)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], workers=1, measuring={(SHRINK.task, config): fault})
    failure = stage.failure(SHRINK.task, config)
    assert failure.kind == kind
    assert words in failure.message
    assert stage.results[SHRINK.task].failures == {kind: 1}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("is killed", "compile", "while compiling: the process died: killed by SIGKILL"),
        (
            "spawns, then segfaults",
            "compile",
            "while compiling: the process died: killed by SIGSEG",
        ),
        ("chatters, then leaves", "compile", "exit code 3: \x1b[31mlast words"),
        ("needs too much host memory", "compile", "MemoryError: no memory for this"),
        ("has a bug", "compile", "KeyError: 'of the compiler'"),
        ("computes", "timeout", "while compiling: over its limit of 1.2 s of computing"),
        ("sleeps", "timeout", "while compiling: over its limit of 1.5 s"),
        ("spawns, then stops", "timeout", "while compiling: over its limit of 1.5 s"),
    ],
)
def test_a_fault_while_compiling_is_the_failure_of_its_candidate(
    stage, monkeypatch, capfd, fault, kind, words
):
    if kind == "timeout":
        monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.4)
        monkeypatch.setattr(candidate, "PATIENT_COMPILE_LIMIT_S", 1.2)
        monkeypatch.setattr(pipeline, "COMPILE_TIMEOUT_S", 1.5 if fault != "computes" else 60.0)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], compiling={(SHRINK.task, config): fault})
    failure = stage.failure(SHRINK.task, config)
    assert failure.kind == kind
    assert words in failure.message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("patient", [True, False])
def test_what_compiles_slowly_is_measured_last_by_a_grid_and_given_up_by_others(
    stage, monkeypatch, patient
):
    monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.4)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], patient=patient, compiling={(SHRINK.task, config): "computes a little"})
    trials = {trial.config: trial for trial in stage.records[SHRINK.task].trials}
    if patient:
        assert list(trials)[-1] == config
        assert isinstance(trials[config].outcome, Measurement)
    else:
        failure = stage.failure(SHRINK.task, config)
        assert failure.kind == "timeout"
        assert "0.4 s of computing" in failure.message
        assert trials[config].compile_s == 0.4


def test_chatter_and_children_of_a_good_candidate_are_neither_seen_nor_left(stage, capfd):
    config = losers(SHRINK)[0]
    fault = {(SHRINK.task, config): "chatters, then spawns"}
    stage.tune([SHRINK], compiling=fault, measuring=fault)
    assert len(list(stage.notes.glob("child-*"))) == 2
    assert stage.results[SHRINK.task].failures == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["compiling", "measuring", "again"])
def test_a_worker_that_somebody_kills_costs_nobody_anything(stage, where):
    winner = WINNERS[SHRINK.task]
    for victim in [winner, DEFAULT_CONFIGS["shrink"]]:
        key = SHRINK.task if where == "again" else (SHRINK.task, victim)
        stage.tune([SHRINK], workers=1, **{where: {key: "once, then is killed"}})
        assert (stage.notes / "once").exists()
        (stage.notes / "once").unlink()
        assert stage.results[SHRINK.task].failures == {}
        stage.check_books([SHRINK], {})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("is killed", "crash"),
        ("sleeps", "timeout"),
        ("illegal address", "crash"),
    ],
)
def test_where_finalists_cannot_be_measured_again_the_default_stands(
    stage, monkeypatch, fault, words
):
    monkeypatch.setattr(pipeline, "REMEASURE_TIMEOUT_S", 1.5)
    monkeypatch.setitem(WINNERS, SHRINK.task, DEFAULT_CONFIGS["shrink"])
    stage.tune([SHRINK, DECODE], again={SHRINK.task: fault})
    selection = stage.results[SHRINK.task].selection
    assert not selection.tuned
    assert selection.reason == (
        f"the default stands: the default failed when it was measured again ({words})"
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "too large",
            "the workload does not fit the GPU's memory: CUDA out of memory. Tried much.",
        ),
        ("has a bug on the device", "a worker's job failed unexpectedly"),
    ],
)
def test_where_nothing_can_be_measured_it_is_one_clear_error(stage, fault, words):
    stage.play(measuring={(SHRINK.task, DEFAULT_CONFIGS["shrink"]): fault})
    with (
        pytest.raises(EvaluatorError) as caught,
        CudaMachine(compile_workers=2) as machine,
    ):
        list(tune_all(stage.jobs(machine, LANDSCAPES), strategy="grid"))
    assert words in str(caught.value)
    if fault == "too large":
        (line,) = str(caught.value).splitlines()
        assert str(SHRINK.task) in line
        assert "--tokens" in line
    stage.check_traces()


def test_faults_of_three_tasks_at_once_stay_with_their_candidates(stage, monkeypatch):
    monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.5)
    monkeypatch.setattr(candidate, "PATIENT_COMPILE_LIMIT_S", 0.7)
    monkeypatch.setattr(pipeline, "MEASURE_TIMEOUT_S", 1.5)
    kinds = {}
    faults = {"compiling": {}, "measuring": {}}
    for landscape, first in zip(LANDSCAPES, [0, 1, 2], strict=True):
        measured = ["illegal address", "is killed", "NaN in the last row", "spawns, then segfaults"]
        compiled = ["spawns, then segfaults", "has a bug"]
        if first == 0:
            measured[0], compiled[1] = "sleeps", "computes"
        chosen = iter(losers(landscape)[first:])
        for where, names in (("measuring", measured), ("compiling", compiled)):
            for name, config in zip(names, chosen, strict=False):
                faults[where][landscape.task, config] = name
                kinds[landscape.task, config] = {
                    "sleeps": "timeout",
                    "computes": "timeout",
                    "NaN in the last row": "wrong",
                }.get(name, "crash" if where == "measuring" else "compile")
    stage.tune(LANDSCAPES, **faults)
    for (task, config), kind in kinds.items():
        assert stage.failure(task, config).kind == kind
    assert sum(sum(r.failures.values()) for r in stage.results.values()) == len(kinds) == 18


def play_the_driver(monkeypatch, named, opened, *, cuda="13.0") -> None:
    """A driver that names a GPU at once, and a torch that says later what it opens."""
    monkeypatch.setattr(driver, "first_gpu", functools.partial(fault_jobs.answer, named))
    monkeypatch.setattr(bench_jobs, "describe", opened)
    built = TorchBuild(version="2.11.0", cuda=cuda)
    monkeypatch.setattr("lora_autotune.evaluators.cuda.torch_build", lambda: built)


def test_compilers_work_before_the_bench_worker_has_opened_the_gpu(stage, monkeypatch):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.wait, stage.notes))
    stage.play()
    with CudaMachine(compile_workers=1) as machine:
        assert machine.platform.torch == "2.11.0"
        evaluator = machine.evaluator(SHRINK.task, SHRINK.workload)
        for config in SHRINK.space:
            evaluator.submit(config)
        while len(evaluator._lane.compiled) < len(SHRINK.space):
            assert evaluator.poll(20) is None
        (stage.notes / "go").touch()
        trials = [evaluator.collect() for _ in SHRINK.space]
    assert {trial.config for trial in trials} == set(SHRINK.space)


@pytest.mark.parametrize("other", [{}, {"multiprocessors": 16}, {"smem_bytes": 101_376}])
def test_the_winner_is_the_same_where_the_driver_named_another_gpu(stage, monkeypatch, other):
    opened = functools.partial(fault_jobs.answer, H200)
    play_the_driver(monkeypatch, replace(H200, **other), opened)
    seen = []
    stage.tune([SHRINK], watch=lambda machine, progress: seen.append(machine.gpu))
    assert stage.results[SHRINK.task].failures == {}
    assert seen[-1] == H200


@pytest.mark.parametrize(
    ("opened", "words"),
    [
        ("torch 2.11.0 sees no CUDA device", "no CUDA device to tune on: torch 2.11.0 sees no"),
        (replace(H200, name="NVIDIA L4"), "torch opens a NVIDIA L4, and the driver's first"),
    ],
)
def test_a_gpu_that_torch_does_not_open_is_one_clear_error(stage, monkeypatch, opened, words):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.answer, opened))
    stage.play()
    with CudaMachine(compile_workers=1) as machine:
        for landscape in [SHRINK, DECODE]:  # what is tuned next is not measured either
            with pytest.raises(EvaluatorError) as caught:
                list(tune_all(stage.jobs(machine, [landscape]), strategy="grid"))
            (line,) = str(caught.value).splitlines()
            assert words in line
    assert all(record.trials == [] for record in stage.records.values())


def test_a_torch_without_cuda_is_an_error_at_once(stage, monkeypatch):
    opened = functools.partial(fault_jobs.answer, "torch 2.11.0 has no CUDA in it")
    play_the_driver(monkeypatch, H200, opened, cuda=None)
    with pytest.raises(EvaluatorError, match="has no CUDA in it"):
        CudaMachine(compile_workers=1)


def test_a_run_that_opens_no_gpu_leaves_an_earlier_record_where_it_is(
    stage, monkeypatch, tmp_path, capsys
):
    play_the_driver(monkeypatch, H200, functools.partial(fault_jobs.answer, "torch sees none"))
    monkeypatch.setattr("lora_autotune.evaluators.cores.compile_workers", lambda: 1)
    stage.play()
    waited = []
    wait_until_open = CudaMachine.wait_until_open
    monkeypatch.setattr(
        CudaMachine, "wait_until_open", lambda self: waited.append(1) or wait_until_open(self)
    )
    words = ["tune", "--out", str(tmp_path / "out"), "--trials", "3"]
    task = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64", "--chunk-sizes", "64"]
    record = tmp_path / "out" / "tune.journal"

    assert cli.main([*words, *task]) == 1  # none is there: nobody waits before compiling begins
    assert "torch sees none" in capsys.readouterr().err
    assert waited == []
    record.unlink()

    assert cli.main([*words, "--replay", str(FILES[SHRINK.task])]) == 0
    before = record.read_bytes()
    capsys.readouterr()
    assert cli.main([*words, *task]) == 1
    assert "torch sees none" in capsys.readouterr().err
    assert waited == [1]
    assert record.read_bytes() == before
    assert not record.with_name("tune-1.journal").exists()


@pytest.mark.parametrize("started", range(4))
def test_ctrl_c_while_a_machine_starts_leaves_nothing(stage, monkeypatch, started):
    play_the_driver(monkeypatch, H200, fault_jobs.describe)
    left = iter(range(started))  # the bench worker, the driver's, and compilers
    start = Worker._start

    def interrupted(worker, *ready) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        start(worker, *ready)

    monkeypatch.setattr(Worker, "_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CudaMachine(compile_workers=3)
    stage.check_traces()


def test_an_error_while_a_machine_starts_leaves_nothing(stage, monkeypatch):
    monkeypatch.setattr(driver, "first_gpu", functools.partial(fault_jobs.answer, None))
    monkeypatch.setattr(bench_jobs, "describe", functools.partial(fault_jobs.answer, "none here"))
    with pytest.raises(EvaluatorError, match="none here"):
        CudaMachine()
    stage.check_traces()


class Killer:
    """Kills workers at random moments, but none before the last death was noticed and made good:
    a candidate that is hit twice is out, and so is a machine whose start is."""

    def __init__(self, seed: int) -> None:
        self.killed: list[int] = []
        self._random = random.Random(seed)
        self._due = self._random.randrange(4)
        self._threads: list[threading.Timer] = []

    def watch(self, machine: CudaMachine, progress) -> None:
        self._due -= 1
        way, workers = machine._pipeline, [machine.bench, *machine.compilers]
        jobs = [*way._waiting, *way._compiling.values(), *way._compiled, way._on_bench]
        hit = any(job is not None and job.killed for job in jobs)
        unnoticed = {worker._process.pid for worker in workers} & set(self.killed)
        busy = any(thread.is_alive() for thread in self._threads)
        if self._due < 0 and not (hit or unnoticed or busy or way._failed_starts):
            self._due = self._random.randrange(4)
            worker = self._random.choice([machine.bench, *workers])
            delay_s = self._random.uniform(0, 0.01)
            self._threads.append(threading.Timer(delay_s, self._kill, [worker._process.pid]))
            self._threads[-1].start()

    def _kill(self, pid: int) -> None:
        self.killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_from_outside_at_random_moments_cost_nobody_anything(stage, seed):
    killer = Killer(seed)
    stage.tune(LANDSCAPES, watch=killer.watch, before_closing=killer.join)
    assert len(killer.killed) >= 2
    assert all(result.failures == {} for result in stage.results.values())


MACHINE = """
import sys, tempfile
from pathlib import Path
from lora_autotune.evaluators import bench_jobs
from lora_autotune.evaluators.cuda import CudaMachine
from tests import fault_jobs
tempfile.tempdir = sys.argv[1]
bench_jobs.describe = fault_jobs.describe
plan = fault_jobs.Plan(files={}, notes=Path(sys.argv[1]))
machine = CudaMachine(compile_workers=2)
workers = [machine.bench, *machine.compilers]
for worker in workers[1:]:
    worker.submit(fault_jobs.compute, plan, timeout_s=600)
machine.bench.submit(fault_jobs.sleep, plan, timeout_s=600)
from multiprocessing import forkserver
server = forkserver._forkserver._forkserver_pid
print(server, *(worker._process.pid for worker in workers), flush=True)
sys.stdin.read()
"""


def test_the_workers_of_a_tuner_that_is_killed_die_with_it(tmp_path):
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    tuner = subprocess.Popen(
        [sys.executable, "-c", MACHINE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    pids = {int(word) for word in tuner.stdout.readline().split()}
    assert len(pids) == 4
    assert pids <= set(processes())
    tuner.kill()
    wait_until(lambda: not pids & set(processes()), "workers are left")
    tuner.communicate()


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


@pytest.mark.parametrize(("strategy", "seed"), [("grid", 1), ("tpe", 2)])
def test_a_tuner_killed_at_twenty_random_moments_goes_on_to_the_same_winners(
    tmp_path, strategy, seed
):
    rng = random.Random(seed)
    count, most_events = {"grid": (2, 15), "tpe": (1, 8)}[strategy]
    landscapes = [part(name, LARGER_SPACES) for name in NAMES[:count]]
    expected = winners(landscapes)
    with Tuner(tmp_path, landscapes, strategy=strategy, delay_s=0.003) as tuner:
        name = next(iter(expected))
        file = tuner.out / "csgmv_configs" / "triton_3_6_0" / name
        merge_config_file(file, {128: {"BLOCK_N": 16, "BLOCK_K": 64}})
        before = tuner.tables()
        for _ in range(20):
            moment = tuner.events() + rng.randrange(most_events)
            pid = tuner.start()
            deadline_s = time.monotonic() + 5
            while tuner.events() < moment and time.monotonic() < deadline_s:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            assert tuner.end()[0] == -signal.SIGKILL
            recorded = tuner.recorded()
            assert set(tuner.acknowledged()) <= set(recorded)
            assert max(Counter(recorded).values(), default=1) == 1
            assert tuner.tables() == before
            if rng.random() < 0.3:
                with tuner.journal.open("a") as journal:
                    journal.write('{"op_code": 4, "worker_id": "to')
        assert tuner.acknowledged()
        assert tuner.run()[0] == 0
        assert Counter(tuner.recorded()) == tuner.all_trials()
        expected[name][128] = {"BLOCK_N": 16, "BLOCK_K": 64}
        assert tuner.tables() == expected


def test_a_tuner_killed_while_it_chooses_and_writes_leaves_whole_files(tmp_path):
    expected = winners(LANDSCAPES)
    with Tuner(tmp_path, LANDSCAPES, delay_s=0.003) as tuner:
        assert tuner.run()[0] == 0
        for path in tuner.out.rglob("*.json"):
            path.unlink()
        for events in range(12):
            moment = tuner.events() + events
            pid = tuner.start()
            wait_until(lambda moment=moment: tuner.events() >= moment)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
            tuner.end()
            assert tuner.tables().items() <= expected.items()
        assert tuner.run()[0] == 0
        assert tuner.tables() == expected
        assert Counter(tuner.recorded()) == tuner.all_trials()


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_a_full_disk_while_recording_is_one_line_and_loses_nothing(tmp_path, share):
    whole_folder, folder = tmp_path / "whole", tmp_path / "small"
    whole_folder.mkdir()
    folder.mkdir()
    with Tuner(whole_folder, LANDSCAPES, delay_s=0.0) as tuner:
        assert tuner.run()[0] == 0
        most_bytes = int(share * tuner.journal.stat().st_size)
    with Tuner(folder, LANDSCAPES, delay_s=0.0) as tuner:
        status, printed = tuner.run(most_bytes=most_bytes)
        assert status == 1
        assert printed.splitlines()[-1] == (
            f"lora-autotune: error: {tuner.journal} cannot be used: File too large"
            " (name another --journal)"
        )
        assert "Traceback" not in printed
        assert tuner.tables() == {}
        assert tuner.journal.stat().st_size <= most_bytes
        assert Counter(tuner.acknowledged()) == Counter(tuner.recorded())
        assert tuner.run()[0] == 0
        assert Counter(tuner.recorded()) == tuner.all_trials()
        assert tuner.tables() == winners(LANDSCAPES)


def test_a_full_disk_while_writing_leaves_the_file_as_it_was(tmp_path):
    with Tuner(tmp_path, [SHRINK], delay_s=0.0) as tuner:
        assert tuner.run()[0] == 0
        before = tuner.tables()
        status, printed = tuner.run(most_bytes=20)
        assert status == 1
        assert printed.splitlines()[-1].endswith(
            "cannot be written: File too large (choose another folder with --out)"
        )
        assert tuner.tables() == before
        assert [path.name for path in tuner.out.rglob(".*~")] == []


def test_two_tuners_of_different_tasks_share_a_record_and_a_file(tmp_path):
    other = replace(SHRINK, task=replace(SHRINK.task, chunk_size=16))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with Tuner(folders[0], [SHRINK]) as one, Tuner(folders[1], [other, DECODE]) as two:
        shared = ["--journal", str(one.journal), "--out", str(one.out)]
        one.start(words=[])
        two.start(words=shared)
        assert [one.end()[0], two.end()[0]] == [0, 0]
        two.journal, two.out = one.journal, one.out
        for tuner in (one, two):
            assert Counter(tuner.recorded()) == tuner.all_trials()
            assert Counter(tuner.acknowledged()) == tuner.all_trials()
        assert one.tables() == winners([SHRINK, other, DECODE])


@pytest.mark.parametrize("killed", [False, True])
def test_two_tuners_of_the_same_task_lose_no_trial(tmp_path, killed):
    with Tuner(tmp_path, [SHRINK, EXPAND]) as one, Tuner(tmp_path, [SHRINK, EXPAND]) as two:
        pid = one.start()
        two.start()
        if killed:
            wait_until(lambda: one.events() >= 6)
            os.kill(pid, signal.SIGKILL)
        statuses = [one.end()[0], two.end()[0]]
        assert statuses == [-signal.SIGKILL if killed else 0, 0]
        recorded = Counter(one.recorded())
        assert set(recorded) == set(one.all_trials())
        assert not Counter(one.acknowledged()) + Counter(two.acknowledged()) - recorded
        assert one.run()[0] == 0  # finds everything, and measures nothing again
        assert Counter(one.recorded()) == recorded
        assert one.tables() == winners([SHRINK, EXPAND])
