"""The way of every candidate: waiting, compiling on one of many workers, measuring on the one GPU.

The evaluators of all tasks that are being tuned share it, so that neither the compilers nor the GPU
wait while anything is left to do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, compiling
from lora_autotune.evaluators.compiling import Compiled
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.evaluators.worker import Died, Worker
from lora_autotune.pruning import Standings
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.trial import (
    Failure,
    FailureKind,
    Outcome,
    Resources,
    Trial,
)

COMPILE_LIMIT_S = 1.5
"""Seconds of computing that a candidate's compiling may take. On the shipped landscapes no config
within 5% of the best took over 1.2 s, and shrink's slower ones were half of all compiling."""

PATIENT_COMPILE_LIMIT_S = 30.0
"""The same for a lane that wants every candidate measured; they wait until nothing else does."""

COMPILE_TIMEOUT_S = 60.0
"""Wall-clock limit of a compile, for one that hangs without computing."""

SETUP_TIMEOUT_S = 180.0
"""Wall-clock limit of a bench worker's start: it imports torch and opens the GPU."""

MEASURE_TIMEOUT_S = 20.0
REMEASURE_TIMEOUT_S = 180.0

Rounds = list[list[tuple[float, ...] | Failure]]


@dataclass(eq=False, slots=True)
class Lane:
    """One task's share of the pipeline.

    Attributes:
        subject: what its candidates are measured on.
        patient: candidates that compile slowly are measured too, after all others.
        finished: trials that nobody collected yet.
        in_flight: candidates that are not finished.
        trouble: why its candidates cannot be measured at all.
        standings: what the next candidate is compared with.
    """

    subject: Subject
    patient: bool
    finished: deque[Trial] = field(default_factory=deque)
    in_flight: int = 0
    trouble: str | None = None
    compiled: set[Config] = field(default_factory=set)
    standings: Standings = field(default_factory=Standings)

    def learn(self, config: Config, outcome: Outcome) -> None:
        """Keep the standings up to date."""
        subject = self.subject
        is_default = config == DEFAULT_CONFIGS[subject.task.kernel]
        self.standings = self.standings.after(outcome, subject.workload, is_default=is_default)


@dataclass(eq=False, slots=True)
class _Candidate:
    """A config on its way.

    Attributes:
        slow: it may take longer, because it has been over the limit or cannot be done without.
        timed: it is to be measured once it is compiled.
        killed: somebody killed the worker that had it; one more such death is its own failure.
        compiled: what came of compiling it.
    """

    lane: Lane
    config: Config
    slow: bool = False
    timed: bool = True
    killed: bool = False
    compiled: Compiled | None = None

    @property
    def compile_limit_s(self) -> float:
        """Seconds of computing that compiling it may take."""
        if self.slow:
            return PATIENT_COMPILE_LIMIT_S
        kernels = min(3, len(self.lane.subject.workload))  # for few rows, for many, in between
        return kernels * COMPILE_LIMIT_S


