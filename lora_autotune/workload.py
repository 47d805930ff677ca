"""The batches that a server runs: presets, files, its own traffic, and the chunk size of each.

A weight is a share of the time that the server spends in the kernels: a cost is then that time,
relative to the default's. What a share is follows from how often a batch is served and from
:func:`relative_step_time`.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.task import (
    DECODE,
    PHASES,
    PREFILL,
    SMALL_BATCH,
    SPREADS,
    Instance,
    Workload,
)

MOST_INSTANCES = 6
"""Batches that stand for a server's traffic at one chunk size: every candidate is timed on each."""

_SYNTAX = "TOKENS[:ADAPTERS|:each][,even|zipf][,decode|prefill][,graph=N][,ranks=R+R..]"

PRESETS: Mapping[str, Workload] = {
    # Steps of one token per request, from a lone request to the largest CUDA graph, over as many
    # adapters as a default server has slots. Alike in weight: how busy a server is nobody knows,
    # and a step of 128 requests takes about as long as one of 1.
    "decode": (
        Instance(tokens=1),
        Instance(tokens=32, adapters=8),
        Instance(tokens=128, adapters=8),
        Instance(tokens=256, adapters=8),
    ),
    # From one prompt of 512 tokens to the batch of 60 that published configs are tuned on. Alike in
    # weight: about what equally many tokens in each come to.
    "prefill": (
        Instance(tokens=512),
        Instance(tokens=4096, adapters=8, spread="zipf"),
        Instance(tokens=30_720),
    ),
    # No decoding. A lone query, which a user waits for; documents in batches small and large, whose
    # owners are of unequal size. Queries have half the weight of each kind of documents: a query
    # takes the time of 300 tokens, and documents are mostly longer.
    "embedding": (
        Instance(tokens=32, phase="prefill", weight=0.5),
        Instance(tokens=2048, adapters=8, spread="zipf"),
        Instance(tokens=30_720, adapters=8, spread="zipf"),
    ),
    # 60 prompts of 512 tokens, answered with 256 tokens each, 32 at a time: 480 decode steps of 1.1
    # for prefills of 103 (all at once) to 162 (one by one), in units of relative_step_time. So
    # decoding has 4 of 5 parts, most of them at the usual load; prefill has one, half of it lone
    # prompts.
    "chat": (
        Instance(tokens=32, adapters=8, weight=3.0),
        Instance(tokens=128, adapters=8, spread="zipf", weight=1.0),
        Instance(tokens=512, weight=0.5),
        Instance(tokens=8192, adapters=8, spread="zipf", weight=0.5),
    ),
}
"""What users know their server by. Few batches each: at chunk size 16 all of them are timed."""


def chunk_size_for(tokens: int, max_lora_chunk_size: int = 16) -> int:
    """The chunk size that a server picks for a batch.

    From 256 tokens on 128, from 64 on 32, else 16; and no more than its ``max_lora_chunk_size``,
    whose default is 16.
    """
    picked = 128 if tokens >= 256 else 32 if tokens >= 64 else 16
    return min(picked, max_lora_chunk_size)


def reaching(
    workload: Workload, chunk_size: int, max_lora_chunk_size: int | None = None
) -> Workload:
    """Those of some batches that a server runs at a chunk size, in their order.

    Without its ``max_lora_chunk_size`` every server is meant that can use the chunk size: of those
    the one whose ``max_lora_chunk_size`` it is has the most batches there.
    """
    limit = chunk_size if max_lora_chunk_size is None else max_lora_chunk_size
    return tuple(one for one in workload if chunk_size_for(one.tokens, limit) == chunk_size)


def workload_name(workload: Workload, chunk_size: int) -> str:
    """What tells some batches from others in the name of a file: letters, digits and dashes.

    The preset's name where they are those of a preset that reach the chunk size ("chat"), else
    their sizes: "tokens32-512x4" is 32 tokens in the usual way, over 8 adapters, and 512 over 4.
    Where that does not say all (weights, spreads, phases, ranks) eight digits of a SHA-256 follow.
    """
    shares = _shares(workload)
    for name, batches in PRESETS.items():
        reached = reaching(batches, chunk_size)
        if reached and _shares(reached) == shares:
            return name
    sizes = [_size(instance) for instance in workload[:MOST_INSTANCES]]
    plain = tuple(Instance(tokens=one.tokens, adapters=one.adapters) for one in workload)
    if len(sizes) < len(workload) or _shares(plain) != shares:
        sizes.append(hashlib.sha256("\n".join(shares).encode()).hexdigest()[:8])
    return "tokens" + "-".join(sizes)


