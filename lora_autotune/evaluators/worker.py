"""One process that runs one job at a time, may hang or die, and can be replaced.

Ours rather than a library's pool, because three things go together here: a job under a time limit,
a worker that keeps state between jobs (a CUDA context), and the death of the whole process group
(a killed compile takes its ptxas along).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from lora_autotune.errors import EvaluatorError

PRELOADED = ("lora_autotune.evaluators.preload",)
"""What the fork server imports before it starts the first worker."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker is gone: killed at its limit, or dead by itself.

    Attributes:
        timed_out: True when it was killed at its time limit.
        killed: True when somebody else killed it (SIGKILL): that says nothing about the job.
        message: how it ended, with the last line that it printed.
    """

    timed_out: bool
    killed: bool = False
    message: str


class Worker:
    """A process of its own group that runs picklable module-level functions, one at a time.

    Args:
        setup: runs before the first job; None: nothing does.
        args: what it is given.
        ready: what the first process does at once, while nobody waits for it: it is a fresh one
            then, that need not wait for the fork server either. One that replaces it does without,
            and so does that of a worker which is made in another thread than the main one.

    Attributes:
        environment: the variables of all its processes: those of now, and not of when the fork
            server was started.
        busy: a job was submitted whose result was not taken yet.
        warm: its process has finished a job, so the next does not pay for first times.
    """

    def __init__(
        self,
        setup: Callable[..., None] | None = None,
        *args: Any,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self._setup = (setup, args)
        self.environment = dict(os.environ)
        self._limit = _Limit(wall_s=math.inf, cpu_s=math.inf)
        self.busy = False
        # A process dies with the thread that started it, which the main one outlives.
        self._start(ready if threading.current_thread() is threading.main_thread() else None)

    def _start(self, ready: Callable[[], None] | None = None) -> None:
        context: SpawnContext | ForkServerContext
        listening: contextlib.AbstractContextManager[None]
        if ready is None:
            context, listening = start_fork_server(), contextlib.nullcontext()
        else:
            context, listening = multiprocessing.get_context("spawn"), _deaf()
        self.connection, theirs = context.Pipe()
        descriptor, name = tempfile.mkstemp(prefix="lora-autotune-worker-")
        os.close(descriptor)
        self._printed = Path(name)
        self._has_finished_one = False
        serving = (theirs, name, self.environment, ready, *self._setup)
        self._process = context.Process(target=_serve, args=serving, daemon=True)
        try:
            with _without_main(), listening:
                self._process.start()
        except BaseException:  # Ctrl-C: the fork server may be at its imports for seconds
            if self._process.pid is not None:
                self._process.kill()
                self._process.join()
            self._printed.unlink()
            raise
        finally:
            theirs.close()

    @property
    def warm(self) -> bool:
        """See the class: false again once the process is dead."""
        return self._has_finished_one and self._process.is_alive()

    def submit(
        self, job: Callable[..., Any], *args: Any, timeout_s: float, cpu_limit_s: float = math.inf
    ) -> None:
        """Start a job; the clocks run from now.

        Args:
            job: what to run.
            args: what it is given.
            timeout_s: seconds that it may take.
            cpu_limit_s: seconds that it and its children may compute: a limit that a busy machine
                does not shorten.
        """
        if not self._process.is_alive():  # somebody killed it while it had nothing to do
            self.replace()
        self.busy = True
        self._limit = _Limit(wall_s=timeout_s, cpu_s=cpu_limit_s, leader=self._process.pid)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((job, args))

    @property
    def remaining_s(self) -> float:
        """Seconds until :attr:`overdue` is worth asking; infinite when idle."""
        return self._limit.remaining_s if self.busy else math.inf

    @property
    def overdue(self) -> bool:
        """The job is over its limit; :meth:`result` will kill it."""
        return self.busy and self._limit.exceeded()

    def result(self) -> Any:
        """What the job returned, or Died; blocks until the one or the other.

        Raises:
            EvaluatorError: the job raised, which is a bug in it; the message has its traceback.
        """
        try:
            ready = self.connection.poll(max(0.0, self.remaining_s))
            while not ready and not self.overdue:
                ready = self.connection.poll(max(0.0, self.remaining_s))
            reply = self.connection.recv() if ready else None
        except (EOFError, OSError):  # OSError: it died in the middle of its reply
            ready, reply = True, None
        self.busy = False
        if reply is not None:
            self._has_finished_one = True
            worked, value = reply
            if not worked:
                raise EvaluatorError(f"a worker's job failed unexpectedly:\n{value}")
            return value
        if ready:
            self._process.join(5)
            killed = self._process.exitcode == -signal.SIGKILL
            died = Died(timed_out=False, killed=killed, message=self._obituary())
        else:
            died = Died(timed_out=True, message=f"over its limit of {self._limit}")
        self.replace()
        return died

    def call(self, job: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
        """Run one job and wait for it: :meth:`submit` and :meth:`result`."""
        self.submit(job, *args, timeout_s=timeout_s)
        return self.result()

    def replace(self) -> None:
        """Kill the process with all its children and start a fresh one."""
        self.close()
        self._start()

    def kill(self) -> None:
        """Kill the process with all its children, and do not wait until they are gone."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> None:
        """Kill the process with all its children."""
        self.busy = False
        self.kill()
        if self._process.pid is not None:  # else its start was interrupted
            self._process.join()
        self.connection.close()
        self._printed.unlink(missing_ok=True)

    def _obituary(self) -> str:
        code = self._process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"killed by {signal.Signals(-code).name}"
        printed = self._printed.read_text(errors="replace").strip().splitlines()
        return f"the process died: {how}" + (f": {printed[-1][:200]}" if printed else "")


