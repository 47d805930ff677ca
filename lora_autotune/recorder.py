"""Measure a whole space into a landscape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Evaluator
from lora_autotune.landscape import Landscape
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace
from lora_autotune.trial import Pruned, Trial


def record(
    evaluator: Evaluator,
    space: SearchSpace,
    *,
    note: Mapping[str, Any] | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Landscape:
    """Evaluate every config of a space and the default.

    Args:
        evaluator: one that prunes nothing.
        space: what is measured.
        note: what else belongs in the header.
        on_trial: called with each finished trial.

    Raises:
        EvaluatorError: the machine cannot evaluate anything.
        UsageError: a config was pruned; said at once, not after minutes of measuring.
    """
    default = DEFAULT_CONFIGS[evaluator.task.kernel]
    configs = [default, *(config for config in space if config != default)]
    waiting = iter(configs)
    finished = {}
    for config in islice(waiting, evaluator.capacity):
        evaluator.submit(config)
    for _ in configs:
        trial = evaluator.collect()
        for config in islice(waiting, 1):
            evaluator.submit(config)
        if isinstance(trial.outcome, Pruned):
            raise UsageError(
                f"{trial.config} was pruned ({trial.outcome.rule})",
                hint="record with an evaluator that measures every config in full",
            )
        finished[trial.config] = trial
        if on_trial is not None:
            on_trial(trial)
    return Landscape(
        task=evaluator.task,
        workload=evaluator.workload,
        platform=evaluator.platform,
        space=space,
        trials={config: finished[config] for config in configs},
        note=note or {},
    )
