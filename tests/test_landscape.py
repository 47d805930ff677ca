"""The format of landscapes: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.errors import LandscapeError, UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.landscape import (
    Landscape,
    landscape_file_name,
    read_landscape,
    write_landscape,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import DTYPES, Instance, Task, default_workload
from lora_autotune.testing import bowl_landscape
from lora_autotune.trial import FAILURE_KINDS, Failure, Measurement, Pruned, Resources, Trial
from lora_autotune.workload import PRESETS

HEADER = {
    "landscape": 1,
    "kernel": "shrink",
    "K": 1024,
    "R": 64,
    "S": 3,
    "chunk_size": 64,
    "dtype": "float16",
    "slice_offsets": None,
    "device": "NVIDIA H200",
    "triton": "3.6.0",
    "kernels": "builtin",
    "space": {"BLOCK_N": [16, 32], "BLOCK_K": [64], "num_warps": [4], "num_stages": [2]},
    "instances": [{"tokens": 30720, "adapters": 1, "weight": 1.0}],
}
DEFAULT = {"config": {"BLOCK_N": 16, "BLOCK_K": 256}, "times_us": [235.8], "compile_s": 0.57}
FIRST = {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2}
SECOND = {**FIRST, "BLOCK_N": 32}
MEASURED = {"config": FIRST, "times_us": [58.9], "compile_s": 0.61}
FAILED = {"config": SECOND, "failure": {"kind": "resources", "message": "too much"}}
LINES = [HEADER, DEFAULT, MEASURED, FAILED]


def write(path, lines):
    path.write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    )
    return path


def read(path, *lines):
    return read_landscape(write(path / "it.jsonl", lines))


def test_the_name_of_a_file_tells_the_task_and_the_batches():
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
    chat = landscape_file_name(task, PRESETS["chat"])
    assert chat == "shrink-K1024-R64-S3-chunk16-chat.jsonl.gz"
    same_sizes = tuple(replace(one, spread="even", weight=1.0) for one in PRESETS["chat"])
    other = landscape_file_name(task, same_sizes)
    assert other == "shrink-K1024-R64-S3-chunk16-tokens32-128-512x1-8192x8.jsonl.gz"
    usual = landscape_file_name(replace(task, dtype="bfloat16"), default_workload(16))
    assert usual == "shrink-K1024-R64-S3-chunk16-tokens32-30720-bfloat16.jsonl.gz"


def test_the_published_format_is_understood(tmp_path):
    landscape = read(tmp_path, *LINES)
    assert landscape.task == Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
    assert landscape.workload == (Instance(tokens=30720),)
    assert landscape.platform == Platform(device="NVIDIA H200", triton="3.6.0")
    assert set(landscape.space) == {Config(**FIRST), Config(**SECOND)}
    assert list(landscape.trials.values()) == [
        Trial(
            config=DEFAULT_CONFIGS["shrink"],
            outcome=Measurement(times_us=(235.8,)),
            compile_s=0.57,
        ),
        Trial(config=Config(**FIRST), outcome=Measurement(times_us=(58.9,)), compile_s=0.61),
        Trial(config=Config(**SECOND), outcome=Failure(kind="resources", message="too much")),
    ]
    assert landscape.best() == (Config(**FIRST), 58.9 / 235.8)


def test_an_absent_maxnreg_is_null_in_the_space_and_absent_in_the_config(tmp_path):
    landscape = bowl_landscape()
    write_landscape(tmp_path / "it.jsonl", landscape)
    header, *lines = map(json.loads, (tmp_path / "it.jsonl").read_text().splitlines())
    assert header["space"]["maxnreg"] == [None, 96, 128]
    assert {line["config"].get("maxnreg", "absent") for line in lines} == {"absent", 96, 128}
    assert header["slice_offsets"] == [0, 4096]


def test_what_a_recorder_adds_is_kept_or_ignored(tmp_path):
    rich = {
        **MEASURED,
        "registers": 64,
        "spill_words": 8,
        "smem_bytes": 4096,
        "coarse": True,
        "spread": 0.01,
    }
    header = {**HEADER, "driver": "580.1", "date": "2026-01-01"}
    landscape = read(tmp_path, header, DEFAULT, rich, FAILED)
    trial = landscape.trials[Config(**FIRST)]
    assert trial.resources == Resources(registers=64, spill_words=8, smem_bytes=4096)
    assert trial.outcome == Measurement(times_us=(58.9,), coarse=True)
    assert landscape.note == {"date": "2026-01-01"}
    assert landscape.platform.driver == "580.1"
    write_landscape(tmp_path / "again.jsonl", landscape)
    assert read_landscape(tmp_path / "again.jsonl") == landscape


def test_a_note_cannot_change_what_was_measured(tmp_path):
    landscape = replace(bowl_landscape(), note={"device": "another", "landscape": 2})
    write_landscape(tmp_path / "it.jsonl", landscape)
    assert read_landscape(tmp_path / "it.jsonl") == replace(landscape, note={})


def test_a_failure_of_another_recorder_is_answered_as_it_stands(tmp_path):
    odd = {"config": SECOND, "failure": {"kind": "cosmic ray", "message": "bit 3"}}
    outcome = read(tmp_path, HEADER, DEFAULT, MEASURED, odd).trials[Config(**SECOND)].outcome
    assert outcome == Failure(kind="cosmic ray", message="bit 3")


def test_equal_landscapes_give_equal_bytes(tmp_path, monkeypatch):
    paths = [tmp_path / "one" / "a.jsonl.gz", tmp_path / "two" / "b.jsonl.gz"]
    for at_s, path in enumerate(paths):
        monkeypatch.setattr("time.time", lambda at_s=at_s: 1e9 * at_s)
        write_landscape(path, bowl_landscape())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_landscape(paths[0]) == bowl_landscape()
    assert [path.name for path in paths[0].parent.iterdir()] == ["a.jsonl.gz"]


def test_gzipped_or_not_it_is_the_same(tmp_path):
    write_landscape(tmp_path / "it.jsonl", bowl_landscape())
    write_landscape(tmp_path / "it.jsonl.gz", bowl_landscape())
    plain = (tmp_path / "it.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "it.jsonl.gz").read_bytes()) == plain


def test_a_pruned_config_is_not_written_and_nothing_is_lost(tmp_path):
    landscape = bowl_landscape()
    write_landscape(tmp_path / "it.jsonl", landscape)
    config = next(iter(landscape.space))
    pruned = Trial(config=config, outcome=Pruned(rule="made up"))
    with pytest.raises(LandscapeError, match="pruned"):
        write_landscape(
            tmp_path / "it.jsonl", replace(landscape, trials={**landscape.trials, config: pruned})
        )
    assert read_landscape(tmp_path / "it.jsonl") == landscape


def test_where_it_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match=r"it\.jsonl: cannot be written"):
        write_landscape(tmp_path / "file" / "it.jsonl", bowl_landscape())


HOSTILE = {
    "a header without a version": (1, [{**HEADER, "landscape": None}, DEFAULT]),
    "a version to come": (1, [{**HEADER, "landscape": 2}, DEFAULT]),
    "no header": (1, [DEFAULT, MEASURED]),
    "nothing at all": (1, []),
    "an empty space": (1, [{**HEADER, "space": {}}, DEFAULT]),
    "a space of words": (1, [{**HEADER, "space": {"BLOCK_N": ["x"], "BLOCK_K": [64]}}, DEFAULT]),
    "a space that is a list": (1, [{**HEADER, "space": [16, 32]}, DEFAULT]),
    "an unknown parameter": (1, [{**HEADER, "space": {**HEADER["space"], "x": [1]}}, DEFAULT]),
    "no instances": (1, [{**HEADER, "instances": []}, DEFAULT]),
    "half a token": (1, [{**HEADER, "instances": [{"tokens": 0.5, "adapters": 1}]}, DEFAULT]),
    "a numbered device": (1, [{**HEADER, "device": 200}, DEFAULT]),
    "an unknown kernel": (1, [{**HEADER, "kernel": "stretch"}, DEFAULT]),
    "slices of a shrink": (1, [{**HEADER, "slice_offsets": [0, 1024]}, DEFAULT]),
    "a torn line": (3, [HEADER, DEFAULT, '{"config": {"BLOCK', MEASURED]),
    "an empty line": (3, [HEADER, DEFAULT, "\n", MEASURED]),
    "a line that is a number": (3, [HEADER, DEFAULT, "7\n"]),
    "a bottomless line": (3, [HEADER, DEFAULT, "[" * 100_000 + "\n"]),
    "an endless number": (3, [HEADER, DEFAULT, "9" * 10_000 + "\n"]),
    "a config twice": (4, [HEADER, DEFAULT, MEASURED, {**FAILED, "config": FIRST}]),
    "no config": (3, [HEADER, DEFAULT, {"times_us": [1.0]}]),
    "a config that is none": (3, [HEADER, DEFAULT, {**MEASURED, "config": {"BLOCK_N": 16}}]),
    "neither times nor failure": (3, [HEADER, DEFAULT, {"config": FIRST}]),
    "a failure without a kind": (3, [HEADER, DEFAULT, {**FAILED, "failure": {"message": "x"}}]),
    "a failure that is a word": (3, [HEADER, DEFAULT, {**FAILED, "failure": "crash"}]),
    "too many times": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [1.0, 2.0]}]),
    "no time": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [0]}]),
    "time as a word": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": ["58.9"]}]),
    "time that is true": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [True]}]),
    "not a number": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [float("nan")]}]),
    "endless time": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [float("inf")]}]),
    "time beyond a float": (3, [HEADER, DEFAULT, {**MEASURED, "times_us": [10**400]}]),
    "registers as a word": (3, [HEADER, DEFAULT, {**MEASURED, "registers": "many"}]),
    "a compile time as a word": (3, [HEADER, DEFAULT, {**MEASURED, "compile_s": "short"}]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_wrong_is_refused_with_its_line(what, tmp_path):
    number, lines = HOSTILE[what]
    with pytest.raises(LandscapeError, match=rf"it\.jsonl:{number}: \S"):
        read(tmp_path, *lines)


@pytest.mark.parametrize("name", [key for key in HEADER if key not in ("slice_offsets", "kernels")])
def test_a_missing_field_is_named(name, tmp_path):
    header = {key: value for key, value in HEADER.items() if key != name}
    with pytest.raises(LandscapeError, match=rf"it\.jsonl:1: .*{name}"):
        read(tmp_path, header, DEFAULT)


def test_a_landscape_without_the_default_is_refused(tmp_path):
    with pytest.raises(LandscapeError, match=r"it\.jsonl lacks the default"):
        read(tmp_path, HEADER, MEASURED, FAILED)


@pytest.mark.parametrize("spoil", ["cut", "flipped", "not gzipped", "not text", "a folder", "gone"])
def test_a_file_that_cannot_be_read_is_named(spoil, tmp_path):
    path = tmp_path / "it.jsonl.gz"
    write_landscape(path, bowl_landscape())
    raw = path.read_bytes()
    path.unlink()
    if spoil == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif spoil == "flipped":  # an invalid block type, which zlib reports in a way of its own
        path.write_bytes(raw[:10] + b"\xff" * 40 + raw[50:])
    elif spoil == "not gzipped":
        path.write_bytes(b'{"landscape": 1}\n')
    elif spoil == "not text":
        path.write_bytes(gzip.compress(b"\xff\xfe\n"))
    elif spoil == "a folder":
        path.mkdir()
    with pytest.raises(LandscapeError, match=r"it\.jsonl\.gz cannot be read: \S"):
        read_landscape(path)


def test_the_best_without_a_default_that_runs(tmp_path):
    broken = {"config": DEFAULT["config"], "failure": {"kind": "crash", "message": "x"}}
    landscape = read(tmp_path, HEADER, broken, MEASURED, {"config": SECOND, "times_us": [29.45]})
    assert landscape.cost(DEFAULT_CONFIGS["shrink"]) is None
    assert landscape.best() == (Config(**SECOND), 0.5)


def test_what_is_known_of_the_platform_is_kept(tmp_path):
    known = {"driver": "580.159.04", "torch": "2.11.0", "kernels_version": "0123456789ab"}
    landscape = read(tmp_path, {**HEADER, **known, "date": "today"}, *LINES[1:])
    assert landscape.platform.details == known
    assert landscape.platform == Platform(device="NVIDIA H200", triton="3.6.0")
    assert landscape.note == {"date": "today"}
    write_landscape(tmp_path / "again.jsonl", landscape)
    assert read_landscape(tmp_path / "again.jsonl").platform.details == known
    odd = read(tmp_path, {**HEADER, "driver": 580}, *LINES[1:])
    assert (odd.platform.driver, odd.note) == (None, {"driver": 580})


def test_there_is_no_best_where_everything_fails(tmp_path):
    broken = {"config": DEFAULT["config"], "failure": {"kind": "crash", "message": "x"}}
    with pytest.raises(LandscapeError, match="no measurement"):
        read(tmp_path, HEADER, broken, FAILED).best()


def test_the_cost_weighs_the_instances(tmp_path):
    instances = [{"tokens": 32, "adapters": 8, "weight": 3}, {"tokens": 30720, "adapters": 1}]
    landscape = read(
        tmp_path,
        {**HEADER, "instances": instances},
        {**DEFAULT, "times_us": [10, 100]},
        {**MEASURED, "times_us": [5, 102]},
        {"config": SECOND, "times_us": [5, 200]},
    )
    assert landscape.cost(Config(**FIRST)) == pytest.approx((3 * 0.5 + 1 * 1.02) / 4)
    # What loses on an instance costs more than its mean: it could not win.
    assert landscape.cost(Config(**SECOND)) == pytest.approx((3 * 0.5 + 1 * 2.0) / 4 + 2 * 0.98)


@st.composite
def landscapes(draw):
    kernel = draw(st.sampled_from(["shrink", "expand"]))
    axis = st.lists(st.integers(1, 1024), min_size=1, max_size=3, unique=True).map(tuple)
    axes = {"BLOCK_N": draw(axis), "BLOCK_K": draw(axis)}
    if draw(st.booleans()):
        axes["maxnreg"] = (None, *draw(axis))
    space = SearchSpace(axes)
    slices = draw(st.integers(1, 3))
    workload = tuple(
        Instance(tokens=tokens, adapters=draw(st.integers(1, tokens)), weight=weight)
        for tokens, weight in draw(
            st.lists(st.tuples(st.integers(1, 9999), st.floats(0.1, 9.0)), min_size=1, max_size=3)
        )
    )
    times = st.tuples(*[st.integers(1, 10**8).map(lambda ns: ns / 1000) for _ in workload])
    outcomes = st.builds(Measurement, times_us=times, coarse=st.booleans()) | st.builds(
        Failure, kind=st.sampled_from(FAILURE_KINDS), message=st.text()
    )
    needs = st.builds(
        Resources,
        registers=st.integers(0, 255),
        spill_words=st.integers(0, 9999),
        smem_bytes=st.integers(0, 9999),
    )
    trials = {
        config: Trial(
            config=config,
            outcome=draw(outcomes),
            compile_s=draw(st.none() | st.floats(0, 100)),
            resources=draw(st.none() | needs),
        )
        for config in (DEFAULT_CONFIGS[kernel], *space)
    }
    return Landscape(
        task=Task(
            kernel=kernel,
            K=64 * slices,
            R=draw(st.integers(1, 512)),
            S=slices,
            chunk_size=draw(st.sampled_from([16, 32, 64, 128])),
            dtype=draw(st.sampled_from(DTYPES)),
        ),
        workload=workload,
        platform=Platform(device=draw(st.text()), triton="3.6.0", kernels=draw(st.text())),
        space=space,
        trials=trials,
        note=draw(st.dictionaries(st.just("date"), st.text())),
    )


@given(landscape=landscapes(), suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_what_is_written_is_read_again(landscape, suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("landscape") / f"it{suffix}"
    write_landscape(path, landscape)
    again = read_landscape(path)
    assert again == landscape
    assert list(again.trials) == list(landscape.trials)


def test_a_space_that_is_not_a_grid_of_numbers_is_refused_where_it_is_made():
    with pytest.raises(UsageError, match="BLOCK_N"):
        SearchSpace({"BLOCK_N": (None, 16), "BLOCK_K": (64,)})
