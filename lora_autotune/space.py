"""The configurations that can be chosen: one Config, and the grids they are drawn from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lora_autotune.errors import UsageError
from lora_autotune.task import KernelName

PARAMETERS = ("BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "maxnreg")
"""The tunable parameters, in the order that config files use."""


@dataclass(frozen=True, slots=True, kw_only=True, order=False)
class Config:
    """One choice of the tunable parameters. None: absent, Triton's own choice stands.

    Attributes:
        BLOCK_N: columns of the output tile.
        BLOCK_K: elements of the inner dimension per step.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        maxnreg: most registers per thread (expand only).
    """

    BLOCK_N: int
    BLOCK_K: int
    num_warps: int | None = None
    num_stages: int | None = None
    maxnreg: int | None = None

    def __post_init__(self) -> None:
        for name in PARAMETERS:
            value = getattr(self, name)
            if value is None and name not in ("BLOCK_N", "BLOCK_K"):
                continue
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}")

    def as_dict(self) -> dict[str, int]:
        """The parameters that are present, in the order of the config files."""
        pairs = ((name, getattr(self, name)) for name in PARAMETERS)
        return {name: value for name, value in pairs if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of :meth:`as_dict`; raises UsageError for unknown or missing names."""
        unknown = sorted(set(values) - set(PARAMETERS))
        missing = sorted({"BLOCK_N", "BLOCK_K"} - set(values))
        if unknown or missing:
            what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise UsageError(f"not a config: {what}", hint=f"known: {', '.join(PARAMETERS)}")
        return cls(**values)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_dict().items())


DEFAULT_CONFIGS: Mapping[KernelName, Config] = MappingProxyType(
    {
        "shrink": Config(BLOCK_N=16, BLOCK_K=256),
        "expand": Config(BLOCK_N=64, BLOCK_K=16),
    }
)
"""What a server runs when nothing is tuned (it sets neither warps nor stages). To our kernels they
are no config: what is launched then suits the batch."""


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """A full grid: every combination of the values on its axes.

    Attributes:
        axes: parameter -> its values in ascending order, None (absent) first. Every parameter of
            the grid is one of PARAMETERS; BLOCK_N and BLOCK_K are always there.
    """

    axes: Mapping[str, tuple[int | None, ...]]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.axes) - set(PARAMETERS))
        if unknown:
            raise UsageError(
                f"unknown parameters in a space: {', '.join(unknown)}",
                hint=f"known: {', '.join(PARAMETERS)}",
            )
        ordered = {name: tuple(self.axes[name]) for name in PARAMETERS if name in self.axes}
        for name, values in ordered.items():
            if not values or len(set(values)) != len(values):
                raise UsageError(f"axis {name} of a space is empty or repeats a value: {values}")
        last = {name: values[-1] for name, values in ordered.items()}
        Config.from_dict(last)
        for name, values in ordered.items():
            for value in values:
                Config.from_dict({**last, name: value})
        object.__setattr__(self, "axes", MappingProxyType(ordered))

    def __reduce__(self) -> tuple[Any, ...]:
        return SearchSpace, (dict(self.axes),)

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def __iter__(self) -> Iterator[Config]:
        for values in itertools.product(*self.axes.values()):
            yield Config.from_dict(dict(zip(self.axes, values, strict=True)))

    def __contains__(self, config: object) -> bool:
        return isinstance(config, Config) and self.indices(config) is not None

    def indices(self, config: Config) -> dict[str, int] | None:
        """Position of a config on each axis, or None when the grid does not hold it."""
        found = {}
        for name in PARAMETERS:
            value = getattr(config, name)
            axis = self.axes.get(name, (None,))
            if value not in axis:
                return None
            if name in self.axes:
                found[name] = axis.index(value)
        return found

    def at(self, indices: Mapping[str, int]) -> Config:
        """The config at a position on each axis; the inverse of :meth:`indices`."""
        values = {name: axis[indices[name]] for name, axis in self.axes.items()}
        return Config.from_dict(values)


_NAMED: Mapping[tuple[str, KernelName], SearchSpace] = {
    ("reference", "shrink"): SearchSpace(
        {
            "BLOCK_N": (16, 32, 64),
            "BLOCK_K": (64, 128, 256),
            "num_warps": (4, 8),
            "num_stages": (2, 3, 4),
        }
    ),
    ("reference", "expand"): SearchSpace(
        {
            "BLOCK_N": (32, 64),
            "BLOCK_K": (16, 32),
            "num_warps": (4, 8),
            "num_stages": (1, 2, 3),
            "maxnreg": (None, 96, 112, 128, 160),
        }
    ),
    ("wide", "shrink"): SearchSpace(
        {
            "BLOCK_N": (16, 32, 64, 128),
            "BLOCK_K": (32, 64, 128, 256, 512),
            "num_warps": (1, 2, 4, 8),
            "num_stages": (1, 2, 3, 4, 5),
        }
    ),
    ("wide", "expand"): SearchSpace(
        {
            "BLOCK_N": (16, 32, 64, 128, 256),
            "BLOCK_K": (16, 32, 64),
            "num_warps": (2, 4, 8),
            "num_stages": (1, 2, 3, 4),
            "maxnreg": (None, 96, 128, 168, 255),
        }
    ),
}

SPACE_NAMES = ("wide", "reference")


def space_name(space: SearchSpace, kernel: KernelName) -> str:
    """The name of a kernel's space, with its size: "wide (400)"; "own" for one without a name."""
    names = [name for name in SPACE_NAMES if _NAMED[name, kernel] == space]
    return f"{names[0] if names else 'own'} ({len(space)})"


def named_space(name: str, kernel: KernelName) -> SearchSpace:
    """The space with a name, for a kernel; raises UsageError for a name that is not known."""
    try:
        return _NAMED[name, kernel]
    except KeyError:
        allowed = ", ".join(SPACE_NAMES)
        raise UsageError(f"no space {name!r} for {kernel!r}", hint=f"allowed: {allowed}") from None
