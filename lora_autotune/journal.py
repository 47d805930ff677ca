"""The durable record of every trial: an Optuna journal, one study for each task.

Every strategy's run is recorded alike, so that Optuna's dashboard and plots open any of them. A
trial's value is its weighted mean time in microseconds, which is known before the default's is.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_autotune.errors import JournalError
from lora_autotune.evaluator import Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace, named_space
from lora_autotune.task import Task, Workload
from lora_autotune.trial import (
    Failure,
    Measurement,
    Outcome,
    Pruned,
    Resources,
    Trial,
    mean_time_us,
)

_IDENTITY = "lora_autotune"
_TRIAL = "trial"
_LINE_START = b'{"op_code":'
_STATES = {
    Measurement: TrialState.COMPLETE,
    Failure: TrialState.FAIL,
    Pruned: TrialState.PRUNED,
}


class Journal:
    """A journal file with the records of any number of tasks.

    A last line that a crash tore is cut off; every line before it was acknowledged. Any number of
    processes may have a journal open and lose no trial.

    Args:
        path: the file; made where there is none.
        fresh: begin without trials. A file that has some is kept under the next free name,
            tune.journal as tune-1.journal.

    Attributes:
        aside: where an earlier record was moved to, if so.

    Raises:
        JournalError: the file is no journal (it is left as it is), is damaged, or cannot be
            written; or ``fresh`` and somebody else has it open.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self.aside: Path | None = None
        with _speaking_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check(path)
            self._lock = _Lock(path)
            self._use = _Use(path, owner=self._lock, alone=fresh)
            self._storage = self._opened()
            if fresh and self._has_trials():
                self.aside = _next_free(path)
                path.rename(self.aside)
                self._storage = self._opened()
            self._use.share()

    def _opened(self) -> JournalStorage:
        with self._lock, _replaying(self.path):
            return JournalStorage(JournalFileBackend(str(self.path), lock_obj=self._lock))

    def _has_trials(self) -> bool:
        studies = self._storage.get_all_studies()
        return any(self._storage.get_n_trials(study._study_id) for study in studies)  # noqa: SLF001

    def __enter__(self) -> Journal:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others begin afresh at this path; the records are not to be used any more."""
        self._use.end()

    def check_resumable(self, tasks: Collection[Task]) -> None:
        """Raise JournalError when the journal holds tasks, but none of these."""
        held = self._names()
        if held and not {task.key for task in tasks} & set(held):
            raise JournalError(
                f"{self.path} is a record of other tasks: {'; '.join(held)}",
                hint="leave out --resume to add tasks to it, or name another --journal",
            )

    def _names(self) -> list[str]:
        return [study.study_name for study in self._storage.get_all_studies()]

    def open(
        self,
        task: Task,
        workload: Workload,
        platform: Platform,
        *,
        space: SearchSpace | None = None,
        replayed: bool = False,
        resume: bool = False,
    ) -> TaskRecord:
        """The record of a task, new or continued; None is the wide space, as in ``tune``.

        Raises:
            JournalError: it has trials and ``resume`` is false, or they were made on another
                workload, GPU, Triton, kernels (or another version of them) or space, or are
                replayed where these are not.
        """
        space = space or named_space("wide", task.kernel)
        identity = {
            "task": task.key,
            "workload": " ".join(f"{i}x{i.weight:g}" for i in workload),
            **platform.identity,
            "kernels_version": platform.kernels_version,
            "replayed": replayed,
            "space": {name: list(axis) for name, axis in space.axes.items()},
        }
        with _speaking_of(self.path), self._lock, _quiet():
            # Not load_if_exists: that writes to the file even when the study is there.
            make = optuna.load_study if task.key in self._names() else optuna.create_study
            study = make(study_name=task.key, storage=self._storage)
            held = study.get_trials(deepcopy=False)
            if not held:
                study.set_user_attr(_IDENTITY, identity)
            recorded = study.user_attrs.get(_IDENTITY, {})
        for name, value in identity.items():
            not_known = name == "kernels_version" and None in (recorded.get(name), value)
            if recorded.get(name) != value and not not_known:
                raise JournalError(
                    f"{self.path} has {task} on {name} {recorded.get(name)!r}, not {value!r}",
                    hint="name another --journal",
                )
        if held and not resume:
            raise JournalError(
                f"{self.path} already has {len(held)} trials of {task}",
                hint="continue with --resume, or name another --journal",
            )
        with _replaying(self.path):
            known = [_to_trial(frozen) for frozen in held if frozen.state.is_finished()]
        return TaskRecord(self.path, study, workload, known, _distributions(task, space))


class TaskRecord:
    """The trials of one task.

    Attributes:
        trials: what was known when the record was opened, without costs, and what was appended.
    """

    def __init__(
        self,
        path: Path,
        study: optuna.Study,
        workload: Workload,
        trials: list[Trial],
        distributions: Mapping[str, CategoricalDistribution],
    ) -> None:
        self.trials = trials
        self._path = path
        self._study = study
        self._workload = workload
        self._distributions = distributions

    def append(self, trial: Trial) -> None:
        """Make a trial durable: it is on the disk when this returns. Raises JournalError."""
        frozen = _to_frozen(trial, self._workload, self._distributions)
        with _speaking_of(self._path):
            self._study.add_trial(frozen)
        self.trials.append(trial)


def _distributions(task: Task, space: SearchSpace) -> dict[str, CategoricalDistribution]:
    """The values on each axis and the default's; None is "absent".

    Categorical, because "absent" is no number; and alike in every trial, because Optuna's
    importances ignore a parameter that a trial lacks or draws from other choices.
    """
    default = DEFAULT_CONFIGS[task.kernel]
    return {name: _choices({*axis, getattr(default, name)}) for name, axis in space.axes.items()}


def _choices(values: Collection[Any]) -> CategoricalDistribution:
    return CategoricalDistribution(sorted(values, key=lambda value: value or 0))


def _to_frozen(
    trial: Trial, workload: Workload, distributions: Mapping[str, CategoricalDistribution]
) -> FrozenTrial:
    # Optuna's plots and dashboard read parameters and values; we read the attribute back.
    params = {name: getattr(trial.config, name) for name in distributions}
    value = None
    if isinstance(trial.outcome, Measurement):
        value = mean_time_us(trial.outcome.times_us, workload)
    frozen: FrozenTrial = create_trial(
        state=_STATES[type(trial.outcome)],
        value=value,
        params=params,
        distributions={
            name: axis if params[name] in axis.choices else _choices({*axis.choices, params[name]})
            for name, axis in distributions.items()
        },
        user_attrs={
            _TRIAL: {
                "config": trial.config.as_dict(),
                "outcome": type(trial.outcome).__name__,
                **asdict(trial.outcome),
                "compile_s": trial.compile_s,
                "foretold": trial.foretold,
                "resources": None if trial.resources is None else asdict(trial.resources),
            }
        },
    )
    return frozen


def _to_trial(frozen: FrozenTrial) -> Trial:
    attrs: dict[str, Any] = dict(frozen.user_attrs[_TRIAL])
    config = Config.from_dict(attrs.pop("config"))
    compile_s, resources = attrs.pop("compile_s"), attrs.pop("resources")
    foretold = attrs.pop("foretold", False)
    kind = attrs.pop("outcome")
    if "times_us" in attrs:
        attrs["times_us"] = tuple(attrs["times_us"])
    outcomes: dict[str, type[Outcome]] = {kind.__name__: kind for kind in _STATES}
    return Trial(
        config=config,
        outcome=outcomes[kind](**attrs),
        compile_s=compile_s,
        resources=None if resources is None else Resources(**resources),
        foretold=foretold,
    )


def _check(path: Path) -> None:
    """Raise JournalError unless there is a journal, an empty file or none; only reads."""
    if not path.exists():
        return
    if not path.is_file():
        raise JournalError(f"{path} is not a journal", hint="name another --journal")
    with path.open("rb") as file:
        if not _LINE_START.startswith(file.read(len(_LINE_START))):
            raise JournalError(f"{path} is not a journal", hint="name another --journal")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and not _is_operation(line):
                raise JournalError(
                    f"{path} is damaged at line {number}", hint="name another --journal"
                )


def _is_operation(line: bytes) -> bool:
    try:
        operation = json.loads(line)
    except ValueError:
        return False
    return isinstance(operation, dict) and "op_code" in operation


class _Lock(JournalFileOpenLock):
    """Optuna's lock, as a lock of the kernel on the journal itself; nests within a process.

    Optuna's own is a file: one that a killed process leaves behind stops the next for 30 seconds.
    This one goes with its process. Whoever gets it cuts off what a killed writer left unfinished,
    so that nothing is ever glued to a torn line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._depth = 0
        self._descriptor = -1

    def acquire(self) -> bool:
        if self._depth == 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                _cut_torn_line(self._descriptor)
            except BaseException:
                os.close(self._descriptor)
                raise
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            os.close(self._descriptor)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _Use:
    """A lock of the kernel for as long as a journal is open: nobody renames it meanwhile.

    It is on an empty hidden file beside the journal, which stays there: the journal itself is
    locked for single appends, and goes when it is renamed. (The journal's name with ".lock" is a
    file that Optuna's dashboard makes and removes.)
    """

    def __init__(self, path: Path, *, owner: object, alone: bool) -> None:
        hidden = path.with_name(f".{path.name}")
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o644)
        self.end = weakref.finalize(owner, os.close, self._descriptor)
        if not alone:
            self.share()
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.end()
            raise JournalError(
                f"{path} is in use by another run", hint="name another --journal"
            ) from None

    def share(self) -> None:
        """Let in whoever does not ask to be alone."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)


def _next_free(path: Path) -> Path:
    numbers = itertools.count(1)
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in numbers)
    return next(name for name in names if not name.exists())


def _cut_torn_line(descriptor: int) -> None:
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        end = start if newline < 0 else start + newline + 1
        if newline >= 0:
            break
    os.ftruncate(descriptor, end)


@contextlib.contextmanager
def _speaking_of(path: Path) -> Iterator[None]:
    """What goes wrong inside is about this journal."""
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{path} cannot be used: {error.strerror or error}", hint="name another --journal"
        ) from error


@contextlib.contextmanager
def _replaying(path: Path) -> Iterator[None]:
    """Lines of JSON that do not make sense to Optuna, or trials that do not to us, are damage."""
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
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
