"""Two winners of one task and the default, measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lora_autotune.evaluator import Evaluator
from lora_autotune.finalist import paired_default
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.trial import Failure

Times = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A config of one task, measured beside the default.

    Attributes:
        us: median over the rounds, for each batch.
        ratios: the same of its time over the default's in the same round.
    """

    config: str
    us: Times
    ratios: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task on the batches of one preset; ``noise`` as in :func:`paired_default`."""

    task: str
    default_us: Times
    published: Side
    workload: Side
    noise: float


def beside_default(
    evaluator: Evaluator, configs: Sequence[Config], rounds: int
) -> tuple[list[Times], list[list[Times]], float] | None:
    """(the default's times of each round, each config's, noise); None where one of them fails.

    A config is measured once, whoever has it: two graphs of one kernel on one small batch were seen
    to differ by 8%.
    """
    default = DEFAULT_CONFIGS[evaluator.task.kernel]
    others = [config for config in dict.fromkeys(configs) if config != default]
    results = evaluator.remeasure([default, *others, default], rounds=rounds)
    if any(isinstance(one, Failure) for times in results for one in times):
        return None
    first, *series, last = results
    base, noise = paired_default(first, last, evaluator.workload)
    times_of = {default: base, **dict(zip(others, series, strict=True))}
    return base, [times_of[config] for config in configs], noise


def side_by_side(evaluator: Evaluator, configs: Sequence[Config], rounds: int) -> Row | None:
    """Two configs and the default, interleaved; None where one of them fails."""
    found = beside_default(evaluator, configs, rounds)
    if found is None:
        return None
    base, series, noise = found
    published, workload = (
        Side(config=str(config), us=medians(times), ratios=medians(relative(times, base)))
        for config, times in zip(configs, series, strict=True)
    )
    return Row(
        task=str(evaluator.task),
        default_us=medians(base),
        published=published,
        workload=workload,
        noise=noise,
    )


def relative(times: Sequence[Times], base: Sequence[Times]) -> list[Times]:
    """The times of each round over the default's of that round."""
    pairs = zip(times, base, strict=True)
    return [tuple(own / other for own, other in zip(*pair, strict=True)) for pair in pairs]


def medians(rounds: Sequence[Times]) -> Times:
    """Of each batch, over the rounds."""
    return tuple(median(column) for column in zip(*rounds, strict=True))
