"""The way of every candidate: waiting, compiling on one of many workers, measuring on the one GPU.

The evaluators of all tasks that are being tuned share it, so that neither the compilers nor the GPU
wait while anything is left to do.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, compiling
from lora_autotune.evaluators.candidate import Candidate, Contest, Rounds, deserves_another_try
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.lane import Lane
from lora_autotune.evaluators.subject import Reply
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.space import Config
from lora_autotune.trial import (
    Failure,
    FailureKind,
    Outcome,
    Resources,
    Trial,
)

COMPILE_TIMEOUT_S = 60.0
"""Wall-clock limit of a compile, for one that hangs without computing."""

SETUP_TIMEOUT_S = 180.0
"""Wall-clock limit of a bench worker's start: it imports torch and opens the GPU."""

MEASURE_TIMEOUT_S = 20.0
REMEASURE_TIMEOUT_S = 180.0


class Pipeline:
    """The compile pool, the bench worker, and what is under way between them.

    Args:
        bench: measures; it may still be at its first job, to describe the GPU.
        compilers: they compile.
        opened: is told what came of that job.
    """

    def __init__(
        self,
        bench: Worker,
        compilers: Sequence[Worker],
        opened: Callable[[Gpu | str | Died], None] | None = None,
    ) -> None:
        self._bench = bench
        self._compilers = compilers
        self._opened = opened
        self._waiting: deque[Candidate] = deque()
        self._slow: deque[Candidate] = deque()
        self._compiling: dict[Worker, Candidate] = {}
        self._compiled: deque[Candidate] = deque()
        self._untimed: list[Candidate] = []
        self._contests: deque[Contest] = deque()
        self._on_bench: Candidate | Contest | None = None
        self._starting = False
        self._failed_starts = 0
        self._refusal: EvaluatorError | None = None

    def check(self) -> None:
        """Raise again why the bench worker could not open the GPU, if so: it stays like that."""
        if self._refusal is not None:
            raise self._refusal

    def submit(self, lane: Lane, config: Config) -> None:
        """Send a candidate on its way; the default goes first and has time: all must beat it."""
        lane.in_flight += 1
        candidate = Candidate(lane, config)
        if candidate.is_default:
            candidate.slow = True
            lane.preparing.setdefault(config, candidate)  # once more, it comes out of the cache
            self._waiting.appendleft(candidate)
        else:
            self._waiting.append(candidate)
        self._feed()

    def abandon(self, *lanes: Lane) -> None:
        """Forget what tasks have under way."""
        for queue in (self._waiting, self._slow, self._compiled):
            kept = [candidate for candidate in queue if candidate.lane not in lanes]
            queue.clear()
            queue.extend(kept)
        for worker, candidate in list(self._compiling.items()):
            if candidate.lane in lanes:
                worker.replace()
                del self._compiling[worker]
        self._contests = deque(one for one in self._contests if one.lane not in lanes)
        if self._on_bench is not None and self._on_bench.lane in lanes:
            self._bench.replace()
            self._on_bench = None
        for lane in lanes:
            lane.in_flight = 0
            lane.finished.clear()
            lane.preparing.clear()
        self._feed()

    def wait_until_open(self) -> None:
        """Wait for the bench worker's description of the GPU, if it is still at it."""
        self.check()
        while self._bench.busy and self._on_bench is None:
            self.pump(math.inf)

    def compile_anew(self, compilers: Sequence[Worker]) -> None:
        """Go on with other compilers, who compile again what nobody has measured yet.

        What has failed to compile by then stays failed.
        """
        done = [*self._compiled, *self._untimed]  # nothing is measured so early
        for candidate in done:
            candidate.compiled = None
            candidate.lane.compiled.clear()
        self._waiting.extendleft([*done, *self._compiling.values()])
        self._compiled.clear()
        self._untimed.clear()
        self._compiling.clear()
        self._compilers = compilers

    def pump(self, wait_s: float) -> None:
        """Take in what the workers finish, once something happens or the time is over."""
        busy = [worker for worker in (self._bench, *self._compiling) if worker.busy]
        if not busy:
            raise EvaluatorError("nothing was submitted")
        patience_s = max(0.0, min(wait_s, *(worker.remaining_s for worker in busy)))
        by_connection: dict[Any, Worker] = {worker.connection: worker for worker in busy}
        ready = {by_connection[c] for c in wait(list(by_connection), patience_s)}
        for worker in busy:
            if worker.busy and (worker in ready or worker.overdue):
                self._receive(worker)
        self._feed()

    def remeasure(
        self, lane: Lane, configs: Sequence[Config], rounds: int, parts: Sequence[Lane] = ()
    ) -> Rounds:
        """Measure again, and wait for it; see Evaluator.remeasure.

        Where a lane has parts, one for each of its batches, they compile what it measures.
        """
        self.wait_until_open()
        refused = self._compile_missing(parts or (lane,), configs)
        contest = Contest(lane, [c for c in configs if c not in refused], rounds)
        self._contests.append(contest)
        self._feed()
        while contest.results is None:
            self.pump(math.inf)
        if isinstance(contest.results, str):
            raise EvaluatorError(
                f"{lane.subject.task}: {contest.results}", hint="tune on fewer --tokens"
            )
        if isinstance(contest.results, Died):
            failure = _failure(contest.results, "crash", "while measuring again")
            contest.results = [[failure] * rounds for _ in contest.configs]
        results = iter(contest.results)
        return [[refused[c]] * rounds if c in refused else next(results) for c in configs]

    def prepare(self, lane: Lane, configs: Sequence[Config]) -> None:
        """Begin to compile what was not compiled for a lane before; returns at once."""
        for config in dict.fromkeys(configs):
            if config not in lane.compiled and config not in lane.preparing:
                candidate = Candidate(lane, config, slow=True, timed=False)
                lane.preparing[config] = candidate
                self._waiting.appendleft(candidate)
        self._feed()

    def _compile_missing(
        self, lanes: Sequence[Lane], configs: Sequence[Config]
    ) -> dict[Config, Failure]:
        """Compile what is missing for a contest, and wait; returns what cannot be compiled."""
        for lane in lanes:
            self.prepare(lane, configs)
        refused = {}
        for lane, config in itertools.product(lanes, dict.fromkeys(configs)):
            candidate = lane.preparing.get(config)
            if candidate is None:
                continue
            while candidate.compiled is None:
                self.pump(math.inf)
            if candidate.compiled.failure is not None:
                refused[config] = candidate.compiled.failure
        return refused

    def _feed(self) -> None:
        """Give every idle worker its next job."""
        for worker in self._compilers:
            queue = self._waiting or self._slow
            if queue and worker not in self._compiling:
                self._compile(worker, queue.popleft())
        if not self._bench.busy and self._contests:
            self._measure(self._contests.popleft())
        elif not self._bench.busy and self._compiled:
            self._measure(self._compiled.popleft())

    def _compile(self, worker: Worker, candidate: Candidate) -> None:
        self._compiling[worker] = candidate
        if not worker.warm:
            worker.submit(compiling.warm_up, timeout_s=COMPILE_TIMEOUT_S)
            return
        subject = candidate.lane.subject
        candidate.given_s = candidate.compile_limit_s
        worker.submit(
            compiling.compile_config,
            subject.task,
            subject.workload,
            candidate.config,
            subject.kernels,
            timeout_s=COMPILE_TIMEOUT_S,
            cpu_limit_s=candidate.given_s,
        )

    def _measure(self, job: Candidate | Contest) -> None:
        self._on_bench = job
        subject = job.lane.subject
        self._starting = not self._bench.warm
        if self._starting:
            self._bench.submit(bench_jobs.warm_up, timeout_s=SETUP_TIMEOUT_S)
        elif isinstance(job, Contest):
            self._bench.submit(
                bench_jobs.remeasure,
                subject,
                job.configs,
                job.rounds,
                timeout_s=REMEASURE_TIMEOUT_S,
            )
        else:
            self._bench.submit(
                bench_jobs.measure,
                subject,
                job.config,
                job.lane.standings,
                timeout_s=MEASURE_TIMEOUT_S,
            )

    def _receive(self, worker: Worker) -> None:
        """Take in what a worker has finished, or how it ended."""
        if worker in self._compiling:
            candidate, result = self._compiling.pop(worker), worker.result()
            if result is None:  # it has warmed up
                self._compile(worker, candidate)
            else:
                self._receive_compiled(candidate, result)
            return
        job, self._on_bench = self._on_bench, None
        if job is None:
            self._receive_gpu()
            return
        result = worker.result()
        if self._starting:
            self._receive_start(job, result)
        elif deserves_another_try(job, result):
            self._put_back(job)
        elif isinstance(job, Contest):
            job.results = result
        else:
            self._receive_measured(job, result)

    def _receive_gpu(self) -> None:
        """Take in what came of opening the GPU."""
        try:
            found = self._bench.result()
            if self._opened is not None:
                self._opened(found)
        except EvaluatorError as error:
            self._refusal = error
            raise

    def _receive_start(self, job: Candidate | Contest, died: Died | None) -> None:
        """The bench worker has started again, or died of it: that is not what the job did."""
        if died is None:
            self._failed_starts = 0
            self._measure(job)
            return
        self._put_back(job)
        self._failed_starts += 1
        if self._failed_starts > 1:
            raise EvaluatorError(f"the process that measures does not start: {died.message}")

    def _put_back(self, job: Candidate | Contest) -> None:
        if isinstance(job, Contest):
            self._contests.appendleft(job)
        else:
            self._compiled.appendleft(job)

    def _receive_compiled(self, candidate: Candidate, result: Compiled | Died) -> None:
        if isinstance(result, Died):
            if deserves_another_try(candidate, result):
                self._waiting.appendleft(candidate)
                return
            if result.timed_out and candidate.deserves_more_time:
                candidate.slow = candidate.lane.patient
                self._slow.append(candidate)
                return
            result = Compiled(
                compile_s=candidate.given_s if result.timed_out else 0.0,
                failure=_failure(result, "compile", "while compiling"),
            )
        candidate.compiled = result
        if result.failure is None:
            candidate.lane.compiled.add(candidate.config)
        if not candidate.timed:
            self._untimed.append(candidate)
            return
        if result.failure is None:
            self._compiled.append(candidate)
        else:
            self._finish(candidate, result.failure)

    def _receive_measured(self, candidate: Candidate, result: Reply | str | Died) -> None:
        if isinstance(result, Died):
            self._finish(candidate, _failure(result, "crash", "while measuring"))
        elif isinstance(result, str):
            candidate.lane.trouble = result
        else:
            if result.context_lost:
                self._bench.replace()
            self._finish(candidate, result.outcome, result.resources)

    def _finish(
        self, candidate: Candidate, outcome: Outcome, resources: Resources | None = None
    ) -> None:
        lane, compiled = candidate.lane, candidate.compiled
        lane.in_flight -= 1
        lane.learn(candidate.config, outcome)
        lane.finished.append(
            Trial(
                config=candidate.config,
                outcome=outcome,
                compile_s=None if compiled is None else round(compiled.compile_s, 3),
                resources=resources,
            )
        )


def _failure(died: Died, kind: FailureKind, when: str) -> Failure:
    """A worker's death as the failure of the candidate that it was at."""
    return Failure(kind="timeout" if died.timed_out else kind, message=f"{when}: {died.message}")
