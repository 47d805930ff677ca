"""What came of one configuration: a measurement, a failure, or a candidate dropped early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lora_autotune.space import Config
from lora_autotune.task import Workload

FailureKind = Literal["compile", "timeout", "resources", "crash", "wrong", "memory"]
"""Why a candidate failed: the compiler refused it; it took too long to compile or to run; it needs
more shared memory, registers or threads than the device has; it crashed its process or the CUDA
context; its result differs from the reference; the device ran out of memory."""

MAX_REGRESSION = 0.02
"""How much slower than the default a winner may be on any one instance, unless somebody says."""

REGRESSION_PRICE = 2.0
"""Cost of each unit that a config is slower than that: more than any instance's weight can give."""

FAILURE_KINDS: tuple[str, ...] = get_args(FailureKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a compiled kernel needs on the device.

    Attributes:
        registers: registers per thread.
        spill_words: words of four bytes spilled to local memory, per thread: Triton's ``n_spills``.
        smem_bytes: shared memory per program.
    """

    registers: int
    spill_words: int
    smem_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A candidate that runs and computes the right thing.

    Attributes:
        times_us: median time of one launch for each instance of the workload, in its order.
        coarse: stopped after few repeats because it was clearly behind the best.
    """

    times_us: tuple[float, ...]
    coarse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A candidate that cannot be used, and why."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A candidate dropped before it was timed in full, by a rule that says it cannot win.

    Attributes:
        rule: the rule, in words.
        times_us: what was timed before it was dropped: a time for each instance of the workload,
            None where there is none. Empty: it was not timed at all.
    """

    rule: str
    times_us: tuple[float | None, ...] = ()


Outcome = Measurement | Failure | Pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration and what came of it.

    Attributes:
        config: the configuration.
        outcome: its measurement, its failure, or the rule that pruned it.
        cost: what a strategy minimises, see :func:`tuning_cost` (1.0: the default's); of one that
            was pruned after some instances, an estimate. None without times.
        compile_s: seconds that compiling took, None when unknown.
        resources: what the compiled kernel needs, None when unknown.
        foretold: its failure was certain before it was compiled; it cost nothing.
    """

    config: Config
    outcome: Outcome
    cost: float | None = None
    compile_s: float | None = None
    resources: Resources | None = None
    foretold: bool = False


def relative_cost(
    times_us: tuple[float, ...], baseline_us: tuple[float, ...], workload: Workload
) -> float:
    """Weighted mean of the times relative to a baseline's, dimensionless.

    Ratios, not microseconds, so that a 5 us decode launch counts as much as a 250 us prefill.
    """
    total = sum(instance.weight for instance in workload)
    ratios = (
        instance.weight * time / base
        for instance, time, base in zip(workload, times_us, baseline_us, strict=True)
    )
    return sum(ratios) / total


def tuning_cost(
    times_us: tuple[float, ...],
    default_us: tuple[float, ...],
    workload: Workload,
    max_regression: float = MAX_REGRESSION,
) -> float:
    """What strategies minimise: the relative cost, and a price for losing on an instance.

    A winner may lose no more than max_regression on any instance. What loses more is charged
    REGRESSION_PRICE times the excess: a search that only saw the mean would spend itself on configs
    that cannot win, and the price tells it how far from allowed each is.
    """
    worst = max(time / base for time, base in zip(times_us, default_us, strict=True))
    excess = max(0.0, worst - 1 - max_regression)
    return relative_cost(times_us, default_us, workload) + REGRESSION_PRICE * excess


def mean_time_us(times_us: tuple[float, ...], workload: Workload) -> float:
    """Weighted mean of the times, in microseconds: one number for people to read."""
    total = sum(instance.weight for instance in workload)
    pairs = zip(workload, times_us, strict=True)
    return sum(instance.weight * time for instance, time in pairs) / total
