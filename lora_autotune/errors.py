"""Every error the project raises on purpose.

    LoraAutotuneError
    |-- UsageError            an argument, a task or a space that makes no sense
    |-- ConfigFileError       a config file that is not what the schema says
    |-- LandscapeError        a recorded landscape that cannot be replayed
    |-- JournalError          a record that cannot be read, written or continued
    |-- ModelError            a model description without the fields that tasks need
    |-- DeviceUnknownError    nobody said which GPU or Triton version is meant, and none is here
    `-- EvaluatorError        the machine cannot evaluate anything (no CUDA, out of memory, ...)

A candidate that does not compile, crashes or computes the wrong thing is none of these: it is a
:class:`lora_autotune.trial.Failure`, and it is recorded.
"""

from __future__ import annotations


class LoraAutotuneError(Exception):
    """A failure with one clear message and, where there is one, a hint: what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(LoraAutotuneError):
    """An argument, a task or a space that makes no sense."""


class ConfigFileError(LoraAutotuneError):
    """A config file that is not what the schema says; the message names the file."""


class LandscapeError(LoraAutotuneError):
    """A recorded landscape that cannot be replayed; the message names the file."""


class JournalError(LoraAutotuneError):
    """A record that cannot be read, written or continued; the message names the file."""


class ModelError(LoraAutotuneError):
    """A model description that lacks what tasks are made from; the message names the fields."""


class DeviceUnknownError(LoraAutotuneError):
    """Nobody said which GPU or Triton version is meant, and this machine has none."""


class EvaluatorError(LoraAutotuneError):
    """This machine cannot evaluate the task at all."""
