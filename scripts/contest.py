"""Several ways to do the same work, timed in CUDA graphs, in turns.

An entry is one callable for each set of operands; together the sets are larger than the L2, as in
`lora_autotune.evaluators.timing`, whose timer this uses.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import triton

from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.timing import GraphTimer

Calls = Sequence[Callable[[], Any]]
T = TypeVar("T")
ROUNDS = 15


@dataclass
class _Entry:
    """What a GraphTimer asks of a bench."""

    calls: Calls
    rotations: int = 0

    def launches(self, _config: object) -> Calls:
        return self.calls


def times_us(
    entries: Mapping[str, Calls], rounds: int = ROUNDS
) -> tuple[dict[str, float], dict[str, str]]:
    """Each entry's median microseconds a call; and what those that failed failed with."""
    timers: dict[str, GraphTimer] = {}
    failed: dict[str, str] = {}
    for name, calls in entries.items():
        try:
            warm_up(calls)
            timers[name] = GraphTimer(_Entry(calls), None)
        except Exception as error:  # one entry's, not the others'
            failed[name] = first_line(error)
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            timer.time_us()  # forgets whose turn it was before
            found[name].append(timer.time_us())
    return {name: statistics.median(times) for name, times in found.items()}, failed


def warm_up(calls: Calls) -> None:
    """Call each once on another stream, as the capture of a graph asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def surroundings(gpu: Gpu, published: str | None) -> dict[str, str]:
    """What a contest was held on, to be printed and kept with its times."""
    return {
        "gpu": gpu.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "published": published or "SGLang is not installed",
    }


def named(things: Iterable[T], patterns: Sequence[str] | None) -> list[T]:
    """Those whose name holds one of some patterns (with * and ?); None: all."""
    wanted = [f"*{pattern}*" for pattern in patterns or [""]]
    return [
        thing for thing in things if any(fnmatch.fnmatchcase(str(thing), one) for one in wanted)
    ]
