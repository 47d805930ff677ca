"""A pipeline whose workers are fakes that finish when a test says so."""

from __future__ import annotations

import math
from multiprocessing import Pipe
from types import SimpleNamespace

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Platform
from lora_autotune.evaluators import bench_jobs
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.cuda import CudaEvaluator
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.pipeline import Pipeline
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.evaluators.worker import Died
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Failure, Measurement
from tests.gpus import H200

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
OTHER = Task(kernel="expand", K=1024, R=64, S=1, chunk_size=16)
WORKLOAD = (DECODE, PREFILL)
DEFAULT = DEFAULT_CONFIGS["shrink"]
A, B, C, D = CONFIGS = [Config(BLOCK_N=n, BLOCK_K=64) for n in (16, 32, 64, 128)]
REFUSED = Failure(kind="compile", message="no")
TIMED_OUT = Died(timed_out=True, message="over its limit")
KILLED = Died(timed_out=False, killed=True, message="the process died: killed by SIGKILL")
CRASHED = Died(timed_out=False, message="the process died: killed by SIGSEGV")
FINE = Compiled(compile_s=0.25)


class Worker:
    """A worker whose job is done when a test says so, or at once where it has an answer ready."""

    remaining_s = 20.0
    overdue = False

    def __init__(self, answer=None) -> None:
        self.connection, self._theirs = Pipe()
        self.busy = False
        self.warm = True
        self.jobs: list = []
        self.replaced = 0
        self._answer = answer

    def submit(self, job, *args, timeout_s, cpu_limit_s=math.inf):
        assert not self.busy
        self.busy = True
        self.jobs.append(SimpleNamespace(name=job.__name__, args=args, cpu_limit_s=cpu_limit_s))
        if self._answer is not None:
            self.finish(self._answer(self.jobs[-1]))

    def finish(self, result) -> None:
        self._theirs.send(result)

    def result(self):
        self.busy = False
        return self.connection.recv()

    def replace(self) -> None:
        self.replaced += 1
        self.busy = False
        while self.connection.poll():
            self.connection.recv()

    @property
    def configs(self) -> list:
        """The config of each job, in turn; those of a contest together."""
        return [job.args[1] if job.name != "compile_config" else job.args[2] for job in self.jobs]


def reply(*times_us: float) -> Reply:
    return Reply(outcome=Measurement(times_us=times_us or (5.0, 200.0)))


class Stage:
    def __init__(self, compilers: int = 1, compiled=None, measured=None) -> None:
        self.bench = Worker(measured)
        self.compilers = [Worker(compiled) for _ in range(compilers)]
        self.pipeline = Pipeline(self.bench, self.compilers)

    @property
    def given(self) -> list:
        """What was given to the compilers, one after the other."""
        return [config for worker in self.compilers for config in worker.configs]

    def lane(self, task=TASK, *, patient=False) -> Lane:
        return Lane(Subject(task=task, workload=WORKLOAD, seed=0, prune=True), patient)

    def submit(self, lane, *configs) -> None:
        for config in configs:
            self.pipeline.submit(lane, config)

    def compiled(self, result=FINE, worker=0) -> None:
        self.compilers[worker].finish(result)
        self.pipeline.pump(0)

    def measured(self, result=None) -> None:
        self.bench.finish(result or reply())
        self.pipeline.pump(0)


def outcomes(lane: Lane) -> dict:
    return {trial.config: trial.outcome for trial in lane.finished}


def automatic(*, compiled=None, contest=None) -> Stage:
    """A stage whose workers answer at once."""
    results = compiled or {}

    def compile_config(job):
        return results.get(job.args[2], FINE)

    def bench(job):
        if job.name == "measure":
            return reply()
        if contest is not None:
            return contest
        _, configs, rounds = job.args
        return [[(float(config.BLOCK_N), 1.0)] * rounds for config in configs]

    return Stage(compilers=2, compiled=compile_config, measured=bench)


def evaluator_of(stage: Stage, lane: Lane | None = None) -> CudaEvaluator:
    machine = SimpleNamespace(
        platform=Platform(device="made up", triton="3.6.0"),
        compilers=stage.compilers,
        gpu=H200,
    )
    return CudaEvaluator(machine, lane or stage.lane(), stage.pipeline)


class Opening(Stage):
    """The bench worker is still at its description of the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []
        self.bench.submit(bench_jobs.describe, timeout_s=60)
        self.pipeline = Pipeline(self.bench, self.compilers, self.found.append)


def refusing(found) -> None:
    raise EvaluatorError(f"not {found}")
