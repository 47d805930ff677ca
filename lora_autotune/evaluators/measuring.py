"""The bench worker's jobs: load, check and time candidates on the GPU, one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
import triton
from triton.runtime.errors import OutOfResources

from lora_autotune.evaluators.bounds import DEFAULT_STAGES, DEFAULT_WARPS
from lora_autotune.evaluators.correctness import difference_from_reference
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.subject import Reply, Subject
from lora_autotune.evaluators.timing import (
    Bench,
    GraphTimer,
    compiled_resources,
    make_bench,
    median_time_us,
)
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.pruning import GIVE_UP, Standings, pruned, telling_order
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task
from lora_autotune.trial import (
    Failure,
    Measurement,
    Pruned,
    Resources,
)

MAX_SPILL_WORDS = 256
"""On the shipped landscapes every config that spills more is over 1.2 times the best's time."""

PLACES = 4
"""Sets of operands that a contest is held on: where they lie in memory makes up to 5% between two
configs, 0.8% at the median (H100)."""

MAX_PREPARED = 12
"""Subjects whose operands are kept on the GPU at a time."""


class TooLargeError(Exception):
    """A subject's operands do not fit the GPU, even alone."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    benches: Sequence[Bench]
    generator: torch.Generator


_operands: dict[Subject, _Prepared] = {}
_right: set[tuple[Task, str, Hashable]] = set()
"""Launches that were seen to compute the right thing."""
_gpu: Gpu


def set_up(cache_dir: str) -> None:
    """Open the GPU, and take compiled kernels from a Triton cache."""
    global _gpu  # noqa: PLW0603 - a worker process has one state, set once
    os.environ["TRITON_CACHE_DIR"] = cache_dir
    if torch.cuda.is_available():
        try:
            _gpu = _describe()
        except RuntimeError as error:  # a GPU that is full, or lost: this process is of no use
            raise SystemExit(str(error).splitlines()[0]) from error


def describe() -> Gpu | str:
    """The GPU, or why there is none."""
    if not torch.cuda.is_available():
        built = "has no CUDA in it" if torch.version.cuda is None else "sees no CUDA device"
        return f"torch {torch.__version__} {built}"
    return _gpu


def _describe() -> Gpu:
    properties = torch.cuda.get_device_properties(0)
    limits = triton.runtime.driver.active.utils.get_device_properties(0)
    return Gpu(
        name=properties.name,
        capability=properties.major * 10 + properties.minor,
        multiprocessors=properties.multi_processor_count,
        smem_bytes=limits["max_shared_mem"],
        l2_bytes=properties.L2_cache_size,
        triton=triton.__version__,
    )


def _prepare(subject: Subject) -> _Prepared:
    """A subject's operands on the GPU; the longest unused go where there is no room."""
    prepared = _operands.pop(subject, None)
    if prepared is None:
        with contextlib.suppress(torch.OutOfMemoryError):
            prepared = _prepared(subject)
    if prepared is None:
        _make_room(subject)
        try:
            prepared = _prepared(subject)
        except torch.OutOfMemoryError as error:
            raise TooLargeError(str(error).splitlines()[0]) from error
    _operands[subject] = prepared
    if len(_operands) > MAX_PREPARED:
        del _operands[next(iter(_operands))]
    return prepared


def _make_room(subject: Subject) -> None:
    """Let go of the operands of all other subjects: it may be they that fill the GPU."""
    for other in set(_operands) - {subject}:
        del _operands[other]
    torch.cuda.empty_cache()


def _prepared(subject: Subject) -> _Prepared:
    benches = _make_benches(subject)
    return _Prepared(benches, torch.Generator("cuda").manual_seed(subject.seed))


def _make_benches(subject: Subject, place: int = 0) -> list[Bench]:
    """One for each batch; those of another place have other random operands, too."""
    count = len(subject.workload)
    return [
        make_bench(
            subject.task,
            instance,
            gpu=_gpu,
            seed=subject.seed + place * count + i,
            kernels=subject.kernels,
        )
        for i, instance in enumerate(subject.workload)
    ]


