"""The search of one task: its budget, its share of the machine, and when it is over."""

from __future__ import annotations

import pytest

from lora_autotune.evaluator import Platform
from lora_autotune.search import Search
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Trial
from tests.search_doubles import Memory, Script

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
DEFAULT = DEFAULT_CONFIGS["shrink"]
CONFIGS = [Config(BLOCK_N=n, BLOCK_K=64) for n in range(1, 41)]
FORETOLD = Failure(kind="resources", message="needs too much shared memory")


class Bench:
    """An evaluator that finishes what a test says, and foretells the failure of some configs."""

    def __init__(self, *, capacity: int = 6, foretold=()) -> None:
        self.task = TASK
        self.workload = (PREFILL,)
        self.platform = Platform(device="made up", triton="3.6.0")
        self.replayed = False
        self.capacity = capacity
        self.in_flight: list[Config] = []
        self.submitted: list[Config] = []
        self._foretold = set(foretold)

    def submit(self, config, /):
        self.in_flight.append(config)
        self.submitted.append(config)

    def finish(self, search: Search, count: int = 1) -> None:
        for _ in range(count):
            config = self.in_flight.pop(0)
            if config in self._foretold:
                trial = Trial(config=config, outcome=FORETOLD, foretold=True)
            else:
                trial = measured(config)
            search.tell(trial)

    def run(self, search: Search, most_in_flight: int = 100) -> None:
        search.ask(most_in_flight)
        while not search.over:
            self.finish(search)
            search.ask(most_in_flight)


def measured(config: Config) -> Trial:
    return Trial(config=config, outcome=Measurement(times_us=(float(config.BLOCK_N),)))


def make(bench=None, script=None, *, budget=10, record=None, timeout_s=None):
    bench = bench or Bench()
    search = Search(bench, script or Script(CONFIGS), record, budget=budget, timeout_s=timeout_s)
    return bench, search


def test_the_default_is_submitted_before_anything_is_asked():
    bench, search = make()
    assert bench.submitted == [DEFAULT]
    assert search.busy
    assert not search.over


def test_a_default_that_the_record_knows_is_not_measured_again():
    bench, search = make(record=Memory([measured(DEFAULT)]))
    assert bench.submitted == []
    assert search.spent == 1


def test_foretold_failures_cost_no_budget_but_are_kept_and_told():
    record, script = Memory(), Script(CONFIGS)
    bench, search = make(Bench(foretold=CONFIGS[:20]), script, budget=8, record=record)
    bench.run(search)
    assert search.spent == 8
    assert search.stopped == "the budget is spent"
    assert bench.submitted == [DEFAULT, *CONFIGS[:27]]
    assert len(record.trials) == len(script.told) == len(search.known) == 28
    assert sum(trial.foretold for trial in record.trials) == 20


def test_where_every_failure_is_foretold_the_search_ends():
    bench, search = make(Bench(foretold=CONFIGS))
    bench.run(search)
    assert (search.spent, search.stopped) == (1, "the strategy has nothing more to ask")


def test_foretold_failures_of_a_record_cost_nothing_either():
    known = [Trial(config=c, outcome=FORETOLD, foretold=True) for c in CONFIGS[:5]]
    _, search = make(record=Memory([measured(DEFAULT), *known]))
    assert search.spent == 1
    assert len(search.known) == 6


def test_what_two_runs_recorded_of_one_config_was_spent_once():
    twice = [measured(config) for config in (DEFAULT, CONFIGS[0], DEFAULT, CONFIGS[0])]
    bench, search = make(record=Memory(twice), budget=5)
    assert search.spent == 2
    bench.run(search)
    assert bench.submitted == CONFIGS[1:4]
    assert search.spent == len(search.known) == 5


@pytest.mark.parametrize(("budget", "expected"), [(6, 6), (10, 8), (40, 20), (100, 34)])
def test_a_strategy_hears_of_half_of_its_budget_before_it_is_asked_for_the_rest(budget, expected):
    bench, search = make(Bench(capacity=34), budget=budget)
    search.ask(100)
    assert len(bench.in_flight) == search.in_flight == expected


@pytest.mark.parametrize(
    ("capacity", "share", "expected"), [(6, 100, 6), (6, 4, 4), (2, 4, 2), (6, 1, 1), (6, 0, 1)]
)
def test_no_more_is_in_flight_than_the_share_and_the_evaluator_hold(capacity, share, expected):
    bench, search = make(Bench(capacity=capacity))
    search.ask(share)
    assert len(bench.in_flight) == expected
    bench.finish(search)
    search.ask(share)
    assert len(bench.in_flight) <= max(share, 0)


def test_a_share_that_grows_is_used_at_once():
    bench, search = make()
    search.ask(2)
    search.ask(5)
    assert len(bench.in_flight) == 5


def test_what_is_in_flight_counts_against_the_budget():
    bench, search = make(budget=3)
    search.ask(100)
    assert len(bench.in_flight) == 3
    assert search.stopped == "the budget is spent"
    assert not search.over
    bench.finish(search, 3)
    search.ask(100)
    assert search.over


def test_a_foretold_failure_gives_its_place_in_the_budget_back():
    bench, search = make(Bench(foretold=CONFIGS[:2]), budget=3)
    search.ask(100)
    assert search.stopped == "the budget is spent"
    bench.finish(search, 3)
    assert not search.over
    search.ask(100)
    assert bench.in_flight == CONFIGS[2:4]


def test_when_the_time_is_up_nothing_more_is_asked():
    bench, search = make(timeout_s=0.0)
    search.ask(100)
    assert bench.submitted == [DEFAULT]
    assert search.stopped == "the time is up"


def test_an_empty_answer_ends_nothing_while_something_is_in_flight():
    bench, search = make(script=Script([]))
    search.ask(100)
    assert search.stopped is None
    bench.finish(search)
    search.ask(100)
    assert search.stopped == "the strategy has nothing more to ask"
    assert search.over


def test_what_was_pruned_after_some_batches_is_told_with_an_estimate():
    script = Script(CONFIGS)
    _, search = make(script=script)
    search.evaluator.workload = (DECODE, PREFILL)
    search.ask(100)
    times = {DEFAULT: (10.0, 200.0), CONFIGS[0]: (5.0, 100.0)}
    for config, times_us in times.items():
        search.tell(Trial(config=config, outcome=Measurement(times_us=times_us)))
    rows = [((6.0, None), 0.6), ((15.0, None), 1.5 + 2 * 0.48), ((4.0, None), 0.5)]
    for config, (times_us, _) in zip(CONFIGS[1:], rows, strict=False):
        search.tell(Trial(config=config, outcome=Pruned(rule="behind", times_us=times_us)))
    search.tell(Trial(config=CONFIGS[4], outcome=Pruned(rule="spills")))
    told = [trial.cost for trial in script.told]
    assert told[:2] == [1.0, 0.5]
    assert told[2:5] == pytest.approx([cost for _, cost in rows])  # never less than the best
    assert told[5] is None


def test_a_trial_is_recorded_before_anybody_hears_of_it():
    class Full:
        trials = ()

        def append(self, trial):
            raise OSError("the disk is full")

    script = Script(CONFIGS)
    bench, search = make(script=script, record=Full())
    with pytest.raises(OSError, match="full"):
        bench.finish(search)
    assert search.known == {}
    assert script.told == []
