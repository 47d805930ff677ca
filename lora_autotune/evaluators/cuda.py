"""The real evaluator: a pool of compile workers feeds one bench worker on the GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from types import TracebackType

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Platform
from lora_autotune.evaluators import bench_jobs, compiling, cores, driver
from lora_autotune.evaluators.bounds import foretold_defeat, foretold_failure
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.head_start import take_bench
from lora_autotune.evaluators.held_out import CudaHeldOut
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.pipeline import SETUP_TIMEOUT_S, Pipeline
from lora_autotune.evaluators.subject import Subject
from lora_autotune.evaluators.torch_build import torch_build
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.launcher import launcher
from lora_autotune.space import Config
from lora_autotune.task import Task, Workload, held_out_workload
from lora_autotune.trial import Failure, Trial

DRIVER_TIMEOUT_S = 30.0
"""How long the driver may take to name its first device; then torch is waited for."""


class CudaMachine:
    """This machine's GPU and compilers, kept warm from task to task. A context manager.

    It compiles for the GPU that the driver names while the bench worker still imports torch and
    opens it. Where the driver names none, or torch has no CUDA in it, the bench worker comes first.

    Args:
        compile_workers: how many processes compile; None: what suits this machine.
        kernels: the set that is tuned: "builtin", or "sglang" for those that are installed.

    Attributes:
        gpu: the device.
        platform: what measurements made here are labelled with.

    Raises:
        EvaluatorError: no CUDA device, no torch and triton that can use it, or no such kernels.
            Where it is the bench worker that cannot open the device, evaluators raise it, always.
    """

    def __init__(self, *, compile_workers: int | None = None, kernels: str = BUILTIN) -> None:
        launched, torch = launcher(kernels), torch_build()
        self.compilers: list[Worker] = []
        with contextlib.ExitStack() as stack:  # where something fails, nothing is left
            bench = take_bench()
            stack.callback(bench.close)
            self._bench, self._cache_dir = bench.worker, bench.cache_dir
            stack.callback(self._end_compilers)
            self._bench.submit(bench_jobs.describe, timeout_s=SETUP_TIMEOUT_S)
            with contextlib.closing(Worker()) as probe:
                probe.submit(driver.first_gpu, timeout_s=DRIVER_TIMEOUT_S)
                version = launched.version  # while the driver answers
                found, driver_version = _answers(probe)
            if found is None or torch.cuda is None:
                found = self._bench.result()
            if not isinstance(found, Gpu):
                raise _no_device(found)
            self.gpu = found
            self.platform = Platform(
                device=found.name,
                triton=found.triton,
                kernels=launched.name,
                kernels_version=version,
                driver=driver_version,
                torch=torch.version,
            )
            self._start_compilers(compile_workers or cores.compile_workers())
            self._pipeline = Pipeline(self._bench, self.compilers, self._opened)
            self._stack = stack.pop_all()

    @property
    def bench(self) -> Worker:
        """The worker that measures, once it has opened the GPU."""
        self.wait_until_open()
        return self._bench

    def wait_until_open(self) -> None:
        """Wait until the bench worker has opened the GPU; raises EvaluatorError if it cannot."""
        self._pipeline.wait_until_open()

    def _start_compilers(self, count: int) -> None:
        for _ in range(count):
            self.compilers.append(Worker(compiling.set_up, self.gpu, self._cache_dir))

    def _opened(self, found: Gpu | str | Died) -> None:
        """Compile anew if the GPU is not quite what the driver told: what is measured counts."""
        if not isinstance(found, Gpu):
            raise _no_device(found)
        if found.name != self.gpu.name:
            raise EvaluatorError(
                f"torch opens a {found.name}, and the driver's first device is a {self.gpu.name}",
                hint="let CUDA_VISIBLE_DEVICES name the one to tune on",
            )
        if found != self.gpu:
            self.gpu = found
            count = len(self.compilers)
            for worker in self.compilers:
                worker.close()
            self.compilers = []
            self._start_compilers(count)
            self._pipeline.compile_anew(self.compilers)

    def __enter__(self) -> CudaMachine:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker and remove what they compiled."""
        self._stack.close()

    def _end_compilers(self) -> None:
        for worker in self.compilers:
            worker.kill()
        for worker in self.compilers:
            worker.close()

    def evaluator(
        self,
        task: Task,
        workload: Workload,
        *,
        prune: bool = True,
        patient: bool = False,
        seed: int = 0,
    ) -> CudaEvaluator:
        """An evaluator of one task; any number of them share the machine.

        Args:
            task: what is evaluated.
            workload: the batches it is timed on.
            prune: drop hopeless candidates early; False measures every one in full.
            patient: measure candidates that compile slowly too, after all others.
            seed: of the random operands.
        """
        subject = Subject(
            task=task, workload=workload, seed=seed, prune=prune, kernels=self.platform.kernels
        )
        return CudaEvaluator(self, Lane(subject, patient), self._pipeline)

    def held_out(self, task: Task, workload: Workload, *, seed: int = 0) -> CudaHeldOut | None:
        """What measures a task's winner on batches that it was not tuned on; None: there are none.

        See :func:`lora_autotune.task.held_out_workload`.
        """
        held_out = held_out_workload(workload, task.chunk_size)
        if not held_out:
            return None
        subject = Subject(
            task=task, workload=held_out, seed=seed, prune=True, kernels=self.platform.kernels
        )
        return CudaHeldOut(subject, self._pipeline)


