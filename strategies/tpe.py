"""Bayesian optimisation with Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from lora_autotune.space import Config, SearchSpace
from lora_autotune.strategy import StrategyOptions
from lora_autotune.trial import Trial

MAX_DUPLICATES = 20
"""Known configs that the sampler may propose in a row before an unknown one is drawn instead."""

STEP_EVERY, STEP_FROM = 2, 5
"""Every so many asks a step is taken from one of so many best configs, in place of a proposal."""


class TPEStrategy:
    """TPE over the position on each axis: the axes are ordered, and the sampler should know it.

    Its proposals come near the best config and seldom meet it. So at every second ask a step is
    taken from the best, along one axis; from the next best where all around it is known.

    The sampler's own study lives in memory. A config that it proposes again is answered from what
    was told, which costs nothing and sharpens its model. What has no cost (it failed) is told as
    infinitely slow: Optuna's samplers would ignore trials that failed, and propose them again.
    """

    def __init__(self, space: SearchSpace, /, *, seed: int, options: StrategyOptions) -> None:
        self._space = space
        self._first = list(options.first)
        self._unknown = list(space)
        self._random = random.Random(seed)
        self._random.shuffle(self._unknown)
        self._proposed = 0
        self._costs: dict[Config, float] = {}
        self._asked: dict[Config, optuna.Trial | None] = {}
        self._axes = {name: IntDistribution(0, len(a) - 1) for name, a in space.axes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=8,
                n_ei_candidates=128,
                multivariate=True,
                constant_liar=True,
                seed=seed,
            )
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=sampler)
        optuna.logging.set_verbosity(level)

    def ask(self, max_count: int, /) -> Sequence[Config]:
        """New configs, the pinned ones first; empty once every config was asked for or told."""
        configs: list[Config] = []
        while len(configs) < max_count:
            config = self._next()
            if config is None:
                break
            configs.append(config)
        return configs

    def tell(self, trial: Trial, /) -> None:
        """Teach the sampler a trial's cost; unasked ones count like its own."""
        config = trial.config
        cost = math.inf if trial.cost is None else trial.cost
        asked = self._asked.pop(config, None)
        self._costs[config] = cost
        if asked is not None:
            self._study.tell(asked, cost)
            return
        position = self._space.indices(config)
        if position is not None:
            self._study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    params=position,
                    distributions=dict(self._axes),
                    value=cost,
                )
            )

    def _next(self) -> Config | None:
        while self._first:
            config = self._first.pop(0)
            if self._is_new(config):
                self._asked[config] = None
                return config
        while self._unknown and not self._is_new(self._unknown[-1]):
            self._unknown.pop()
        if not self._unknown:
            return None
        self._proposed += 1
        step = self._step() if self._proposed % STEP_EVERY == 0 else None
        if step is not None:
            self._asked[step] = None
            return step
        for _ in range(MAX_DUPLICATES):
            proposal = self._study.ask(dict(self._axes))
            config = self._space.at(proposal.params)
            if self._is_new(config):
                self._asked[config] = proposal
                return config
            if config in self._costs:
                self._study.tell(proposal, self._costs[config])
            else:  # in flight: forget the proposal
                self._study.tell(proposal, state=TrialState.FAIL)
        config = self._unknown.pop()
        self._asked[config] = None
        return config

    def _step(self) -> Config | None:
        """A new config that is one step along one axis from one of the best; None without one."""
        for best in sorted(self._costs, key=self._costs.__getitem__)[:STEP_FROM]:
            position = self._space.indices(best)
            if position is None:  # the default may lie outside
                continue
            near = [
                config
                for name, values in self._space.axes.items()
                for place in (position[name] - 1, position[name] + 1)
                if 0 <= place < len(values)
                and self._is_new(config := self._space.at({**position, name: place}))
            ]
            if near:
                return self._random.choice(near)
        return None

    def _is_new(self, config: Config) -> bool:
        return config not in self._costs and config not in self._asked