def _shares(workload: Workload) -> list[str]:
    """Each batch with its part of the whole weight, to six digits."""
    total = sum(instance.weight for instance in workload)
    return [f"{instance} {instance.weight / total:.6f}" for instance in workload]


def _size(instance: Instance) -> str:
    usual = {one.tokens: one.adapters for one in (DECODE, SMALL_BATCH, PREFILL)}
    tokens, adapters = instance.tokens, instance.adapters
    return str(tokens) if usual.get(tokens) == adapters else f"{tokens}x{adapters}"


def relative_step_time(tokens: int) -> float:
    """About how long the kernels take for a step of so many tokens, relative to one of few.

    The published kernels take 1.78 ms of a decode step of 32 tokens and 182 ms of a prefill step of
    30,720 (Qwen3-0.6B, rank 64, chunk size 16, on an H200).
    """
    return 1 + tokens / 300


def named_workload(name: str) -> Workload:
    """A preset, or what a file says; a file with a preset's name is meant by ``./name``.

    Raises:
        UsageError: neither, or a file that cannot be read or makes no sense.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.exists():
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(PRESETS)}, a file"
        raise UsageError(f"no workload {name!r}", hint=hint)
    return read_workload(path)


def read_workload(path: Path) -> Workload:
    """The batches in a file: one a line, as :func:`parse_instance` has it, then its weight or 1.

    ::

        # what our server runs
        32:8            3       # a decode step: 32 requests, 8 adapters
        512:4,prefill   0.5
        8192:8,zipf,ranks=16+64

    Raises:
        UsageError: what cannot be read or makes no sense; the message names the file and line.
    """
    instances: dict[str, Instance] = {}
    for place, words in _lines(path):
        try:
            if len(words) > 2:
                raise UsageError(f"{_SYNTAX} and a weight belong here, not {' '.join(words)!r:.80}")
            weight = _number(words[1], "weight") if len(words) == 2 else 1.0
            instance = replace(parse_instance(words[0]), weight=weight)
            if str(instance) in instances:
                raise UsageError(f"{instance} is there twice")
        except UsageError as error:
            raise UsageError(f"{place}: {error.message}", hint=error.hint) from None
        instances[str(instance)] = instance
    return tuple(instances.values())


def workload_lines(workload: Workload) -> tuple[str, ...]:
    """The lines of a file that :func:`read_workload` reads as these batches."""
    return tuple(f"{instance} {instance.weight}" for instance in workload)


def parse_instance(text: str) -> Instance:
    """A batch as it is printed and typed: ``32:8``, ``4096:8,zipf,ranks=16+64``, ``64:each``.

    TOKENS[:ADAPTERS|:each][,even|zipf][,decode|prefill][,graph=N][,ranks=R+R..]. ADAPTERS is 1
    unless said, and "each" one for every token; the rest is explained at :class:`Instance`.

    Raises:
        UsageError: anything else.
    """
    size, *details = text.split(",")
    tokens, colon, adapters = size.partition(":")
    given: dict[str, Any] = {"tokens": _count(tokens, "tokens")}
    if colon:
        given["adapters"] = given["tokens"] if adapters == "each" else _count(adapters, "adapters")
    for detail in details:
        name, value = _detail(detail)
        if name in given:
            raise UsageError(f"{text!r} says {name} twice")
        given[name] = value
    return Instance(**given)


def _detail(text: str) -> tuple[str, Any]:
    if text in SPREADS:
        return "spread", text
    if text in PHASES:
        return "phase", text
    name, _, value = text.partition("=")
    if name == "graph":
        return "graph_batch", _count(value, "graph")
    if name == "ranks":
        return "ranks", tuple(_count(rank, "ranks", least=0) for rank in value.split("+"))
    raise UsageError(f"{text!r} says nothing about a batch", hint=f"allowed: {_SYNTAX}")


def read_traffic(path: Path) -> Workload:
    """The steps of a server, from its log or a histogram: ``PHASE TOKENS [ADAPTERS [COUNT]]``.

    PHASE is decode or prefill, TOKENS what the step had, ADAPTERS how many of them were in it (1
    unless said) and COUNT how often that was seen (1 unless said); ``#`` begins a comment. Every
    distinct step is one instance, weighted with how often it was seen times how long it takes: the
    480 decode steps that answer a prefill must not drown it, since it takes a hundred times as
    long. :func:`condensed` makes few instances of many.

    Raises:
        UsageError: what cannot be read or makes no sense; the message names the file and line.
    """
    seen: Counter[Instance] = Counter()
    parsed: dict[tuple[str, ...], Instance] = {}  # a log has millions of lines, but few steps
    for place, words in _lines(path):
        step = tuple(words[:3])
        try:
            if not 2 <= len(words) <= 4 or words[0] not in PHASES or "," in "".join(words):
                raise UsageError(
                    f"no step of a server: {' '.join(words)!r:.80}",
                    hint="PHASE TOKENS [ADAPTERS [COUNT]], PHASE decode or prefill",
                )
            count = _count(words[3], "count") if len(words) == 4 else 1
            if step not in parsed:
                phase, *size = step
                parsed[step] = parse_instance(f"{':'.join(size)},{phase}")
        except UsageError as error:
            raise UsageError(f"{place}: {error.message}", hint=error.hint) from None
        seen[parsed[step]] += count
    return tuple(
        replace(instance, weight=count * relative_step_time(instance.tokens))
        for instance, count in seen.items()
    )


def condensed(workload: Workload, most: int = MOST_INSTANCES) -> Workload:
    """At most so many batches that stand for all, with their shares of the whole weight.

    The batches of each phase are a group; the group whose sizes and adapter counts vary most
    (weighted, in doublings) is cut in two at its mean until there are ``most`` groups or none
    varies. Doublings, because a kernel runs alike on 1,000 and 1,100 tokens but not on 1 and 100.
    Each group is stood for by its batch nearest the mean, one that was really served, with the
    weight of all. Phases are never mixed: their segment buffers differ.
    """
    groups = [[one for one in workload if one.phase == phase] for phase in PHASES]
    groups = [group for group in groups if group]
    while len(groups) < most:
        widest = max(groups, key=_scatter, default=[])
        if not _scatter(widest):
            break
        groups.remove(widest)
        groups += _halves(widest)
    total = sum(one.weight for one in workload)
    chosen = [
        replace(_middle(group), weight=max(1e-4, round(sum(i.weight for i in group) / total, 4)))
        for group in groups
    ]
    return tuple(sorted(chosen, key=lambda one: (one.tokens, one.adapters)))


def _position(instance: Instance) -> tuple[float, float]:
    return math.log2(instance.tokens), math.log2(instance.adapters)


def _mean(group: Sequence[Instance]) -> tuple[float, float]:
    total = sum(one.weight for one in group)
    x, y = (sum(one.weight * _position(one)[axis] for one in group) / total for axis in (0, 1))
    return x, y


def _scatters(group: Sequence[Instance]) -> tuple[float, float]:
    mean = _mean(group)
    x, y = (
        sum(one.weight * (_position(one)[axis] - mean[axis]) ** 2 for one in group)
        for axis in (0, 1)
    )
    return x, y


def _scatter(group: Sequence[Instance]) -> float:
    if len({(one.tokens, one.adapters) for one in group}) < 2:
        return 0.0
    return sum(_scatters(group))


def _halves(group: Sequence[Instance]) -> list[list[Instance]]:
    along_tokens, along_adapters = _scatters(group)
    axis = int(along_adapters > along_tokens)
    cut = _mean(group)[axis]
    ordered = sorted(group, key=lambda one: _position(one)[axis])
    below = sum(_position(one)[axis] < cut for one in ordered)
    below = min(max(below, 1), len(ordered) - 1)  # a mean may round to the least or the largest
    return [ordered[:below], ordered[below:]]


def _middle(group: Sequence[Instance]) -> Instance:
    mean = _mean(group)
    return min(group, key=lambda one: (math.dist(_position(one), mean), -one.weight))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The words of each line that has some, with the line's place for messages."""
    empty = True
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if words := line.partition("#")[0].split():
                    empty = False
                    yield f"{path}:{number}", words
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}") from error
    if empty:
        raise UsageError(f"{path} holds no batch")


def _count(text: str, what: str, *, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least):
        raise UsageError(f"{what} must be an integer from {least} on, not {text!r:.40}")
    return int(text)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{what} must be a number, not {text!r:.40}") from None
