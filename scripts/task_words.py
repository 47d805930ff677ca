"""A task as one word on a command line: what the benchmark's processes tell each other."""

from __future__ import annotations

import json
from dataclasses import asdict

from lora_autotune.task import Task


def to_word(task: Task) -> str:
    return json.dumps(asdict(task))


def from_word(word: str) -> Task:
    fields = json.loads(word)
    offsets = fields.pop("slice_offsets")
    return Task(**fields, slice_offsets=None if offsets is None else tuple(offsets))