def measure(subject: Subject, config: Config, standings: Standings) -> Reply | str:
    """Check a compiled candidate, then time it on every instance, or until it is clearly behind.

    Args:
        subject: what it is measured on.
        config: the candidate.
        standings: what it has to be compared with. While nothing is known, and where the subject
            does not prune, it is timed in full.

    Returns:
        What came of it; or why the subject cannot be measured at all.
    """
    try:
        return _measured(subject, config, standings)
    except TooLargeError as error:
        return f"the workload does not fit the GPU's memory: {error}"
    except RuntimeError as error:
        if _is_out_of_memory(error):
            if len(_operands) < 2:
                failure = Failure(kind="memory", message=str(error).splitlines()[0])
                return Reply(outcome=failure)
            _make_room(subject)
            return measure(subject, config, standings)
        if "CUDA" not in str(error) and "Triton Error" not in str(error):
            raise
        message = str(error).splitlines()[0][:300]
        return Reply(outcome=Failure(kind="crash", message=message), context_lost=True)


def _measured(subject: Subject, config: Config, standings: Standings) -> Reply:
    prepared = _prepare(subject)
    resources = _checked(subject, config, prepared)
    if isinstance(resources, Failure):
        return Reply(outcome=resources)
    default = DEFAULT_CONFIGS[subject.task.kernel]
    hopeless = resources.spill_words > MAX_SPILL_WORDS and config != default
    if subject.prune and hopeless:
        rule = f"spills {resources.spill_words} words a thread, over {MAX_SPILL_WORDS}"
        return Reply(outcome=Pruned(rule=rule), resources=resources)
    if not subject.prune:
        standings = Standings()
    return Reply(outcome=_timed(subject, config, prepared.benches, standings), resources=resources)


def _timed(
    subject: Subject, config: Config, benches: Sequence[Bench], standings: Standings
) -> Measurement | Pruned:
    """Time a candidate on one instance after the other, until it is clearly behind."""
    workload = subject.workload
    times_us: dict[int, float] = {}
    coarse = False
    for place in telling_order(workload):
        bench = benches[place]
        launch = _launch_of(config, bench.schedule(config))
        known, known_us = bench.known_us.get(launch, (config, 0.0))
        if known != config and subject.prune:
            torch.cuda.synchronize()  # its check may have crashed
            times_us[place] = known_us
            continue
        limits_us = {
            replays: standings.limit_us(factor, times_us, place, workload)
            for replays, factor in GIVE_UP.items()
        }
        times_us[place], coarse = median_time_us(GraphTimer(bench, config), limits_us)
        if coarse and len(times_us) < len(workload):
            return pruned(times_us, workload)
        if not coarse:
            bench.known_us[launch] = config, times_us[place]
    return Measurement(times_us=tuple(times_us[i] for i in range(len(workload))), coarse=coarse)


def _launch_of(config: Config, schedule: Schedule) -> Hashable:
    """What a launch is made of besides its batch: configs that are alike in this are one."""
    chosen = schedule.applied_to(config.as_dict())
    keys = {"num_warps": DEFAULT_WARPS, "num_stages": DEFAULT_STAGES, **chosen}
    return tuple(sorted(keys.items())), replace(schedule, config=None, tile=None)