class _Limit:
    """When a job has had its time."""

    def __init__(self, *, wall_s: float, cpu_s: float, leader: int | None = None) -> None:
        self._wall_s = wall_s
        self._cpu_s = cpu_s
        self._leader = leader
        self._deadline_s = time.monotonic() + wall_s
        self._look_s = time.monotonic() + min(wall_s, cpu_s)
        self._cpu_before_s = 0.0 if cpu_s == math.inf else _cpu_s([Path(f"/proc/{leader}/stat")])

    def __str__(self) -> str:
        computed = time.monotonic() < self._deadline_s
        return f"{self._cpu_s:.3g} s of computing" if computed else f"{self._wall_s:.3g} s"

    @property
    def remaining_s(self) -> float:
        return self._look_s - time.monotonic()

    def exceeded(self) -> bool:
        """True when it is over; else the next look is put off by what is left."""
        now_s = time.monotonic()
        if now_s < self._look_s:
            return False
        if now_s >= self._deadline_s:
            return True
        everyone = list(Path("/proc").glob("[0-9]*/stat"))
        left_s = self._cpu_s - (_cpu_s(everyone, group=self._leader) - self._cpu_before_s)
        if left_s <= 0:
            return True
        self._look_s = min(self._deadline_s, now_s + max(left_s, 0.05))
        return False


def _cpu_s(stats: Iterable[Path], *, group: int | None = None) -> float:
    """Seconds that processes (those of a group) and their dead children have computed.

    Fields 5 (process group) and 14 to 17 (clock ticks) of /proc/PID/stat: proc_pid_stat(5).
    """
    ticks = 0
    for stat in stats:
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if group in (None, int(fields[2])):
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """A process that is started meanwhile does not import this one's main script.

    No job needs it, and it may lack the guard that multiprocessing asks for, or be no file.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started meanwhile does not hear Ctrl-C: we do, and end it."""
    resource_tracker.ensure_running()  # else it is started meanwhile, and makes us hear again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_fork_server() -> ForkServerContext:
    """The context that workers start from; its server imports Triton while we do other things."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with _deaf():
        forkserver.ensure_running()
    return context


def _serve(
    connection: Connection,
    printed: str,
    environment: Mapping[str, str],
    ready: Callable[[], None] | None,
    setup: Callable[..., None] | None,
    args: tuple[Any, ...],
) -> None:
    """The worker's main: its own process group, its output captured, gone with its parent."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if ready is None:
        # The fork server ends, and takes us along, once nobody holds this descriptor: a busy worker
        # that kept it would outlive a tuner that is killed.
        os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined] # noqa: SLF001
    elif (parent := multiprocessing.parent_process()) is None or os.getppid() != parent.pid:
        return  # it was killed before that
    os.environ.clear()
    os.environ.update(environment)
    try:
        descriptor = os.open(printed, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # the start was interrupted, and nobody knows of this process
        return
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    trouble = ""
    if ready is not None:
        try:
            ready()
        except Exception:  # it fails again in the first job, perhaps with less to tell
            trouble = f"\nafter it could not get ready:\n{traceback.format_exc()}"
    while True:
        try:
            job, job_args = connection.recv()
            if setup is not None:
                setup(*args)
                setup = None
            reply = (True, job(*job_args))
        except EOFError:
            return
        except Exception:
            reply = (False, traceback.format_exc() + trouble)
        connection.send(reply)
