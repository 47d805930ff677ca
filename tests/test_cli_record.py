"""A run's record is resumed, kept aside or left alone, and Ctrl-C loses nothing of it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_autotune
from lora_autotune.cli import tuning
from lora_autotune.cli.screen import Screen
from lora_autotune.config_file import read_config_file
from tests.cli_runs import BEST, config_file, error_of, run


def test_a_run_goes_on_only_if_it_is_resumed(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = str(tmp_path / "a.journal")
    words = ["tune", "--replay", *files, "--trials", "5", "--json", "--out", str(tmp_path / "out")]
    words += ["--journal", journal]
    assert run(*words) == 0
    before = capsys.readouterr().out

    assert run(*words) == 1
    err = capsys.readouterr().err
    assert f"{journal} already has " in err
    assert "--resume" in err
    assert run(*words, "--resume") == 0
    assert capsys.readouterr().out == before


def test_a_second_run_keeps_the_record_of_the_first_aside(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my out"
    words = ["tune", "--replay", *files, "--strategy", "random", "--out", str(out)]
    assert run(*words, "--trials", "5") == 0
    first = (out / "tune.journal").read_bytes()
    assert "earlier run" not in capsys.readouterr().out

    assert run(*words, "--trials", "7") == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "earlier run" in line]
    assert (out / "tune-1.journal").read_bytes() == first
    second = (out / "tune.journal").read_bytes()
    assert run(*words, "--trials", "3", "--json") == 0
    assert str(out / "tune-2.journal") in capsys.readouterr().err
    assert (out / "tune-2.journal").read_bytes() == second
    assert (out / "tune-1.journal").read_bytes() == first

    resume = shlex.split(said[said.index("(") + 1 : said.index(" goes on)")])
    assert resume == ["--resume", "--journal", str(out / "tune-1.journal")]
    assert run(*words, "--trials", "5", "--json", *resume) == 0
    assert (out / "tune-1.journal").read_bytes() == first  # nothing was measured again


TUNER = """
import sys, time
from lora_autotune import cli
from lora_autotune.cli.screen import Screen
from lora_autotune.cli.tasks import refuse_shared_entries
progress = Screen.progress
def stop(self, seen):
    progress(self, seen)
    if seen.done == 5:
        print("stopped", file=sys.stderr, flush=True)
        time.sleep(600)
Screen.progress = stop
cli.main(sys.argv[1:])
"""


def test_the_record_of_a_run_that_goes_on_is_not_touched_and_kill_9_frees_it(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["tune", "--replay", *files, "--trials", "9", "--json", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", TUNER, *words],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(lora_autotune.__file__).parent.parent)},
        text=True,
    ) as live:
        try:
            assert live.stderr is not None
            assert any(line == "stopped\n" for line in live.stderr)
            before = (out / "tune.journal").read_bytes()

            assert run(*words) == 1
            assert f"{out / 'tune.journal'} is in use by another run" in capsys.readouterr().err
            assert (out / "tune.journal").read_bytes() == before
        finally:
            live.kill()

    assert run(*words) == 0
    assert str(out / "tune-1.journal") in capsys.readouterr().err
    assert (out / "tune-1.journal").read_bytes() == before
    assert run(*words, "--resume", "--journal", str(out / "tune-1.journal")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert (out / "tune-1.journal").read_bytes().startswith(before)


def test_a_journal_of_other_tasks_is_not_resumed(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--trials", "3"]
    assert run("tune", "--replay", files[0], *out) == 0
    capsys.readouterr()

    assert run("tune", "--replay", files[1], *out, "--resume") == 1
    assert "record of other tasks" in capsys.readouterr().err


def interrupt_after(monkeypatch: pytest.MonkeyPatch, trials: int) -> None:
    """Ctrl-C once a task has so many trials, in the second task."""
    progress = Screen.progress

    def interrupted(self: Screen, seen: Any) -> None:
        progress(self, seen)
        if seen.task.chunk_size == 64 and seen.done == trials:
            raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "progress", interrupted)


@pytest.mark.parametrize("script", [None, "my scripts/tune"])
def test_ctrl_c_keeps_what_was_measured_and_says_how_to_go_on(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str | None,
) -> None:
    out = tmp_path / "out"
    words = ["tune", "--replay", *files, "--out", str(out)]
    if script is None:
        monkeypatch.delenv("LORA_AUTOTUNE_COMMAND", raising=False)
    else:
        monkeypatch.setenv("LORA_AUTOTUNE_COMMAND", script)

    with monkeypatch.context() as interrupting:
        interrupt_after(interrupting, 9)
        assert run(*words) == 130

    assert not config_file(out).exists()
    *_, unwritten, last = capsys.readouterr().err.splitlines()
    assert "1 finished task" in unwritten
    assert "--write-partial" in unwritten
    resume = shlex.split(last.removeprefix("To continue: "))
    command = ["lora-autotune", "tune"] if script is None else [script]
    assert resume == [*command, *words[1:], "--resume"]

    known: dict[int, int] = {}
    progress = Screen.progress

    def seen(self: Screen, at: Any) -> None:
        known.setdefault(at.task.chunk_size, at.done)
        progress(self, at)

    monkeypatch.setattr(Screen, "progress", seen)
    assert run("tune", *resume[len(command) :]) == 0
    assert read_config_file(config_file(out)) == {16: BEST, 64: BEST}
    assert known == {16: 17, 64: 9}  # where each task begins


def test_ctrl_c_writes_the_winners_so_far_if_asked(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_after(monkeypatch, 9)

    out = tmp_path / "out"
    assert run("tune", "--replay", *files, "--out", str(out), "--write-partial") == 130

    assert read_config_file(config_file(out)) == {16: BEST}
    assert f"wrote {config_file(out)}" in capsys.readouterr().err


@pytest.mark.parametrize("partial", [False, True])
def test_ctrl_c_prints_what_is_finished_as_json_and_writes_it_only_if_asked(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    partial: bool,
) -> None:
    interrupt_after(monkeypatch, 9)

    out = tmp_path / "out"
    words = ["tune", "--replay", *files, "--json", "--out", str(out)]
    assert run(*words, *["--write-partial"] * partial) == 130

    printed, err = capsys.readouterr()
    (line,) = map(json.loads, printed.splitlines())
    assert (line["chunk_size"], line["config"]) == (16, BEST)
    assert config_file(out).exists() == partial
    assert line["file"] == (str(config_file(out)) if partial else None)
    assert ("1 finished tasks were not written" in err) != partial
    assert (f"wrote {config_file(out)}" in err) == partial


def test_json_has_written_nothing_while_the_run_goes_on(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[bool] = []
    out = tmp_path / "out"
    progress = Screen.progress

    def looking(self: Screen, at: Any) -> None:
        seen.append(config_file(out).exists())
        progress(self, at)

    monkeypatch.setattr(Screen, "progress", looking)

    assert run("tune", "--replay", *files, "--json", "--out", str(out)) == 0
    assert set(seen) == {False}
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_ctrl_c_before_anything_has_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "read_landscape", interrupted)

    assert "interrupted" in error_of(capsys, "tune", "--replay", "x.jsonl", code=130)