@dataclass(eq=False, slots=True)
class _Contest:
    """Configs to be measured again, side by side; ``killed`` as for a candidate."""

    lane: Lane
    configs: Sequence[Config]
    rounds: int
    killed: bool = False
    results: Rounds | Died | str | None = None


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
        self._waiting: deque[_Candidate] = deque()
        self._slow: deque[_Candidate] = deque()
        self._compiling: dict[Worker, _Candidate] = {}
        self._compiled: deque[_Candidate] = deque()
        self._contests: deque[_Contest] = deque()
        self._on_bench: _Candidate | _Contest | None = None
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
        if config == DEFAULT_CONFIGS[lane.subject.task.kernel]:
            self._waiting.appendleft(_Candidate(lane, config, slow=True))
        else:
            self._waiting.append(_Candidate(lane, config))
        self._feed()

    def abandon(self, lane: Lane) -> None:
        """Forget what a task has under way."""
        for queue in (self._waiting, self._slow, self._compiled):
            kept = [candidate for candidate in queue if candidate.lane is not lane]
            queue.clear()
            queue.extend(kept)
        for worker, candidate in list(self._compiling.items()):
            if candidate.lane is lane:
                worker.replace()
                del self._compiling[worker]
        self._contests = deque(one for one in self._contests if one.lane is not lane)
        if self._on_bench is not None and self._on_bench.lane is lane:
            self._bench.replace()
            self._on_bench = None
        lane.in_flight = 0
        lane.finished.clear()
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
        for candidate in self._compiled:  # all that was compiled: nothing is measured so early
            candidate.lane.compiled.clear()
        self._waiting.extendleft([*self._compiled, *self._compiling.values()])
        self._compiled.clear()
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

    def remeasure(self, lane: Lane, configs: Sequence[Config], rounds: int) -> Rounds:
        """Measure again, and wait for it; see Evaluator.remeasure."""
        self.wait_until_open()
        refused = self._compile_missing(lane, configs)
        contest = _Contest(lane, [c for c in configs if c not in refused], rounds)
        self._contests.append(contest)
        self._feed()
        while contest.results is None:
            self.pump(math.inf)
        if isinstance(contest.results, str):
            raise EvaluatorError(contest.results, hint="tune on fewer --tokens")
        if isinstance(contest.results, Died):
            failure = _failure(contest.results, "crash", "while measuring again")
            contest.results = [[failure] * rounds for _ in contest.configs]
        results = iter(contest.results)
        return [[refused[c]] * rounds if c in refused else next(results) for c in configs]

    def _compile_missing(self, lane: Lane, configs: Sequence[Config]) -> dict[Config, Failure]:
        """Compile what an earlier process measured; returns what cannot be compiled."""
        missing = [config for config in dict.fromkeys(configs) if config not in lane.compiled]
        candidates = [_Candidate(lane, config, slow=True, timed=False) for config in missing]
        self._waiting.extendleft(candidates)
        self._feed()
        refused = {}
        for candidate in candidates:
            while candidate.compiled is None:
                self.pump(math.inf)
            if candidate.compiled.failure is not None:
                refused[candidate.config] = candidate.compiled.failure
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

    def _compile(self, worker: Worker, candidate: _Candidate) -> None:
        self._compiling[worker] = candidate
        if not worker.warm:
            worker.submit(compiling.warm_up, timeout_s=COMPILE_TIMEOUT_S)
            return
        subject = candidate.lane.subject
        worker.submit(
            compiling.compile_config,
            subject.task,
            subject.workload,
            candidate.config,
            subject.kernels,
            timeout_s=COMPILE_TIMEOUT_S,
            cpu_limit_s=candidate.compile_limit_s,
        )

    def _measure(self, job: _Candidate | _Contest) -> None:
        self._on_bench = job
        subject = job.lane.subject
        self._starting = not self._bench.warm
        if self._starting:
            self._bench.submit(bench_jobs.warm_up, timeout_s=SETUP_TIMEOUT_S)
        elif isinstance(job, _Contest):
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
        elif _deserves_another_try(job, result):
            self._put_back(job)
        elif isinstance(job, _Contest):
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

    def _receive_start(self, job: _Candidate | _Contest, died: Died | None) -> None:
        """The bench worker has started again, or died of it: that is not what the job did."""
        if died is None:
            self._failed_starts = 0
            self._measure(job)
            return
        self._put_back(job)
        self._failed_starts += 1
        if self._failed_starts > 1:
            raise EvaluatorError(f"the process that measures does not start: {died.message}")

    def _put_back(self, job: _Candidate | _Contest) -> None:
        if isinstance(job, _Contest):
            self._contests.appendleft(job)
        else:
            self._compiled.appendleft(job)

    def _receive_compiled(self, candidate: _Candidate, result: Compiled | Died) -> None:
        if isinstance(result, Died):
            if _deserves_another_try(candidate, result):
                self._waiting.appendleft(candidate)
                return
            if result.timed_out and candidate.lane.patient and not candidate.slow:
                candidate.slow = True
                self._slow.append(candidate)
                return
            result = Compiled(
                compile_s=candidate.compile_limit_s if result.timed_out else 0.0,
                failure=_failure(result, "compile", "while compiling"),
            )
        candidate.compiled = result
        if result.failure is None:
            candidate.lane.compiled.add(candidate.config)
        if not candidate.timed:
            return
        if result.failure is None:
            self._compiled.append(candidate)
        else:
            self._finish(candidate, result.failure)

    def _receive_measured(self, candidate: _Candidate, result: Reply | str | Died) -> None:
        if isinstance(result, Died):
            self._finish(candidate, _failure(result, "crash", "while measuring"))
        elif isinstance(result, str):
            candidate.lane.trouble = result
        else:
            if result.context_lost:
                self._bench.replace()
            self._finish(candidate, result.outcome, result.resources)

    def _finish(
        self, candidate: _Candidate, outcome: Outcome, resources: Resources | None = None
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


def _deserves_another_try(job: _Candidate | _Contest, result: object) -> bool:
    """Whether its worker was killed from outside (by hand, for want of memory) for the first time.

    Else a candidate would be out for good, and a default or a contest that it hits would leave
    nothing to choose by.
    """
    if not isinstance(result, Died) or not result.killed or job.killed:
        return False
    job.killed = True
    return True


def _failure(died: Died, kind: FailureKind, when: str) -> Failure:
    """A worker's death as the failure of the candidate that it was at."""
    return Failure(kind="timeout" if died.timed_out else kind, message=f"{when}: {died.message}")
