"""What is tuned: one kernel at one shape and chunk size, on the batches it will serve."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lora_autotune.errors import UsageError

KernelName = Literal["shrink", "expand"]
DTypeName = Literal["float16", "bfloat16"]
Spread = Literal["even", "zipf"]
Phase = Literal["decode", "prefill"]

KERNELS: tuple[str, ...] = get_args(KernelName)
DTYPES: tuple[str, ...] = get_args(DTypeName)
SPREADS: tuple[str, ...] = get_args(Spread)
PHASES: tuple[str, ...] = get_args(Phase)
CHUNK_SIZES = (16, 32, 64, 128)
MAX_RANK = 512

LARGEST_GRAPH_BATCH = 256
"""The largest decode batch that CUDA graphs are assumed to be captured for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One batch that a task is timed on.

    Attributes:
        tokens: rows in the batch.
        adapters: LoRA adapters that the rows are spread over, in contiguous runs; as many as tokens
            is one adapter per token.
        weight: share of this batch in the task's cost; the weights of a workload are relative.
        spread: "even", or "zipf": the i-th adapter has rows in proportion to 1 / i.
        phase: which segment buffer a launch covers: that of a "decode" CUDA graph, or that of a
            "prefill". None is decode up to LARGEST_GRAPH_BATCH tokens and prefill beyond.
        graph_batch: at decode, the largest batch that CUDA graphs are captured for.
        ranks: the adapters' own ranks, repeated as needed; 0 is no adapter. None: all have the
            largest that the server allows.
    """

    tokens: int
    adapters: int = 1
    weight: float = 1.0
    spread: Spread = "even"
    phase: Phase | None = None
    graph_batch: int = LARGEST_GRAPH_BATCH
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.adapters < 1:
            raise UsageError(f"an instance needs at least one token and one adapter, not {self}")
        if self.adapters > self.tokens:
            raise UsageError(
                f"{self.tokens} tokens cannot be spread over {self.adapters} adapters",
                hint="give at least as many tokens as adapters",
            )
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"an instance's weight must be positive and finite, not {self.weight}")
        if self.spread not in SPREADS:
            raise UsageError(f"unknown spread {self.spread!r}", hint="allowed: even, zipf")
        if self.phase is None:
            object.__setattr__(self, "phase", self._usual_phase)
        if self.phase not in PHASES:
            raise UsageError(f"unknown phase {self.phase!r}", hint="allowed: decode, prefill")
        if self.graph_batch < 1:
            raise UsageError(f"a CUDA graph of {self.graph_batch} requests makes no sense")
        if self.phase == "prefill" and self.graph_batch != LARGEST_GRAPH_BATCH:
            raise UsageError("only a decode batch runs in a CUDA graph", hint="say decode")
        if self.ranks is not None and not (
            all(0 <= rank <= MAX_RANK for rank in self.ranks) and any(self.ranks[: self.adapters])
        ):
            raise UsageError(
                f"ranks {self.ranks} of {self.adapters} adapters make no sense",
                hint=f"0 (no adapter) to {MAX_RANK}, one of them over 0",
            )

    @property
    def _usual_phase(self) -> Phase:
        return "decode" if self.tokens <= LARGEST_GRAPH_BATCH else "prefill"

    def __str__(self) -> str:
        """As it is typed: tokens:adapters, and then only what is not as usual."""
        text = f"{self.tokens}:{self.adapters}"
        if self.spread != "even":
            text += f",{self.spread}"
        if self.phase not in (None, self._usual_phase):
            text += f",{self.phase}"
        if self.graph_batch != LARGEST_GRAPH_BATCH:
            text += f",graph={self.graph_batch}"
        if self.ranks is not None:
            text += ",ranks=" + "+".join(map(str, self.ranks))
        return text

    def as_dict(self) -> dict[str, Any]:
        """For JSON: tokens, adapters and weight, and of the rest only what is not as usual."""
        values: dict[str, Any] = {
            "tokens": self.tokens,
            "adapters": self.adapters,
            "weight": self.weight,
        }
        if self.spread != "even":
            values["spread"] = self.spread
        if self.phase != self._usual_phase:
            values["phase"] = self.phase
        if self.graph_batch != LARGEST_GRAPH_BATCH:
            values["graph_batch"] = self.graph_batch
        if self.ranks is not None:
            values["ranks"] = list(self.ranks)
        return values


Workload = tuple[Instance, ...]

PREFILL = Instance(tokens=30_720, adapters=1)
"""60 requests of 512 tokens, one adapter: the batch that published configs are tuned on."""

DECODE = Instance(tokens=32, adapters=8)
"""32 requests, one token each, over the 8 adapter slots of a default server."""

SMALL_BATCH = Instance(tokens=128, adapters=8)
"""A batch in the range (64 to 255 tokens) that a server runs at chunk size 32."""


BETWEEN: Workload = (
    Instance(tokens=512),
    Instance(tokens=2048),
    Instance(tokens=8192, adapters=8, spread="zipf"),
)
"""Batches between few rows and a full prefill: every chunk size sees them on a server that has it
as its largest."""


def default_workload(chunk_size: int, *, between: bool = False) -> Workload:
    """The batches that reach a chunk size on the servers that use it, equally weighted.

    A server picks its chunk size from the batch's tokens (under 64: 16; under 256: 32; else 128)
    and clamps it to ``max_lora_chunk_size``. So chunk size 16 runs everything from one decode token
    to a full prefill on a default server, 32 runs the small batches where it is allowed and the
    large ones where it is the clamp, and 64 and 128 only ever see large ones.

    Args:
        chunk_size: the task's.
        between: with those of BETWEEN, which share the weight of the full prefill with it: for
            kernels that are the same for all batches, so that more of them cost no compile.
    """
    small = {16: (DECODE,), 32: (SMALL_BATCH,)}.get(max(16, chunk_size), ())
    if not between:
        return (*small, PREFILL)
    large = (*BETWEEN, PREFILL)
    return (*small, *(replace(instance, weight=1 / len(large)) for instance in large))


def held_out_workload(workload: Workload, chunk_size: int) -> Workload:
    """The batches that a winner is measured on besides those that it is tuned on.

    There are none where these are not the default ones: others say themselves what is served.
    On the default ones a search knows nothing of batches between few rows and many, where our
    kernels take other tiles: of two configs that differ by 1.2% on these one took 1.48 times as
    long there (H100, shrink K=2048, when those tiles were as deep as a config's). To search on
    them too would take too long; but a winner must not lose.
    """
    return BETWEEN if workload == default_workload(chunk_size) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kernel at one shape and chunk size.

    Attributes:
        kernel: "shrink" (LoRA A) or "expand" (LoRA B).
        K: shrink: the layer's input width; expand: its output width.
        R: the largest rank that the server allows.
        S: fused slices: 3 for q/k/v, 2 for gate/up, else 1.
        chunk_size: most tokens in a segment.
        dtype: "float16" or "bfloat16".
        slice_offsets: expand only: the S + 1 boundaries of the slices in the output, from 0 to K.
            None splits K into S equal slices.
    """

    kernel: KernelName
    K: int
    R: int
    S: int
    chunk_size: int
    dtype: DTypeName = "float16"
    slice_offsets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UsageError(f"unknown kernel {self.kernel!r}", hint="allowed: shrink, expand")
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}", hint=f"allowed: {', '.join(DTYPES)}")
        for name in ("K", "R", "S", "chunk_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}")
        if self.chunk_size < 16 or self.chunk_size & (self.chunk_size - 1):
            raise UsageError(
                f"chunk size {self.chunk_size} cannot be a kernel's BLOCK_M",
                hint="a power of two from 16 on: 16, 32, 64, 128",
            )
        if self.R > MAX_RANK:
            raise UsageError(f"rank {self.R} is over the largest supported, {MAX_RANK}")
        if self.kernel == "shrink" and self.slice_offsets is not None:
            raise UsageError("slice offsets belong to expand tasks only")
        if self.kernel == "expand":
            self._check_slices()

    def _check_slices(self) -> None:
        if self.slice_offsets is None:
            if self.K % self.S:
                raise UsageError(
                    f"an output of {self.K} columns is not {self.S} equal slices",
                    hint="give the widths of the slices (--slices)",
                )
            width = self.K // self.S
            offsets = tuple(width * i for i in range(self.S + 1))
            object.__setattr__(self, "slice_offsets", offsets)
            return
        offsets = self.slice_offsets
        if len(offsets) != self.S + 1 or offsets[0] != 0 or offsets[-1] != self.K:
            raise UsageError(f"slice offsets {offsets} do not cut {self.K} columns into {self.S}")
        if any(a >= b for a, b in itertools.pairwise(offsets)):
            raise UsageError(f"slice offsets {offsets} do not increase")

    @property
    def key(self) -> str:
        """A name for messages and records, unique among the tasks of one GPU and Triton."""
        parts = [f"{self.kernel},K={self.K},R={self.R},S={self.S},chunk={self.chunk_size}"]
        parts.append(self.dtype)
        if self.slice_offsets is not None and self.S > 1:
            widths = itertools.pairwise(self.slice_offsets)
            parts.append("slices=" + "+".join(str(b - a) for a, b in widths))
        return ",".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what a config file's entry is found by."""
        return {
            "kernel": self.kernel,
            "K": self.K,
            "R": self.R,
            "S": self.S,
            "chunk_size": self.chunk_size,
        }

    @property
    def slice_widths(self) -> tuple[int, ...]:
        """Columns of each slice of expand's output; none for shrink."""
        return tuple(b - a for a, b in itertools.pairwise(self.slice_offsets or ()))

    def __str__(self) -> str:
        return f"{self.kernel} K={self.K} R={self.R} S={self.S} chunk {self.chunk_size}"


def offsets_from_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Boundaries of slices from their widths: (2048, 1024) -> (0, 2048, 3072)."""
    offsets = [0]
    for width in widths:
        offsets.append(offsets[-1] + width)
    return tuple(offsets)
