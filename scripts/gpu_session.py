"""A benchmark's run on the GPU that is here: what it is held on, and what it finds."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ahead import Work, compile_ahead
from clock import Clock
from contest import surroundings

from lora_autotune.evaluators import measuring
from lora_autotune.evaluators.gpu import Gpu


class GpuSession:
    """What is compiled is of this run alone, and is gone after it.

    Attributes:
        gpu: what is measured on.
        about: the surroundings, for the results.
    """

    def __init__(self, gpu: Gpu, about: Mapping[str, str], cache_dir: str, clock: Clock) -> None:
        self.gpu = gpu
        self.about = about
        self._cache_dir = cache_dir
        self._clock = clock

    def compile_ahead(self, work: Iterable[Work]) -> None:
        """Compile all that will be launched."""
        compile_ahead(work, self.gpu, self._cache_dir)
        print(f"compiled after {self._clock.took_s:.0f} s", file=sys.stderr)


@contextmanager
def gpu_session(clock: Clock, published: str | None, **about: str) -> Iterator[GpuSession]:
    """Open the GPU and print the surroundings; at the end print what it all took.

    Args:
        clock: of the whole run.
        published: the set of SGLang's kernels; None: it is not installed.
        about: more of the surroundings.
    """
    with tempfile.TemporaryDirectory() as cache_dir:
        measuring.set_up(cache_dir)
        gpu = measuring.describe()
        assert isinstance(gpu, Gpu)
        session = GpuSession(gpu, surroundings(gpu, published) | about, cache_dir, clock)
        print("; ".join(f"{key}: {value}" for key, value in session.about.items()))
        yield session
    print(f"{clock.took_s:.0f} s", file=sys.stderr)


def lacks_gpu(script: str) -> bool:
    """Whether there is none, which is said."""
    if torch.cuda.is_available():
        return False
    print(f"{script}: torch sees no CUDA device", file=sys.stderr)
    return True


class Results:
    """What was found of each thing so far, in a file from the first on if one is named."""

    def __init__(self, path: Path | None, about: Mapping[str, str], things: str) -> None:
        self._path = path
        self._about = about
        self._things = things
        self._found: list[Mapping[str, Any]] = []

    def keep(self, found: Mapping[str, Any]) -> None:
        """One more; it says under "failed" what went wrong."""
        self._found.append(found)
        if self._path is not None:
            text = json.dumps({"about": self._about, self._things: self._found}, indent=1)
            self._path.write_text(text)

    @property
    def status(self) -> int:
        """The exit status: 1 if anything failed."""
        return 1 if any(found["failed"] for found in self._found) else 0
