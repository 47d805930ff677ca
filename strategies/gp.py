"""Bayesian optimisation with a Gaussian process over every config of the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial

Array = NDArray[np.float64]

INITIAL = 12
"""Configs of the first design, spread over the space before the model is asked."""

DESIGNS = 50
"""Random designs of which the one that is spread best is taken."""

RIDGES = ({"BLOCK_N": 1, "num_warps": -1}, {"BLOCK_N": -1, "num_warps": 1, "maxnreg": 1})
"""Directions besides the axes: the columns of a warp, and the registers that it has for them."""

OPTIMISM = 1.0
"""Standard deviations above the expected speed at which a config is valued."""

PRIOR = (math.log(0.5), math.log(1.6), math.log(1e-3))
"""Expected logarithm of the length scale of an axis, of a ridge's, and of the noise's variance."""

WIDTH = 0.5
"""Standard deviation of the logarithm of a length scale."""

REFIT = 1.05
"""Growth of the record after which the length scales are fitted again."""

MOVES, ROUNDS, STEP = 16, 2, 0.35
"""Random moves of the length scales that are tried at once, how often, and how far they go."""


class GPStrategy:
    """Gaussian process with a Matern 5/2 kernel over the position on each axis.

    What it models is speed, the best cost so far over a config's own: how much slower than half as
    fast a config is hardly matters, and what has no cost (it failed) has no speed at all. A length
    scale for each axis and ridge is fitted by marginal likelihood times a prior; mean and variance
    have closed forms. The next config is the one with the highest upper confidence bound of all
    that are unseen. Configs in flight count as if they had the speed that is expected of them.
    """

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        self._rng = np.random.default_rng(seed)
        self._configs = list(space)
        self._positions = {config: i for i, config in enumerate(self._configs)}
        self._points, prior = _coordinates(space, self._configs)
        self._prior = self._scales = prior
        self._widths = np.array([WIDTH] * (len(prior) - 1) + [1.0])
        self._first = list(options.first)
        self._design = self._spread([len(axis) for axis in space.axes.values()])
        self._costs: dict[Config, float] = {}
        self._in_flight: dict[Config, None] = {}
        self._fitted = 0

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """New configs, the pinned ones first; empty once every config was asked for or told."""
        configs: list[Config] = []
        while len(configs) < max_count and (config := self._next()) is not None:
            self._in_flight[config] = None
            configs.append(config)
        return configs

    def tell(self, trial: Trial, /) -> None:
        """Teach the model a trial's cost; unasked ones count like its own."""
        self._in_flight.pop(trial.config, None)
        self._costs[trial.config] = math.inf if trial.cost is None else trial.cost

    def _next(self) -> Config | None:
        while self._first:
            if self._is_new(config := self._first.pop(0)):
                return config
        while self._design and len(self._costs) + len(self._in_flight) <= INITIAL:
            if self._is_new(config := self._configs[self._design.pop()]):
                return config
        unseen = [i for i, config in enumerate(self._configs) if self._is_new(config)]
        return self._configs[unseen[self._most_promising(unseen)]] if unseen else None

    def _is_new(self, config: Config) -> bool:
        return config not in self._costs and config not in self._in_flight

    def _spread(self, sizes: list[int]) -> list[int]:
        """Latin hypercube design: of many, the one whose closest two points are farthest apart."""
        shape = (DESIGNS, INITIAL, len(sizes))
        strata = self._rng.permuted(np.broadcast_to(np.arange(INITIAL)[:, None], shape), axis=1)
        spots = (strata + self._rng.random(shape)) / INITIAL
        cells = np.rint(spots * (np.array(sizes) - 1)).astype(int)
        designs = np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), sizes)
        points = self._points[designs][..., : len(sizes)]
        gaps = ((points[:, :, None] - points[:, None]) ** 2).sum(-1) + 1e9 * np.eye(INITIAL)
        return [int(i) for i in designs[gaps.min((1, 2)).argmax()]]

    def _most_promising(self, unseen: list[int]) -> int:
        """Which of the unseen configs has the highest upper confidence bound."""
        told = {self._positions[c]: x for c, x in self._costs.items() if c in self._positions}
        best = min(told.values(), default=math.inf)
        if best == math.inf:
            return int(self._rng.integers(len(unseen)))
        points = self._points[list(told)]
        speeds = best / np.array(list(told.values()))
        if len(told) >= REFIT * self._fitted:
            self._fit(points, speeds)
        flying = [self._positions[c] for c in self._in_flight if c in self._positions]
        if flying:
            believed, _ = self._predict(points, speeds, self._points[flying])
            points = np.concatenate([points, self._points[flying]])
            speeds = np.concatenate([speeds, believed])
        mean, deviation = self._predict(points, speeds, self._points[unseen])
        return int((mean + OPTIMISM * deviation).argmax())

    def _fit(self, points: Array, speeds: Array) -> None:
        """Move the length scales and the noise to where the record is more likely."""
        count, size = len(speeds), len(self._prior)
        squares = (points[:, None] - points) ** 2
        targets = np.stack([speeds, np.ones(count)], axis=1)
        for _ in range(ROUNDS):
            moves = self._rng.standard_normal((MOVES, size)) * (self._rng.random((MOVES, 1)) < 0.5)
            moves[np.arange(MOVES), self._rng.integers(size, size=MOVES)] += (
                2 * self._rng.standard_normal(MOVES)
            )
            moves[0] = 0
            tried = self._scales + STEP * moves
            kernel = _matern(np.tensordot(np.exp(-2 * tried[:, :-1]), squares, (1, 2)))
            lower = np.linalg.cholesky(kernel + _noise(tried[:, -1:, None], count))
            white, ones = np.moveaxis(np.linalg.solve(lower, targets), -1, 0)
            mean = (white * ones).sum(1) / (ones**2).sum(1)
            residual = ((white - mean[:, None] * ones) ** 2).sum(1)
            variance = (residual + 0.1 * speeds.var() + 1e-9) / count
            volume = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(1)
            prior = (((tried - self._prior) / self._widths) ** 2).sum(1) / 2
            self._scales = tried[(0.5 * count * np.log(variance) + volume + prior).argmin()]
        self._fitted = count

    def _predict(self, points: Array, speeds: Array, at: Array) -> tuple[Array, Array]:
        """Expected speed at some points and its standard deviation, given others' speeds."""
        count, scales = len(speeds), np.exp(-self._scales[:-1])
        known, wanted = points * scales, at * scales
        inverse = np.linalg.inv(_matern(_distances(known, known)) + _noise(self._scales[-1], count))
        cross = _matern(_distances(wanted, known))
        weights = inverse.sum(1)
        mean = weights @ speeds / weights.sum()
        residual = inverse @ (speeds - mean)
        variance = ((speeds - mean) @ residual + 0.1 * speeds.var() + 1e-9) / count
        unknown = (
            1 - ((cross @ inverse) * cross).sum(1) + (1 - cross @ weights) ** 2 / weights.sum()
        )
        return mean + cross @ residual, np.sqrt(variance * np.maximum(unknown, 0))


