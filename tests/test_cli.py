"""Typos and what is missing get one line each; a model or a kernel by hand names its tasks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune import cli
from lora_autotune.cli import tuning
from lora_autotune.cli.arguments import make_parser, out_folder
from lora_autotune.cli.tasks import refuse_shared_entries
from lora_autotune.errors import UsageError
from lora_autotune.task import Instance, Task
from tests.cli_runs import error_of, landscape_file, run


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
