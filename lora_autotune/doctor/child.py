"""Commands under a time limit, for questions that a wedged driver may never answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a command printed, and how it ended.

    Attributes:
        code: its exit code; None: it was given up at its limit.
        out: its stdout, as far as it came.
        err: its stderr, likewise.
    """

    code: int | None
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line that it printed, for a message."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Output:
    """Run a command, and give it up at its limit.

    It is then killed but not waited for: a process inside a wedged driver cannot die, and would
    keep us for as long.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(  # noqa: S603 - our own commands, no shell
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
        return Output(code=process.returncode, out=_text(out), err=_text(err))
    except subprocess.TimeoutExpired as error:
        return Output(code=None, out=_text(error.output), err=_text(error.stderr))
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _text(printed: bytes | None) -> str:
    return (printed or b"").decode(errors="replace")