def _coordinates(space: SearchSpace, configs: Sequence[Config]) -> tuple[Array, Array]:
    """Where the configs lie, axes first and then ridges; and the prior of all hyperparameters."""
    columns = {
        name: np.array([_place(axis, getattr(config, name)) for config in configs])
        for name, axis in space.axes.items()
    }
    ridges = [ridge for ridge in RIDGES if set(ridge) <= set(columns)]
    sums = [sum(sign * columns[name] for name, sign in ridge.items()) for ridge in ridges]
    scales = [PRIOR[0]] * len(columns) + [PRIOR[1]] * len(sums)
    return np.stack([*columns.values(), *sums], axis=1), np.array([*scales, PRIOR[2]])


def _place(axis: Sequence[int | None], value: int | None) -> float:
    """Where a value lies on its axis, from 0 to 1 or so; no register cap is beyond the largest."""
    values = [one for one in axis if one is not None]
    index = len(values) - 0.5 if value is None else values.index(value)
    return index / max(len(axis) - 1, 1)


def _distances(one: Array, other: Array) -> Array:
    """Squared distance of each point of one set to each of another."""
    squares: Array = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return squares


def _matern(squares: Array) -> Array:
    """Matern 5/2 correlation at squared distances, whose rounding errors may be negative."""
    scaled = np.sqrt(5 * np.maximum(squares, 0))
    correlation: Array = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return correlation


def _noise(logarithm: Array | float, count: int) -> Array:
    """What measurement noise adds to the correlations, and enough for them to be inverted."""
    diagonal: Array = (np.exp(logarithm) + 1e-6) * np.eye(count)
    return diagonal
