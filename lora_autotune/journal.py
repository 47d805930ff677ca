"""The durable record of every trial: an Optuna journal, one study for each task.

Every strategy's run is recorded alike, so that Optuna's dashboard and plots open any of them. A
trial's value is its weighted mean time in microseconds, which is known before the default's is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_autotune.errors import JournalError
from lora_autotune.evaluator import Platform
from lora_autotune.space import Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure, Measurement, Outcome, Pruned, Resources, Trial

_IDENTITY = "lora_autotune"
_TRIAL = "trial"
_STATES = {
    Measurement: TrialState.COMPLETE,
    Failure: TrialState.FAIL,
    Pruned: TrialState.PRUNED,
}


class Journal:
    """A journal file with the records of any number of tasks.

    A last line that a crash tore is cut off on opening; every line before it was acknowledged.

    Raises:
        JournalError: the file is no journal, is damaged in its middle, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _speaking_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = JournalFileOpenLock(str(path))
            if path.exists():
                lock.acquire()
                try:
                    _cut_torn_line(path)
                finally:
                    lock.release()
            self._storage = JournalStorage(JournalFileBackend(str(path), lock_obj=lock))

    def open(
        self, task: Task, workload: Workload, platform: Platform, *, resume: bool = False
    ) -> TaskRecord:
        """The record of a task, new or continued.

        Raises:
            JournalError: it has trials and ``resume`` is false, or it was made on another
                workload, GPU, Triton or kernels.
        """
        identity = {
            "task": task.key,
            "workload": " ".join(f"{i}x{i.weight:g}" for i in workload),
            **asdict(platform),
        }
        with _speaking_of(self.path), _quiet():
            study = optuna.create_study(
                storage=self._storage, study_name=task.key, load_if_exists=True
            )
            recorded = study.user_attrs.get(_IDENTITY)
            if recorded is None:
                study.set_user_attr(_IDENTITY, identity)
            known = [_to_trial(frozen) for frozen in study.get_trials(deepcopy=False)]
        for name, value in identity.items():
            if recorded is not None and recorded.get(name) != value:
                raise JournalError(
                    f"{self.path} has {task} on {name} {recorded.get(name)!r}, not {value!r}",
                    hint="name another --journal",
                )
        if known and not resume:
            raise JournalError(
                f"{self.path} already has {len(known)} trials of {task}",
                hint="continue with --resume, or name another --journal",
            )
        return TaskRecord(self.path, study, workload, known)


class TaskRecord:
    """The trials of one task.

    Attributes:
        trials: what was known when the record was opened, without costs.
    """

    def __init__(
        self, path: Path, study: optuna.Study, workload: Workload, trials: list[Trial]
    ) -> None:
        self.trials = trials
        self._path = path
        self._study = study
        self._workload = workload

    def append(self, trial: Trial) -> None:
        """Make a trial durable: it is on the disk when this returns. Raises JournalError."""
        with _speaking_of(self._path):
            self._study.add_trial(_to_frozen(trial, self._workload))


def _to_frozen(trial: Trial, workload: Workload) -> FrozenTrial:
    # Optuna's plots and dashboard read parameters and values; we read the attribute back.
    params = trial.config.as_dict()
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution((value,)) for name, value in params.items()
    }
    value = None
    if isinstance(trial.outcome, Measurement):
        pairs = zip(workload, trial.outcome.times_us, strict=True)
        value = sum(i.weight * us for i, us in pairs) / sum(i.weight for i in workload)
    frozen: FrozenTrial = create_trial(
        state=_STATES[type(trial.outcome)],
        value=value,
        params=params,
        distributions=distributions,
        user_attrs={
            _TRIAL: {
                "config": params,
                "outcome": type(trial.outcome).__name__,
                **asdict(trial.outcome),
                "compile_s": trial.compile_s,
                "resources": None if trial.resources is None else asdict(trial.resources),
            }
        },
    )
    return frozen


def _to_trial(frozen: FrozenTrial) -> Trial:
    attrs: dict[str, Any] = dict(frozen.user_attrs[_TRIAL])
    config = Config.from_dict(attrs.pop("config"))
    compile_s, resources = attrs.pop("compile_s"), attrs.pop("resources")
    kind = attrs.pop("outcome")
    if "times_us" in attrs:
        attrs["times_us"] = tuple(attrs["times_us"])
    outcomes: dict[str, type[Outcome]] = {kind.__name__: kind for kind in _STATES}
    return Trial(
        config=config,
        outcome=outcomes[kind](**attrs),
        compile_s=compile_s,
        resources=None if resources is None else Resources(**resources),
    )


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if not content.startswith(b'{"op_code"') and content:
            raise JournalError(f"{path} is not a journal", hint="name another --journal")
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())


@contextlib.contextmanager
def _speaking_of(path: Path) -> Iterator[None]:
    """What goes wrong inside is about this journal."""
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{path} cannot be used: {error.strerror or error}", hint="name another --journal"
        ) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise JournalError(
            f"{path} is damaged: {type(error).__name__}: {error}", hint="name another --journal"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