def _checked(subject: Subject, config: Config, prepared: _Prepared) -> Resources | Failure:
    """A config's resources; or why it does not run, or computes the wrong thing.

    Those that are not from the config count only where there are no others.
    """
    try:
        schedules = [bench.schedule(config) for bench in prepared.benches]
        found = [compiled_resources(bench.launches(config)[0]()) for bench in prepared.benches]
        for schedule in set(schedules):
            way = subject.task, subject.kernels, _launch_of(config, schedule)
            if way in _right:
                continue
            wrong = difference_from_reference(
                subject.task, config, schedule, prepared.generator, kernels=subject.kernels
            )
            if wrong is not None:
                return Failure(kind="wrong", message=wrong)
            _right.add(way)
    except OutOfResources as error:
        return Failure(kind="resources", message=str(error)[:300])
    pairs = zip(found, schedules, strict=True)
    own = [one for one, schedule in pairs if schedule.config is None] or found
    registers, spill_words, smem_bytes = (max(column) for column in zip(*own, strict=True))
    return Resources(registers=registers, spill_words=spill_words, smem_bytes=smem_bytes)


def remeasure(
    subject: Subject, configs: Sequence[Config], rounds: int
) -> list[list[tuple[float, ...] | Failure]] | str:
    """Time configs against each other, interleaved; see Evaluator.remeasure and measure.

    The rounds are shared out among PLACES sets of operands, or one where no more fit.
    """
    try:
        return _remeasured(subject, configs, rounds, PLACES)
    except TooLargeError as error:
        return f"the workload does not fit the GPU's memory: {error}"
    except RuntimeError as error:  # the context may be lost, and this process with it
        raise SystemExit(str(error).splitlines()[0]) from error


def _remeasured(
    subject: Subject, configs: Sequence[Config], rounds: int, places: int
) -> list[list[tuple[float, ...] | Failure]]:
    try:
        return _in_places(subject, configs, rounds, places)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        if len(_operands) > 1:
            _make_room(subject)
        elif places > 1:
            places = 1
        else:
            raise
    torch.cuda.empty_cache()
    return _remeasured(subject, configs, rounds, places)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of torch's allocator, or of a graph's or Triton's own."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _in_places(
    subject: Subject, configs: Sequence[Config], rounds: int, places: int
) -> list[list[tuple[float, ...] | Failure]]:
    """Interleaved, a share of the rounds on each of so many sets of operands."""
    prepared = _prepare(subject)
    results: list[list[tuple[float, ...] | Failure]] = [[] for _ in configs]
    for config, result in zip(configs, results, strict=True):
        checked = _checked(subject, config, prepared)
        if isinstance(checked, Failure):
            result.extend([checked] * rounds)
    running = [turn for turn, result in enumerate(results) if not result]
    held = [prepared.benches]  # what were let go of would be where the next ones lie
    for place in range(min(places, rounds)):
        if place:
            held.append(_make_benches(subject, place))
        for bench, first in zip(held[-1], held[0], strict=True):
            bench.rotations = first.rotations
        share = (rounds + places - 1 - place) // places
        times = _interleaved(held[-1], [configs[turn] for turn in running], share)
        for turn, more in zip(running, times, strict=True):
            results[turn].extend(more)
    return results


def _interleaved(
    benches: Sequence[Bench], configs: Sequence[Config], rounds: int
) -> list[list[tuple[float, ...]]]:
    """The times of configs that are loaded: a graph cannot do that."""
    timers = {
        config: [GraphTimer(bench, config) for bench in benches]
        for config in dict.fromkeys(configs)
    }
    for config, graphs in timers.items():  # a fast one may have made the graphs of others too short
        timers[config] = [
            timer if timer.rotations == bench.rotations else GraphTimer(bench, config)
            for timer, bench in zip(graphs, benches, strict=True)
        ]
    results: list[list[tuple[float, ...]]] = [[] for _ in configs]
    for _ in range(rounds):
        for config, result in zip(configs, results, strict=True):
            result.append(_in_turn(timers[config]))
    return results


def _in_turn(graphs: Sequence[GraphTimer]) -> tuple[float, ...]:
    """Each graph's time, after a replay that makes it forget whose turn it was before."""
    times_us = []
    for timer in graphs:
        timer.time_us()
        times_us.append(timer.time_us())
    return tuple(times_us)
