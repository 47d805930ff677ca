from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import lora_autotune
from lora_autotune import cli
from lora_autotune.cli import tuning
from lora_autotune.cli.arguments import make_parser, out_folder
from lora_autotune.cli.inspecting import print_provenance
from lora_autotune.cli.screen import Screen
from lora_autotune.cli.tasks import refuse_shared_entries
from lora_autotune.config_file import merge_config_file, read_config_file
from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.landscape import Landscape, read_landscape, write_landscape
from lora_autotune.loader import clear_cache
from lora_autotune.provenance import (
    provenance_path,
    read_provenance_file,
    write_with_provenance,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import DTypeName, Instance, Task
from lora_autotune.trial import Failure, Measurement, Outcome, Trial
from lora_autotune.workload import PRESETS, reaching
from tests.provenance_cases import ENTRY

SPACE = SearchSpace(
    {"BLOCK_N": (16, 32), "BLOCK_K": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3)}
)
BEST_US = 3.0
BEST = {"BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 8, "num_stages": 3}


def outcome(config: Config, default_us: float) -> Outcome:
    if config == DEFAULT_CONFIGS["shrink"]:
        return Measurement(times_us=(default_us,))
    if (config.num_warps, config.num_stages) == (4, 3):
        return Failure(kind="resources", message="too much shared memory")
    assert config.num_warps is not None
    assert config.num_stages is not None
    tile_us = 8192 / (config.BLOCK_N * config.BLOCK_K)
    return Measurement(times_us=(tile_us + 4 / config.num_warps + 1.5 / config.num_stages,))


def landscape_file(
    folder: Path,
    chunk_size: int,
    *,
    default_us: float = 10.0,
    K: int = 1024,
    dtype: DTypeName = "float16",
    device: str = "NVIDIA H200",
) -> Path:
    task = Task(kernel="shrink", K=K, R=64, S=3, chunk_size=chunk_size, dtype=dtype)
    configs = [DEFAULT_CONFIGS["shrink"], *SPACE]
    landscape = Landscape(
        task=task,
        workload=(Instance(tokens=30_720),),
        platform=Platform(device=device, triton="3.6.0"),
        space=SPACE,
        trials={c: Trial(config=c, outcome=outcome(c, default_us)) for c in configs},
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"K{K}-chunk{chunk_size}.jsonl.gz"
    write_landscape(path, landscape)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [str(landscape_file(tmp_path, chunk)) for chunk in (16, 64)]


def run(*words: str) -> int:
    """The exit code, also where argparse exits."""
    try:
        return cli.main(words)
    except SystemExit as stopped:
        return int(str(stopped.code))


def error_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a command fails with."""
    assert run(*words) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("lora-autotune")
    return line


def config_file(out: Path) -> Path:
    name = "lora_shrink,K=1024,R=64,S=3,device=NVIDIA_H200.json"
    return out / "csgmv_configs" / "triton_3_6_0" / name


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


def test_tasks_that_would_overwrite_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    half = landscape_file(tmp_path / "half", 16)
    brain = landscape_file(tmp_path / "brain", 16, dtype="bfloat16")
    line = error_of(capsys, "tune", "--replay", str(half), str(brain), *out)
    assert "shrink,K=1024,R=64,S=3,chunk=16,float16 and " in line
    assert "shrink,K=1024,R=64,S=3,chunk=16,bfloat16" in line
    assert not (tmp_path / "out").exists()
    both = ["tune", "--replay", str(half), str(brain), *out]
    assert run(*both, "--dtype", "bfloat16") == 0

    elsewhere = landscape_file(tmp_path / "b200", 16, dtype="bfloat16", device="NVIDIA B200")
    assert run("tune", "--replay", str(half), str(elsewhere), *out) == 0  # files of their own
    assert "B200" in capsys.readouterr().out

    cuts = [(0, 64, 128, 192), (0, 128, 160, 192)]
    tasks = [
        Task(kernel="expand", K=192, R=8, S=3, chunk_size=16, slice_offsets=cut) for cut in cuts
    ]
    with pytest.raises(UsageError, match=r"slices=64\+64\+64 and .*slices=128\+32\+32"):
        refuse_shared_entries(tasks)
    refuse_shared_entries([*tasks[:1], *tasks[:1], replace(tasks[1], chunk_size=32)])


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


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "tune|record|lookup|check|strategies"),
        (["tuna"], "did you mean tune?"),
        (["tune", "--modle", "Qwen3-0.6B"], "did you mean --model?"),
        (["tune", "--strat=tpe"], "did you mean --strategy?"),
        (["tune", "-X", "3"], "allowed: -h, --help, --model"),
        (["tune", "--kernel", "shrnk"], "did you mean shrink?"),
        (["tune", "--dtype", "int8"], "allowed: float16, bfloat16"),
        (["tune", "--trials", "many"], "a positive integer is allowed, not 'many'"),
        (["tune", "--trials", "0"], "a positive integer is allowed"),
        (["tune", "--timeout", "-1"], "a positive number of seconds is allowed"),
        (["tune", "--tokens", "32x8"], "TOKENS or TOKENS:ADAPTERS is allowed"),
        (["tune", "--tokens", "4:8"], "at least as many tokens as adapters"),
        (["tune", "--strategy", "tpee", "--replay"], "installed: auto, gp, grid, random, tpe"),
        (["tune"], "name either a --model or a --kernel"),
        (["tune", "--model", "Qwen3-0.6B", "--kernel", "shrink"], "either"),
        (["tune", "--model", "Qwen3-0.6B"], "--rank is missing"),
        (["tune", "--model", "Qwen3-0.6B", "--rank", "8", "-K", "9"], "-K belongs to --kernel"),
        (["tune", "--kernel", "shrink", "-K", "9", "--tp", "2"], "--tp belongs to --model"),
        (["tune", "--kernel", "shrink", "--rank", "8"], "-K is missing"),
        (["tune", "--kernel", "shrink", "--rank", "8", "-K", "9", "--chunk-sizes", "24"], "16, 32"),
        (["lookup", "--kernel", "shrink"], "required: -K, -R, -S, --chunk-size"),
        (["check"], "required: PATH"),
        (["check", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_typo_gets_one_line_that_says_what_is_allowed(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in error_of(capsys, *words)


def test_an_unknown_model_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    words = ["tune", "--model", "Qwen3-0.6", "--rank", "64"]
    assert "did you mean Qwen3-0.6B?" in error_of(capsys, *words, code=1)


@pytest.mark.parametrize(
    ("module", "extra"), [("optuna", "[tune]"), ("rich", "[tune]"), ("triton", "[tune,cuda]'; or")]
)
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(tuning, "read_landscape", missing)

    line = error_of(capsys, "tune", "--replay", "x.jsonl", code=1)
    assert f"{module} is not installed (pip install 'lora-autotune{extra}" in line


def test_our_own_missing_module_is_a_bug_not_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'lora_autotune.x'", name="lora_autotune.x")

    monkeypatch.setattr(tuning, "read_landscape", missing)

    with pytest.raises(ModuleNotFoundError):
        run("tune", "--replay", "x.jsonl")


def work(*words: str) -> dict[Task, tuple[Instance, ...]]:
    arguments = cli.make_parser().parse_args(["tune", *words])
    return cli.tasks.named_work(arguments)


def test_a_models_tasks_are_tuned_on_what_reaches_their_chunk_size() -> None:
    named = work("--model", "Qwen3-0.6B", "--rank", "64")

    assert len(named) == 28
    batches = {task.chunk_size: "+".join(map(str, load)) for task, load in named.items()}
    assert batches == {16: "32:8+30720:1", 32: "128:8+30720:1", 64: "30720:1", 128: "30720:1"}


def test_lm_head_is_tuned_on_few_rows_and_only_on_request() -> None:
    words = ["--model", "Qwen3-0.6B", "--rank", "64", "--chunk-sizes", "64"]
    without, named = work(*words), work(*words, "--lm-head")

    head = {task: load for task, load in named.items() if task not in without}
    assert [(task.kernel, task.K, task.S) for task in head] == [
        ("shrink", 1024, 1),
        ("expand", 151_936, 1),
    ]
    assert set(head.values()) == {(Instance(tokens=32, adapters=8),)}
    assert list(named)[: len(without)] == list(without)


def test_a_task_by_hand() -> None:
    widths = ["--slices", "2048", "1024", "1024"]
    tokens = ["--tokens", "512", "32:8"]
    named = work("--kernel", "expand", "-K", "4096", "--rank", "8", *widths, *tokens)

    assert {task.slice_offsets for task in named} == {(0, 2048, 3072, 4096)}
    assert [task.chunk_size for task in named] == [16, 32, 64, 128]
    assert set(named.values()) == {(Instance(tokens=512), Instance(tokens=32, adapters=8))}


def test_what_a_mixture_leaves_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_experts": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert {task.S for task in work("--model", str(tmp_path), "--rank", "8")} == {1, 3}
    assert "64 experts" in capsys.readouterr().err


def test_lookup_says_what_from_where_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    merge_config_file(config_file(tmp_path), {16: BEST})
    words = ["lookup", "--kernel", "shrink", "-K", "1024", "-R", "64", "-S", "3"]
    words += ["--device", "NVIDIA H200", "--triton", "3.6.0"]

    assert run(*words, "--chunk-size", "64") == 0
    printed = capsys.readouterr().out
    assert "config: BLOCK_N=32 BLOCK_K=128 num_warps=8 num_stages=3" in printed
    assert str(config_file(tmp_path)) in printed
    assert "no chunk size 64, the nearest is 16" in printed

    words[4] = "512"
    assert run(*words, "--chunk-size", "64") == 0
    printed = capsys.readouterr().out
    assert "config: BLOCK_N=16 BLOCK_K=256\n" in printed
    assert "the defaults" in printed


def test_lookup_says_for_which_kernels_and_when_a_config_is_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    write_with_provenance(config_file(tmp_path), 16, replace(ENTRY, config=BEST))
    words = ["lookup", "--kernel", "shrink", "-K", "1024", "-R", "64", "-S", "3"]
    words += ["--device", "NVIDIA H200", "--triton", "3.6.0", "--chunk-size", "16"]

    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert f"for:    builtin kernels, from {tmp_path}\n" in printed
    assert "warning" not in printed

    assert run(*words, "--kernels", "sglang") == 0
    printed = capsys.readouterr().out
    assert f"for:    sglang kernels, from {tmp_path}\n" in printed
    assert "warning: looked up for sglang, but tuned on builtin\n" in printed


def test_without_sglang_its_kernels_cannot_be_tuned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "sglang" else real(n))
    words = ["tune", "--kernel", "shrink", "-K", "1024", "--rank", "64", "--kernels", "sglang"]
    line = error_of(capsys, *words, code=1)
    assert "SGLang is not installed here: there are no kernels of it to tune" in line


def test_kernels_of_others_have_folders_of_their_own() -> None:
    for command, usual in (("tune", "lora_configs"), ("record", "landscapes")):
        for words, folder in (
            ([], usual),
            (["--kernels", "sglang"], f"{usual}/sglang"),
            (["--kernels", "sglang", "--out", "here"], "here"),
        ):
            assert out_folder(make_parser().parse_args([command, *words]), usual) == Path(folder)


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


def test_lookup_says_where_a_config_is_from(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "customer" / "out"
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(out))
    words = ["lookup", "--kernel", "shrink", "-K", "1024", "-R", "64", "-S", "3"]
    words += ["--device", "NVIDIA H200", "--triton", "3.6.0", "--chunk-size", "64"]
    assert run("tune", "--replay", *files, "--out", str(out), "--strategy", "grid") == 0
    capsys.readouterr()

    assert run(*words) == 0
    printed = capsys.readouterr().out
    names = " ".join(Path(file).name for file in files)
    today = datetime.now(tz=timezone.utc).date().isoformat()
    assert printed.partition("kernels: ")[2].splitlines() == [
        "builtin (their version was not recorded)",
        "provenance: a replay of recorded measurements",
        f"  command: lora-autotune tune --replay {names} --out out --strategy grid",
        f"  date:    {today}, lora-autotune {lora_autotune.__version__}",
        "  on:      NVIDIA H200, Triton 3.6.0",
        "  search:  grid, 17 configs of the space own (16)",
        "  dtype:   float16",
        "  batch:   30720:1 1.0: 3.0 us (default 10.0 us, 3.33x)",
    ]
    assert run("check", str(out)) == 0
    assert capsys.readouterr().out == "1 good, 0 bad\n"

    merge_config_file(config_file(out), {64: {"BLOCK_N": 16, "BLOCK_K": 16}})
    clear_cache()
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "kernels: not known\n" in printed
    assert "provenance: of another config (the file was edited since)\n" in printed
    assert run("check", str(out)) == 1
    assert "is of another config than that in the file beside it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kernels", "version", "said"),
    [
        ("builtin", None, "builtin (their version was not recorded)\n"),
        ("builtin", builtin_kernels_version(), f"builtin {builtin_kernels_version()}\n"),
        ("builtin", "0123", f"builtin 0123 (those here are {builtin_kernels_version()}: changed"),
        ("sglang-0.5.23", "0123", "sglang-0.5.23 0123\n"),
    ],
)
def test_lookup_names_the_kernels_that_a_config_was_tuned_on(
    kernels: str, version: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_provenance(replace(ENTRY, kernels=kernels, kernels_version=version))
    assert f"kernels: {said}" in capsys.readouterr().out


def test_lookup_says_everything_that_is_known_of_a_config(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_provenance(replace(ENTRY, command=None, default_times_us=()))
    printed = capsys.readouterr().out
    assert "provenance: measured\n  command: none: from Python\n" in printed
    assert "  on:      NVIDIA H200, driver 580.159.04, Triton 3.6.0, torch 2.11.0\n" in printed
    assert "  dtype:   float16, slices 2048+1024+1024\n" in printed
    assert "  batch:   30720:1 0.5: 200.0 us (the default does not run)\n" in printed


def test_check_passes_a_good_tree_and_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = config_file(tmp_path)
    merge_config_file(good, {16: BEST})
    assert run("check", str(tmp_path)) == 0
    assert capsys.readouterr().out == "1 good, 0 bad\n"

    bad = good.with_name(good.name.replace("K=1024", "K=2048"))
    bad.write_text('{"16": {"BLOCK_N": 0, "BLOCK_K": 64}}')
    assert run("check", str(tmp_path)) == 1
    out, err = capsys.readouterr()
    assert out == "1 good, 1 bad\n"
    assert str(bad) in err
    assert "BLOCK_N must be" in err


def test_check_of_a_folder_without_config_files_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no config file" in error_of(capsys, "check", str(tmp_path))


def test_strategies_lists_the_built_in_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("strategies") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.items() >= {"grid": "built in", "random": "built in", "tpe": "built in"}.items()


def test_as_a_module_in_a_process_of_its_own() -> None:
    root = Path(lora_autotune.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "lora_autotune", "tune", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )

    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--model", "--replay", "--chunk-sizes", "--tokens", "--resume", "--json"):
        assert option in done.stdout
