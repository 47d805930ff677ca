"""One task's share of the pipeline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_autotune.evaluators.subject import Subject
from lora_autotune.pruning import Standings
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.trial import Outcome, Trial

if TYPE_CHECKING:
    from lora_autotune.evaluators.candidate import Candidate


@dataclass(eq=False, slots=True)
class Lane:
    """One task's share of the pipeline.

    Attributes:
        subject: what its candidates are measured on.
        patient: candidates that compile slowly are measured too, after all others.
        finished: trials that nobody collected yet.
        in_flight: candidates that are not finished.
        trouble: why its candidates cannot be measured at all.
        preparing: what is compiled, or was, for contests; and the default.
        default_compute_s: seconds of computing that compiling the default took, None: not known.
        standings: what the next candidate is compared with.
    """

    subject: Subject
    patient: bool
    finished: deque[Trial] = field(default_factory=deque)
    in_flight: int = 0
    trouble: str | None = None
    default_compute_s: float | None = None
    compiled: set[Config] = field(default_factory=set)
    preparing: dict[Config, Candidate] = field(default_factory=dict)
    standings: Standings = field(default_factory=Standings)

    @property
    def prepared(self) -> bool:
        """Whether all of that is compiled."""
        return all(candidate.compiled is not None for candidate in self.preparing.values())

    def learn(self, config: Config, outcome: Outcome) -> None:
        """Keep the standings up to date."""
        subject = self.subject
        is_default = config == DEFAULT_CONFIGS[subject.task.kernel]
        self.standings = self.standings.after(outcome, subject.workload, is_default=is_default)
