"""The contracts of strategies and evaluators, for plug-in authors: no GPU, no test framework.

A test of a plug-in is one line::

    check_strategy(MyStrategy)

and one of an evaluator names the configs that it can evaluate::

    check_evaluator(lambda: MyEvaluator(...), [Config(BLOCK_N=64, BLOCK_K=64), ...])
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Evaluator, Platform
from lora_autotune.landscape import Landscape
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.strategy import Strategy, StrategyFactory, StrategyOptions
from lora_autotune.task import DECODE, PREFILL, Instance, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Trial

SPACE = SearchSpace(
    {
        "BLOCK_N": (16, 32, 64, 128),
        "BLOCK_K": (32, 64, 128),
        "num_warps": (2, 4, 8),
        "maxnreg": (None, 96, 128),
    }
)
"""A space of 108 configs."""

FIRST = DEFAULT_CONFIGS["expand"]
"""The pinned first config: outside SPACE, as the real default is."""

MAX_FRUITLESS_ASKS = 50
"""Times in a row that a strategy may ask for known configs only."""


def bowl(config: Config) -> Trial:
    """A made-up trial: a smooth bowl around (64, 64, 4, None), with one corner that fails."""
    if config.BLOCK_N == 128 and config.BLOCK_K == 128:
        return Trial(config=config, outcome=Failure(kind="resources", message="made up"))
    cost = (
        1.0
        + abs(math.log2(config.BLOCK_N / 64))
        + abs(math.log2(config.BLOCK_K / 64))
        + abs(math.log2((config.num_warps or 4) / 4))
        + (0.0 if config.maxnreg is None else 30.0 / config.maxnreg)
    )
    return Trial(config=config, outcome=Measurement(times_us=(cost,)), cost=cost)


def bowl_landscape(*, seed: int = 0) -> Landscape:
    """The bowl over SPACE as a recorded landscape of two instances, with a little fixed noise."""
    noise = random.Random(seed)
    trials = {}
    for config in (FIRST, *SPACE):
        trial = bowl(config)
        outcome = trial.outcome
        if isinstance(outcome, Measurement):
            (time_us,) = outcome.times_us
            scales = (5.0 * noise.uniform(0.99, 1.01), 200.0 * noise.uniform(0.99, 1.01))
            outcome = Measurement(times_us=tuple(round(scale * time_us, 3) for scale in scales))
        trials[config] = Trial(config=config, outcome=outcome, compile_s=0.5)
    return Landscape(
        task=Task(kernel="expand", K=4096, R=64, S=1, chunk_size=16),
        workload=(DECODE, PREFILL),
        platform=Platform(device="Made up", triton="3.6.0"),
        space=SPACE,
        trials=trials,
    )


def search(factory: StrategyFactory, count: int, *, seed: int = 0) -> list[Trial]:
    """The first ``count`` different trials of a search of the bowl; fewer if it ends."""
    return _run(_fresh(factory, seed), {}, count)


def check_strategy(factory: StrategyFactory) -> None:
    """Everything that the tuner relies on.

    Raises:
        AssertionError: with the rule that is broken.
    """
    _check_whole_run(factory)
    _check_determinism(factory)
    _check_resume(factory)
    _check_unasked_trials(factory)
    _check_waiting(factory)
    _check_only_failures(factory)


def check_evaluator(make: Callable[[], Evaluator], configs: Sequence[Config]) -> None:
    """Everything that the tuner relies on, the default configuration included.

    Args:
        make: a fresh evaluator.
        configs: two or more that it can evaluate; they may fail, but the first may not.

    Raises:
        AssertionError: with the rule that is broken.
    """
    evaluator = make()
    try:
        _check_attributes(evaluator)
        _check_answers(evaluator, configs)
        _check_remeasure(evaluator, configs)
    finally:
        evaluator.close()
    evaluator.close()  # closing twice is harmless


def covering_configs(space: SearchSpace) -> Iterator[Config]:
    """Configs of a space that hold every value of every axis twice, for tests that take few.

    Wide tiles go with many warps, which compiles fast; the other axes turn, by one more the second
    time.
    """
    count = max(map(len, space.axes.values()))
    together = ("BLOCK_N", "num_warps")
    for turn, place in itertools.product(range(2), range(count)):
        yield space.at(
            {
                name: place * len(axis) // count if name in together else (place + turn) % len(axis)
                for name, axis in space.axes.items()
            }
        )


def _fresh(factory: StrategyFactory, seed: int = 0) -> Strategy:
    return factory(SPACE, seed=seed, options=StrategyOptions(first=(FIRST,)))


def _ask(strategy: Strategy, max_count: int) -> list[Config]:
    configs = list(strategy.ask(max_count))
    assert len(configs) <= max_count, f"ask({max_count}) gave {len(configs)} configs"
    for config in configs:
        assert isinstance(config, Config), f"ask gave {config!r}, which is no Config"
        assert config in SPACE or config == FIRST, f"{config} is outside the space"
    return configs


def _run(
    strategy: Strategy,
    known: dict[Config, Trial],
    count: int,
    evaluate: Callable[[Config], Trial] = bowl,
) -> list[Trial]:
    fruitless = 0
    while len(known) < count and fruitless < MAX_FRUITLESS_ASKS:
        configs = _ask(strategy, min(8, count - len(known)))
        if not configs:
            break
        fruitless = fruitless + 1 if set(configs) <= set(known) else 0
        for config in reversed(configs):  # trials finish in any order
            known[config] = evaluate(config)
            strategy.tell(known[config])
    assert fruitless < MAX_FRUITLESS_ASKS, "asks for known configs only"
    return list(known.values())


def _check_whole_run(factory: StrategyFactory) -> None:
    found = search(factory, 10 * len(SPACE))
    assert len(found) >= 40, f"ended after {len(found)} of a space of {len(SPACE)}"


def _check_determinism(factory: StrategyFactory) -> None:
    state = random.getstate()
    options = StrategyOptions(first=(FIRST,), values={"made up": [1]})
    given = copy.deepcopy(options)
    runs = [_run(factory(SPACE, seed=7, options=options), {}, 30) for _ in range(2)]
    asked = [[trial.config for trial in run] for run in runs]
    assert asked[0] == asked[1], "equal seeds differ"
    assert options == given, "changes the options that it is given"
    assert random.getstate() == state, "draws from the global random numbers, not from its seed"


def _check_resume(factory: StrategyFactory) -> None:
    known = {trial.config: trial for trial in search(factory, 20)}
    resumed = _fresh(factory)
    for trial in known.values():
        resumed.tell(trial)
    assert len(_run(resumed, known, 40)) == 40, "cannot continue from told trials"


def _check_unasked_trials(factory: StrategyFactory) -> None:
    strategy = _fresh(factory)
    configs = list(SPACE)
    strategy.tell(Trial(config=configs[0], outcome=Pruned(rule="made up")))
    strategy.tell(Trial(config=configs[1], outcome=Failure(kind="crash", message="made up")))
    strategy.tell(bowl(configs[2]))
    strategy.tell(bowl(configs[2]))
    strategy.tell(bowl(FIRST))
    assert _ask(strategy, 1), "has nothing to ask after five trials"


def _check_waiting(factory: StrategyFactory) -> None:
    strategy = _fresh(factory)
    asked = [config for _ in range(5) for config in _ask(strategy, 8)]
    assert asked, "has nothing to ask at first"
    for config in asked:
        strategy.tell(bowl(config))
    assert _ask(strategy, 8), "has nothing to ask after what it waited for"


def _check_only_failures(factory: StrategyFactory) -> None:
    failure = Failure(kind="crash", message="made up")

    def fail(config: Config) -> Trial:
        return Trial(config=config, outcome=failure)

    assert len(_run(_fresh(factory), {}, 30, fail)) == 30, "gives up when everything fails"


def _check_attributes(evaluator: Evaluator) -> None:
    assert isinstance(evaluator.task, Task), "task is no Task"
    assert isinstance(evaluator.platform, Platform), "platform is no Platform"
    assert type(evaluator.replayed) is bool, "replayed is neither True nor False"
    assert evaluator.capacity >= 1, "capacity is not positive"
    assert evaluator.workload, "workload is empty"
    assert all(isinstance(one, Instance) for one in evaluator.workload), "no workload of Instances"


def _check_answers(evaluator: Evaluator, configs: Sequence[Config]) -> None:
    _check_refuses_to_collect(evaluator)
    submitted = list(dict.fromkeys([DEFAULT_CONFIGS[evaluator.task.kernel], *configs]))
    for config in submitted:
        evaluator.submit(config)
    trials = [evaluator.collect() for _ in submitted]
    answered = {trial.config for trial in trials}
    assert answered == set(submitted), f"{len(answered)} configs answered for {len(submitted)}"
    for trial in trials:
        assert trial.cost is None, "an evaluator knows no cost"
        if isinstance(trial.outcome, Measurement):
            _check_times(evaluator, trial.outcome.times_us)
        else:
            assert isinstance(trial.outcome, (Failure, Pruned)), f"an outcome {trial.outcome!r}"
    _check_refuses_to_collect(evaluator)


def _check_refuses_to_collect(evaluator: Evaluator) -> None:
    try:
        trial = evaluator.collect()
    except EvaluatorError:
        return
    raise AssertionError(f"collected {trial} though nothing was submitted")


def _check_remeasure(evaluator: Evaluator, configs: Sequence[Config]) -> None:
    twice = [configs[0], configs[0]]
    results = evaluator.remeasure(twice, rounds=3)
    assert [len(rounds) for rounds in results] == [3, 3], "not one result for a config and round"
    for rounds in results:
        for result in rounds:
            assert not isinstance(result, Failure), f"the first config fails: {result}"
            _check_times(evaluator, result)


def _check_times(evaluator: Evaluator, times_us: tuple[float, ...]) -> None:
    assert len(times_us) == len(evaluator.workload), "not one time for an instance"
    assert all(0 < time < math.inf for time in times_us), f"times of {times_us}"
