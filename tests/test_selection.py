"""The gate: what is written beats the default beyond noise, everywhere, or is not written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lora_autotune.evaluator import Platform
from lora_autotune.selection import FINALISTS, Selection, fine_trials, select
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Trial

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
DEFAULT = DEFAULT_CONFIGS["shrink"]
FAST, FASTER, SLOW = (Config(BLOCK_N=n, BLOCK_K=64, num_warps=4) for n in (16, 32, 64))
CRASH = Failure(kind="crash", message="illegal address")


class Stopwatch:
    """Answers remeasure from a table: config -> times of each round; the default may have two."""

    def __init__(self, table, *, workload=(PREFILL,)) -> None:
        self.task = TASK
        self.workload = workload
        self.platform = Platform(device="G", triton="3.6.0")
        self.replayed = True
        self.capacity = 1
        self.asked: list[Sequence[Config]] = []
        self.begun: list[Sequence[Config]] = []
        self._table = table

    def remeasure(self, configs, /, *, rounds):
        self.asked.append(list(configs))
        taken = {config: iter(series) for config, series in self._table.items()}
        answers = []
        for config in configs:
            series = next(taken[config])
            if not isinstance(series, list):
                series = [series] * rounds
            answers.append([one if isinstance(one, Failure) else tuple(one) for one in series])
        return answers

    def prepare(self, configs, /):
        self.begun.append(list(configs))

    def submit(self, config, /):
        raise AssertionError("selection evaluates nothing new")

    def collect(self):
        raise AssertionError("selection evaluates nothing new")

    def close(self):
        pass


def choose(*given, **words) -> Selection:
    """What select() comes to."""
    *_, selection = select(*given, **words)
    return selection


def measured(config: Config, cost: float, *, coarse: bool = False) -> Trial:
    times_us = (100.0 * cost,)
    return Trial(config=config, outcome=Measurement(times_us=times_us, coarse=coarse), cost=cost)


def default_twice(first=(100.0,), last=(100.0,)):
    return [first, last]


TRIALS = [measured(DEFAULT, 1.0), measured(FAST, 0.9), measured(FASTER, 0.8)]


def test_the_fastest_finalist_wins():
    watch = Stopwatch({DEFAULT: default_twice(), FAST: [(90.0,)], FASTER: [(80.0,)]})
    chosen = choose(watch, TRIALS)
    assert (chosen.config, chosen.tuned, chosen.noise) == (FASTER, True, 0)
    assert (chosen.times_us, chosen.default_times_us) == ((80.0,), (100.0,))
    assert chosen.cost == pytest.approx(0.8)
    assert watch.asked == [[DEFAULT, FASTER, FAST, DEFAULT]]


def test_what_counts_is_measured_again_not_the_search():
    watch = Stopwatch({DEFAULT: default_twice(), FAST: [(85.0,)], FASTER: [(95.0,)]})
    chosen = choose(watch, TRIALS)
    assert chosen.config == FAST
    assert [finalist.config for finalist in chosen.finalists] == [FAST, FASTER]


def test_within_the_noise_the_default_stands():
    watch = Stopwatch({DEFAULT: default_twice((98.0,), (102.0,)), FASTER: [(97.0,)]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert (chosen.config, chosen.tuned, chosen.cost) == (DEFAULT, False, 1.0)
    assert chosen.noise == pytest.approx(4 / 98)
    assert "within the noise of 4.1%" in chosen.reason
    assert chosen.times_us == chosen.default_times_us == (100.0,)


@pytest.mark.parametrize(("time_us", "tuned"), [(98.9, True), (99.1, False)])
def test_a_gain_that_measuring_once_more_would_not_show_is_none(time_us, tuned):
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(time_us,)]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert (chosen.tuned, chosen.noise) == (tuned, 0)
    assert ("0.90% faster than the default, less than 1%" in chosen.reason) != tuned


def test_noise_is_a_size_not_a_direction():
    rising_and_falling = [[(98.0,), (102.0,)] * 6, [(102.0,), (98.0,)] * 6]
    watch = Stopwatch({DEFAULT: rising_and_falling, FASTER: [(99.0,)]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]], rounds=12)
    assert not chosen.tuned
    assert chosen.noise > 0.03


@pytest.mark.parametrize(("wins", "tuned"), [(12, True), (11, True), (10, False), (9, False)])
def test_the_sign_test_wants_eleven_of_twelve_rounds(wins, tuned):
    rounds = [(90.0,)] * wins + [(101.0,)] * (12 - wins)
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [rounds]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert chosen.tuned is tuned
    assert f"{wins} of 12 rounds" in chosen.reason


@pytest.mark.parametrize(("rounds", "tuned"), [(6, False), (7, True)])
def test_seven_rounds_are_the_fewest_that_can_tell(rounds, tuned):
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(50.0,)]})
    assert choose(watch, [TRIALS[0], TRIALS[2]], rounds=rounds).tuned is tuned


def test_drift_within_a_round_cancels():
    drifting = [(100.0 + 10 * turn,) for turn in range(12)]
    later = [(104.0 + 10 * turn,) for turn in range(12)]
    middle = [(102.0 + 10 * turn,) for turn in range(12)]
    watch = Stopwatch({DEFAULT: [drifting, later], FASTER: [middle]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert not chosen.tuned
    assert chosen.finalists[0].cost == 1.0


@pytest.mark.parametrize(("decode_us", "tuned"), [(10.1, True), (10.3, False)])
def test_a_winner_may_not_be_slower_on_any_batch(decode_us, tuned):
    workload = (DECODE, replace(PREFILL, weight=9.0))
    watch = Stopwatch(
        {DEFAULT: default_twice((10.0, 200.0), (10.0, 200.0)), FASTER: [(decode_us, 100.0)]},
        workload=workload,
    )
    chosen = choose(watch, _on_two_batches(FASTER))
    assert chosen.tuned is tuned
    why = "is over 2.0% slower than the default on the batch of 32 tokens in 12 of 12 rounds"
    assert (f"{why} (median +3.0%)" in chosen.reason) is not tuned


@pytest.mark.parametrize(("usual_us", "usual"), [(10.1, "+1.0%"), (9.8, "-2.0%")])
@pytest.mark.parametrize(("beyond", "tuned"), [(0, True), (1, True), (2, False), (5, False)])
def test_nor_may_it_be_too_slow_in_more_than_one_round_of_twelve(beyond, tuned, usual_us, usual):
    rounds = [(10.3, 100.0)] * beyond + [(usual_us, 100.0)] * (12 - beyond)
    watch = Stopwatch(
        {DEFAULT: default_twice((10.0, 200.0), (10.0, 200.0)), FASTER: [rounds]},
        workload=(DECODE, replace(PREFILL, weight=9.0)),
    )
    chosen = choose(watch, _on_two_batches(FASTER))
    assert chosen.tuned is tuned
    assert (f"in {beyond} of 12 rounds (median {usual})" in chosen.reason) is not tuned


def test_the_next_finalist_has_its_turn_when_the_best_does_not_pass():
    watch = Stopwatch(
        {
            DEFAULT: default_twice((10.0, 200.0), (10.0, 200.0)),
            FASTER: [(12.0, 100.0)],
            FAST: [(9.0, 190.0)],
        },
        workload=(DECODE, PREFILL),
    )
    chosen = choose(watch, _on_two_batches(FAST, FASTER))
    assert chosen.config == FAST
    assert chosen.finalists[0].config == FASTER


def test_a_finalist_that_fails_is_dropped_and_its_failure_kept():
    watch = Stopwatch(
        {DEFAULT: default_twice(), FAST: [(90.0,)], FASTER: [[(80.0,)] * 10 + [CRASH]]}
    )
    chosen = choose(watch, TRIALS)
    assert chosen.config == FAST
    assert [(f.config, f.failure) for f in chosen.finalists] == [(FAST, None), (FASTER, CRASH)]


def test_when_all_finalists_fail_the_default_stands():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [CRASH]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert (chosen.config, chosen.tuned) == (DEFAULT, False)
    assert "failed when it was measured again (crash)" in chosen.reason


def test_a_default_that_fails_only_now_stands():
    watch = Stopwatch({DEFAULT: [CRASH, (100.0,)], FASTER: [(80.0,)]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]])
    assert (chosen.config, chosen.tuned, chosen.times_us) == (DEFAULT, False, (100.0,))
    assert "the default failed" in chosen.reason


@pytest.mark.parametrize("outcome", [CRASH, Pruned(rule="too much shared memory")])
def test_without_a_default_that_runs_the_fastest_wins(outcome):
    watch = Stopwatch({FAST: [(80.0,)], FASTER: [(90.0,)], SLOW: [CRASH]})
    trials = [Trial(config=DEFAULT, outcome=outcome), *TRIALS[1:], measured(SLOW, 0.7)]
    chosen = choose(watch, trials)
    assert (chosen.config, chosen.tuned, chosen.times_us) == (FAST, True, (80.0,))
    assert (chosen.cost, chosen.default_times_us) == (None, ())
    assert "the default does not run" in chosen.reason
    assert DEFAULT not in watch.asked[0]


@pytest.mark.parametrize("others", [[], [Trial(config=FAST, outcome=CRASH)], [TRIALS[1]]])
def test_when_nothing_runs_there_is_no_winner(others):
    watch = Stopwatch({FAST: [CRASH]})
    chosen = choose(watch, [Trial(config=DEFAULT, outcome=CRASH), *others])
    assert (chosen.config, chosen.tuned, chosen.times_us) == (None, False, ())
    assert "no configuration runs" in chosen.reason


def test_alone_the_default_stands_and_is_not_measured_again():
    watch = Stopwatch({})
    chosen = choose(watch, [TRIALS[0], Trial(config=FAST, outcome=CRASH)])
    assert (chosen.config, chosen.tuned, chosen.times_us) == (DEFAULT, False, (100.0,))
    assert watch.asked == []


def test_what_takes_exactly_as_long_as_the_default_is_launched_as_it_is():
    stopwatch = Stopwatch({})
    alike = [measured(DEFAULT, 1.0), measured(FAST, 1.0), measured(SLOW, 1.0)]
    selection = choose(stopwatch, alike)
    assert (selection.config, selection.tuned) == (DEFAULT, False)
    assert selection.reason == "the default stands: all that was tried is launched as it is"
    assert not stopwatch.asked
    stopwatch = Stopwatch({DEFAULT: default_twice(), FASTER: [(90.0,)]})
    choose(stopwatch, [*alike, measured(FASTER, 0.9)])
    assert stopwatch.asked == [[DEFAULT, FASTER, DEFAULT]]


def test_only_the_best_few_fine_measurements_are_finalists():
    many = [measured(Config(BLOCK_N=n, BLOCK_K=16), 2.0 - n / 100) for n in range(1, 10)]
    hidden = [
        measured(FAST, 0.1, coarse=True),
        Trial(config=FASTER, outcome=Pruned(rule="behind", times_us=(1.0,)), cost=0.1),
    ]
    table = {trial.config: [(100.0,)] for trial in many} | {DEFAULT: default_twice()}
    watch = Stopwatch(table)
    choose(watch, [TRIALS[0], *hidden, *many])
    best = [Config(BLOCK_N=n, BLOCK_K=16) for n in (9, 8, 7, 6, 5)]
    assert watch.asked == [[DEFAULT, *best, DEFAULT]]
    assert len(best) == FINALISTS
    assert [t.config for t in fine_trials([*hidden, *many])][:5] == best


def _on_two_batches(*configs: Config) -> list[Trial]:
    default = Trial(config=DEFAULT, outcome=Measurement(times_us=(10.0, 200.0)), cost=1.0)
    fine = Measurement(times_us=(10.0, 100.0))
    return [default, *(Trial(config=c, outcome=fine, cost=0.7) for c in configs)]


BETWEEN = (replace(PREFILL, tokens=512), replace(PREFILL, tokens=2048))


def _held_out(table):
    return Stopwatch(
        {DEFAULT: default_twice((10.0, 20.0), (10.0, 20.0)), **table}, workload=BETWEEN
    )


def test_a_winner_that_loses_where_it_was_not_tuned_gives_way_to_the_next():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)], FAST: [(90.0,)]})
    held_out = _held_out({FASTER: [(9.0, 29.6)], FAST: [(9.0, 20.0)]})
    chosen = choose(watch, TRIALS, held_out=held_out)
    assert (chosen.config, chosen.held_out) == (FAST, BETWEEN)
    assert held_out.asked == [[DEFAULT, FASTER, DEFAULT], [DEFAULT, FAST, DEFAULT]]
    lost, won = chosen.finalists
    assert (lost.held_out, won.held_out) == (True, True)
    assert "held-out batch of 2048 tokens in 12 of 12 rounds (median +48.0%)" in lost.verdict
    assert won.verdict == chosen.reason


def test_where_all_lose_there_the_default_stands():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)]})
    held_out = _held_out({FASTER: [(10.3, 10.0)]})
    chosen = choose(watch, [TRIALS[0], TRIALS[2]], held_out=held_out)
    assert (chosen.config, chosen.tuned, chosen.held_out) == (DEFAULT, False, ())
    why = f"{FASTER} is over 2.0% slower than the default on the held-out batch of 512"
    assert f"no finalist beats it everywhere: {why}" in chosen.reason


def test_how_much_may_be_lost_there_is_what_may_be_lost_anywhere():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)]})
    held_out = _held_out({FASTER: [(10.3, 10.0)]})
    assert choose(watch, TRIALS[::2], max_regression=0.05, held_out=held_out).config == FASTER


def test_one_that_fails_there_does_not_win():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)]})
    chosen = choose(watch, TRIALS[::2], held_out=_held_out({FASTER: [[CRASH] * 12]}))
    assert (chosen.tuned, chosen.held_out) == (False, ())
    assert "failed on batches that are held out (crash)" in chosen.reason
    assert chosen.finalists[0].failure == CRASH


def test_neither_does_one_with_which_the_whole_contest_fails():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)]})
    all_fail = Stopwatch({DEFAULT: [[CRASH] * 12] * 2, FASTER: [[CRASH] * 12]}, workload=BETWEEN)
    assert not choose(watch, TRIALS[::2], held_out=all_fail).tuned


def test_where_the_default_fails_there_is_nothing_to_lose_and_nothing_to_boast_of():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)]})
    held_out = Stopwatch({DEFAULT: [[CRASH] * 12] * 2, FASTER: [(1.0, 1.0)]}, workload=BETWEEN)
    chosen = choose(watch, TRIALS[::2], held_out=held_out)
    assert (chosen.config, chosen.held_out) == (FASTER, ())
    assert chosen.reason.endswith("; the default fails on batches that are held out (crash)")


def test_if_the_first_loses_there_the_others_are_made_ready_and_measured_one_by_one():
    series = {FASTER: [(80.0,)], FAST: [(90.0,)], SLOW: [(95.0,)]}
    watch = Stopwatch({DEFAULT: default_twice(), **series})
    trials = [*TRIALS, measured(SLOW, 0.95)]
    held_out = _held_out({FASTER: [(30.0, 30.0)], FAST: [[CRASH] * 12], SLOW: [(9.0, 9.0)]})
    assert choose(watch, trials, held_out=held_out).config == SLOW
    assert held_out.asked == [[DEFAULT, config, DEFAULT] for config in (FASTER, FAST, SLOW)]
    assert held_out.begun == [[DEFAULT, FASTER], [DEFAULT, FAST, SLOW]]


def test_there_is_time_for_something_else_while_it_is_made_ready():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(80.0,)], FAST: [(90.0,)]})
    held_out = _held_out({FASTER: [(9.0, 29.6)], FAST: [(9.0, 20.0)]})
    steps = [
        (selection and selection.config, len(held_out.begun), len(held_out.asked))
        for selection in select(watch, TRIALS, held_out=held_out)
    ]
    assert steps == [(None, 1, 0), (None, 2, 1), (FAST, 2, 2)]


def test_what_does_not_win_anyway_is_not_measured_there():
    watch = Stopwatch({DEFAULT: default_twice(), FASTER: [(99.5,)]})
    held_out = _held_out({})
    assert not choose(watch, TRIALS[::2], held_out=held_out).tuned
    assert (held_out.begun, held_out.asked) == ([], [])
