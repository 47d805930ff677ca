"""Replaying landscapes: which ones, what is printed and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.cli import tuning
from lora_autotune.config_file import read_config_file
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.landscape import read_landscape, write_landscape
from lora_autotune.provenance import provenance_path, read_provenance_file
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.trial import Measurement
from lora_autotune.workload import PRESETS, reaching
from tests.cli_runs import BEST, BEST_US, config_file, error_of, landscape_file, run


def test_a_replay_writes_the_best_of_each_landscape(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    assert run("tune", "--replay", *files, "--out", str(out)) == 0

    assert read_config_file(config_file(out)) == {16: BEST, 64: BEST}
    printed = capsys.readouterr().out
    first, *rest = printed.splitlines()
    assert first.startswith(
        "Replaying recorded measurements of NVIDIA H200 (Triton 3.6.0): no GPU is used"
    )
    assert rest[0].startswith("[1/2] shrink K=1024 R=64 S=3 chunk 16: ")
    assert "17 trials, 4 failed" in rest[0]
    assert f"wrote {config_file(out)}" in rest
    assert rest[-1].endswith(f"export SGLANG_LORA_CONFIG_DIR={out}")


@pytest.mark.parametrize("strategy", ["tpe", "grid", "random"])
def test_json_is_all_there_is_on_stdout(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    out = str(tmp_path / "out")

    code = run("tune", "--replay", *files, "--json", "--strategy", strategy, "--out", out)

    printed, err = capsys.readouterr()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert code == 0
    assert err.startswith("Replaying ")
    assert [line["chunk_size"] for line in lines] == [16, 64]
    expected = {
        "kernel": "shrink",
        "K": 1024,
        "R": 64,
        "S": 3,
        "chunk_size": 16,
        "config": BEST,
        "default_us": 10.0,
        "trials": 17,
        "failures": 4,
        "replayed": True,
        "file": str(config_file(tmp_path / "out")),
    }
    assert lines[0].items() >= expected.items()
    assert lines[0]["time_us"] == pytest.approx(BEST_US)
    assert lines[0]["speedup"] == pytest.approx(10 / BEST_US)


def test_where_nothing_beats_the_default_it_stands_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = landscape_file(tmp_path, 16, default_us=1.0)
    out = tmp_path / "out"

    assert run("tune", "--replay", str(file), "--out", str(out)) == 0

    assert read_config_file(config_file(out)) == {16: DEFAULT_CONFIGS["shrink"].as_dict()}
    assert "default stands" in " ".join(capsys.readouterr().out.split())


def test_without_files_the_shipped_landscapes_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "SHIPPED_LANDSCAPES", tmp_path)
    for K, chunk_size in [(1024, 16), (1024, 64), (2048, 64)]:
        landscape_file(tmp_path, chunk_size, K=K)

    def replayed(*words: str) -> list[tuple[int, int]]:
        out = ["--out", str(tmp_path / "out"), "--resume"]
        assert run("tune", "--replay", "--json", "--trials", "3", *out, *words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [(line["K"], line["chunk_size"]) for line in lines]

    assert replayed() == [(1024, 16), (1024, 64), (2048, 64)]
    assert replayed("--chunk-sizes", "64") == [(1024, 64), (2048, 64)]
    assert replayed("--model", "qwen3-0.6b", "--rank", "64") == [(1024, 16), (1024, 64)]
    assert replayed("--kernel", "shrink", "-K", "2048", "-S", "3", "--rank", "64") == [(2048, 64)]


def test_of_shipped_landscapes_of_one_task_the_one_on_the_usual_batches_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "SHIPPED_LANDSCAPES", tmp_path)
    usual = read_landscape(landscape_file(tmp_path, 64))  # of 30,720 tokens
    busy = reaching(PRESETS["chat"], 64)
    trials = {
        config: replace(trial, outcome=replace(trial.outcome, times_us=trial.outcome.times_us * 2))
        if isinstance(trial.outcome, Measurement)
        else trial
        for config, trial in usual.trials.items()
    }
    chat = replace(usual, workload=busy, trials=trials)
    write_landscape(tmp_path / "A-chat.jsonl.gz", chat)

    def batches(*words: str) -> list[list[int]]:
        out = str(tmp_path / "out")
        words = ("--trials", "3", "--strategy", "grid", "--json", "--out", out, *words)
        assert run("tune", "--replay", *words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return [[one["tokens"] for one in line["instances"]] for line in lines]

    assert batches() == [[30_720]]
    assert batches("--workload", "chat") == [[512, 8192]]
    (tmp_path / "K1024-chunk64.jsonl.gz").unlink()
    assert batches() == [[512, 8192]]


def test_of_shipped_landscapes_alike_one_of_the_kernels_here_is_replayed_else_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "SHIPPED_LANDSCAPES", tmp_path)

    def recorded(name: str, default_us: float, version: str | None) -> None:
        file = landscape_file(tmp_path, 64, default_us=default_us)
        one = read_landscape(file)
        file.unlink()
        platform = replace(one.platform, kernels_version=version)
        write_landscape(tmp_path / name, replace(one, platform=platform))

    def replayed_us() -> float:
        words = ["--trials", "3", "--json", "--out", str(tmp_path / "out")]
        assert run("tune", "--replay", *words) == 0
        return float(json.loads(capsys.readouterr().out)["default_us"])

    recorded("a.jsonl.gz", 11.0, None)
    recorded("c.jsonl.gz", 13.0, "an old one")
    assert replayed_us() == 11.0
    recorded("b.jsonl.gz", 12.0, builtin_kernels_version())
    assert replayed_us() == 12.0


def test_a_replay_that_no_landscape_fits_is_refused(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ["--rank", "32"], ["--tokens", "32:8"], ["--dtype", "bfloat16"]:
        assert "no landscape" in error_of(capsys, "tune", "--replay", *files, *words)
    assert "two landscapes" in error_of(capsys, "tune", "--replay", files[0], files[0])


def test_a_space_that_was_not_recorded_is_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--replay", *files, "--space", "wide", "--out", str(tmp_path / "out")]

    assert run(*words) == 1
    assert "was not recorded" in capsys.readouterr().err


def test_a_landscape_of_other_kernels_is_replayed_for_those_only(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landscape = read_landscape(Path(files[0]))
    theirs = tmp_path / "theirs.jsonl.gz"
    platform = replace(landscape.platform, kernels="sglang-0.5.23", kernels_version="0123")
    write_landscape(theirs, replace(landscape, platform=platform))
    out = ["--out", str(tmp_path / "out")]
    replay = ["tune", "--replay", str(theirs), *out]

    assert "on the kernels sglang-0.5.23" in error_of(capsys, *replay)
    words = ["tune", "--replay", *files, "--kernels", "sglang"]
    assert "on the kernels builtin" in error_of(capsys, *words)
    assert run(*replay, "--kernels", "sglang") == 0
    assert "Triton 3.6.0, kernels sglang-0.5.23" in capsys.readouterr().out
    (entry,) = read_provenance_file(provenance_path(config_file(tmp_path / "out"))).values()
    assert (entry.kernels, entry.kernels_version) == ("sglang-0.5.23", "0123")
    assert run("tune", "--replay", files[1], *out) == 1
    assert "must not be mixed" in capsys.readouterr().err
