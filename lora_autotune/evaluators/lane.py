"""One task's share of the pipeline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from lora_autotune.evaluators.subject import Subject
from lora_autotune.pruning import Standings
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.trial import Outcome, Trial


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