def _answers(probe: Worker) -> tuple[Gpu | None, str | None]:
    """The driver's first device, which was asked for, and its version."""
    gpu = probe.result()
    if isinstance(gpu, Died):
        return None, None
    version = probe.call(driver.driver_version, timeout_s=DRIVER_TIMEOUT_S)
    return gpu, None if isinstance(version, Died) else version


def _no_device(found: str | Died) -> EvaluatorError:
    reason = found.message if isinstance(found, Died) else found
    return EvaluatorError(
        f"no CUDA device to tune on: {reason}",
        hint="--replay searches recorded measurements without a GPU",
    )


class CudaEvaluator:
    """Evaluates one task on this machine's GPU; see :class:`lora_autotune.evaluator.Evaluator`."""

    replayed = False

    def __init__(self, machine: CudaMachine, lane: Lane, pipeline: Pipeline) -> None:
        self.task = lane.subject.task
        self.workload = lane.subject.workload
        self.platform = machine.platform
        self.capacity = len(machine.compilers) + 4
        self._machine = machine
        self._lane = lane
        self._pipeline = pipeline

    def submit(self, config: Config, /) -> None:
        """Hand over a config to evaluate; returns at once."""
        self._pipeline.check()
        failure = None
        if self.platform.kernels == BUILTIN:  # the rules are not known to hold for others
            gpu = self._machine.gpu
            failure = foretold_failure(self.task, config, gpu)
            if failure is None and not self._lane.patient:
                failure = foretold_defeat(self.task, self.workload, config, gpu)
        if failure is None:
            default = self._lane.default
            if config != default:  # a record knows its time, but not how long it compiles here
                self._pipeline.prepare(self._lane, [default])
            self._pipeline.submit(self._lane, config)
        else:
            self._lane.finished.append(Trial(config=config, outcome=failure, foretold=True))

    def collect(self) -> Trial:
        """The next finished trial; blocks until there is one."""
        while (trial := self.poll(math.inf)) is None:
            if self._lane.in_flight == 0:
                raise EvaluatorError("nothing was submitted")
        return trial

    def poll(self, wait_s: float, /) -> Trial | None:
        """The next finished trial; waits for at most one event of the machine."""
        self._pipeline.check()
        if wait_s > 0 and not self._lane.finished and self._lane.in_flight > 0:
            self._pipeline.pump(wait_s)
        if self._lane.trouble is not None:
            raise EvaluatorError(
                f"{self.task}: {self._lane.trouble}", hint="tune on fewer --tokens"
            )
        return self._lane.finished.popleft() if self._lane.finished else None

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """Time configs against each other, interleaved."""
        return self._pipeline.remeasure(self._lane, configs, rounds)

    def close(self) -> None:
        """Abandon what was submitted; the machine stays."""
        self._pipeline.abandon(self._lane)
