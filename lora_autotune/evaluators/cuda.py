"""The real evaluator: a pool of compile workers feeds one bench worker on the GPU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from types import TracebackType

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Platform
from lora_autotune.evaluators import compiling, measuring
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.measuring import Reply
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure, FailureKind, Measurement, Outcome, Resources, Trial

FULL_COMPILE_TIMEOUT_S = 15.0
COMPILE_TIMEOUT_S = 6.0
"""Time to compile a candidate. On the shipped landscapes none within 5% of the best took over 2.3 s
(two variants, all cores busy), and the slowest take 10 to 24 s; recording waits longer."""

MEASURE_TIMEOUT_S = 20.0
SETUP_TIMEOUT_S = 180.0
MAX_COMPILE_WORKERS = 14


class CudaMachine:
    """This machine's GPU and compilers, kept warm from task to task. A context manager.

    Attributes:
        gpu: the device.
        platform: what measurements made here are labelled with.

    Raises:
        EvaluatorError: no CUDA device, or no torch and triton that can use it.
    """

    def __init__(self, *, compile_workers: int | None = None) -> None:
        self._cache_dir = tempfile.mkdtemp(prefix="lora-autotune-triton-")
        self.compilers: list[Worker] = []
        self.bench = Worker(measuring.set_up, self._cache_dir)
        found = self.bench.call(measuring.describe, timeout_s=SETUP_TIMEOUT_S)
        if not isinstance(found, Gpu):
            self.close()
            reason = found.message if isinstance(found, Died) else found
            raise EvaluatorError(
                f"no CUDA device to tune on: {reason}",
                hint="--replay searches recorded measurements without a GPU",
            )
        self.gpu = found
        self.platform = Platform(device=found.name, triton=found.triton)
        count = compile_workers or min(MAX_COMPILE_WORKERS, max(1, _cores() - 1))
        self.compilers = [Worker(compiling.set_up, found, self._cache_dir) for _ in range(count)]

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
        for worker in [self.bench, *self.compilers]:
            worker.close()
        shutil.rmtree(self._cache_dir, ignore_errors=True)

    def evaluator(
        self, task: Task, workload: Workload, *, prune: bool = True, seed: int = 0
    ) -> CudaEvaluator:
        """An evaluator of one task; one at a time.

        Args:
            task: what is evaluated.
            workload: the batches it is timed on.
            prune: drop hopeless candidates early; False measures every one in full.
            seed: of the random operands.
        """
        return CudaEvaluator(self, task, workload, prune=prune, seed=seed)


class CudaEvaluator:
    """Evaluates one task on this machine's GPU; see :class:`lora_autotune.evaluator.Evaluator`."""

    replayed = False

    def __init__(
        self, machine: CudaMachine, task: Task, workload: Workload, *, prune: bool, seed: int
    ) -> None:
        self.task = task
        self.workload = workload
        self.platform = machine.platform
        self.capacity = len(machine.compilers) + 4
        self._machine = machine
        self._prune = prune
        self._compile_timeout_s = COMPILE_TIMEOUT_S if prune else FULL_COMPILE_TIMEOUT_S
        self._seed = seed
        self._waiting: deque[Config] = deque()
        self._compiling: dict[Worker, Config] = {}
        self._compiled: deque[tuple[Config, Compiled]] = deque()
        self._measuring: tuple[Config, Compiled] | None = None
        self._finished: deque[Trial] = deque()
        self._best_us: tuple[float, ...] | None = None
        self._prepare()

    def _prepare(self) -> None:
        refused = self._machine.bench.call(
            measuring.prepare, self.task, self.workload, self._seed, timeout_s=SETUP_TIMEOUT_S
        )
        if refused is not None:
            reason = refused.message if isinstance(refused, Died) else refused
            raise EvaluatorError(f"{self.task}: {reason}", hint="tune on fewer --tokens")

    def submit(self, config: Config, /) -> None:
        """Hand over a config to evaluate; returns at once."""
        if config == DEFAULT_CONFIGS[self.task.kernel]:
            self._waiting.appendleft(config)
        else:
            self._waiting.append(config)
        self._feed()

    def collect(self) -> Trial:
        """The next finished trial; blocks until there is one."""
        while not self._finished:
            busy = [w for w in [self._machine.bench, *self._compiling] if w.busy]
            if not busy:
                raise EvaluatorError("nothing was submitted")
            patience_s = min(worker.remaining_s for worker in busy)
            by_connection = {worker.connection: worker for worker in busy}
            ready = {by_connection[c] for c in wait(list(by_connection), max(0.0, patience_s))}  # type: ignore[index]
            for worker in busy:
                if worker in ready or worker.remaining_s <= 0:
                    self._receive(worker)
            self._feed()
        return self._finished.popleft()

    def remeasure(
        self, configs: Sequence[Config], /, *, rounds: int
    ) -> list[list[tuple[float, ...] | Failure]]:
        """Time configs against each other, interleaved."""
        results = self._machine.bench.call(
            measuring.remeasure, list(configs), rounds, timeout_s=SETUP_TIMEOUT_S
        )
        if isinstance(results, Died):
            self._prepare()
            failure = _failure(results, "crash", "while measuring again")
            return [[failure] * rounds for _ in configs]
        return results  # type: ignore[no-any-return]

    def close(self) -> None:
        """Abandon what was submitted; the machine stays."""
        for worker in [self._machine.bench, *self._compiling]:
            if worker.busy:
                worker.replace()
        self._waiting.clear()
        self._compiling.clear()
        self._compiled.clear()

    def _feed(self) -> None:
        """Give every idle worker its next job."""
        for worker in self._machine.compilers:
            if self._waiting and worker not in self._compiling:
                config = self._waiting.popleft()
                self._compiling[worker] = config
                worker.submit(
                    compiling.compile_config,
                    self.task,
                    self.workload,
                    config,
                    timeout_s=self._compile_timeout_s,
                )
        if self._compiled and self._measuring is None:
            self._measuring = self._compiled.popleft()
            self._machine.bench.submit(
                measuring.measure,
                self._measuring[0],
                self._best_us if self._prune else None,
                self._prune,
                timeout_s=MEASURE_TIMEOUT_S,
            )

    def _receive(self, worker: Worker) -> None:
        """Take in what a worker has finished, or how it ended."""
        if worker in self._compiling:
            self._receive_compiled(self._compiling.pop(worker), worker.result())
        else:
            self._receive_measured(worker.result())

    def _receive_compiled(self, config: Config, result: Compiled | Died) -> None:
        if isinstance(result, Died):
            result = Compiled(
                compile_s=self._compile_timeout_s if result.timed_out else 0.0,
                failure=_failure(result, "compile", "while compiling"),
            )
        if result.failure is not None:
            self._finish(config, result, result.failure, None)
        else:
            self._compiled.append((config, result))

    def _receive_measured(self, result: Reply | Died) -> None:
        if self._measuring is None:
            raise RuntimeError("the bench worker answered without a question")
        config, compiled = self._measuring
        self._measuring = None
        if isinstance(result, Died):
            failure = _failure(result, "crash", "while measuring")
            self._prepare()
            self._finish(config, compiled, failure, None)
            return
        if result.context_lost:
            self._machine.bench.replace()
            self._prepare()
        self._finish(config, compiled, result.outcome, result.resources)

    def _finish(
        self, config: Config, compiled: Compiled, outcome: Outcome, resources: Resources | None
    ) -> None:
        if isinstance(outcome, Measurement):
            times_us = outcome.times_us
            best_us = self._best_us or times_us
            self._best_us = tuple(min(a, b) for a, b in zip(best_us, times_us, strict=True))
        self._finished.append(
            Trial(
                config=config,
                outcome=outcome,
                compile_s=round(compiled.compile_s, 3),
                resources=resources,
            )
        )


def _failure(died: Died, kind: FailureKind, when: str) -> Failure:
    """A worker's death as the failure of the candidate that it was at."""
    return Failure(kind="timeout" if died.timed_out else kind, message=f"{when}: {died.message}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
