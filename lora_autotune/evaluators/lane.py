"""One task's share of the pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
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
        standings: what the next candidate is compared with.
    """

    subject: Subject
    patient: bool
    finished: deque[Trial] = field(default_factory=deque)
    in_flight: int = 0
    trouble: str | None = None
    compiled: set[Config] = field(default_factory=set)
    preparing: dict[Config, Candidate] = field(default_factory=dict)
    standings: Standings = field(default_factory=Standings)

    def prepared(self, configs: Container[Config]) -> bool:
        """Whether none of these is still to be compiled for a contest."""
        return not any(
            config in configs and candidate.compiled is None
            for config, candidate in self.preparing.items()
        )

    @property
    def default(self) -> Config:
        """What all its candidates are compared with."""
        return DEFAULT_CONFIGS[self.subject.task.kernel]

    @property
    def awaits_default(self) -> bool:
        """Whether that is being compiled."""
        candidate = self.preparing.get(self.default)
        return candidate is not None and candidate.compiled is None

    @property
    def default_compute_s(self) -> float | None:
        """Seconds of computing that compiling it took; None: not known."""
        candidate = self.preparing.get(self.default)
        compiled = None if candidate is None else candidate.compiled
        return None if compiled is None or compiled.failure is not None else compiled.compute_s

    def learn(self, config: Config, outcome: Outcome) -> None:
        """Keep the standings up to date."""
        subject = self.subject
        self.standings = self.standings.after(
            outcome, subject.workload, is_default=config == self.default
        )
