"""``lookup`` says which config, from where and why; ``check`` names what is wrong."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.cli.inspecting import print_provenance
from lora_autotune.config_file import merge_config_file
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.loader import clear_cache
from lora_autotune.provenance import write_with_provenance
from tests.cli_runs import BEST, config_file, error_of, run
from tests.provenance_cases import ENTRY


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
    assert "launch:" not in printed

    words[4] = "512"
    assert run(*words, "--chunk-size", "64") == 0
    printed = capsys.readouterr().out
    assert "config: BLOCK_N=16 BLOCK_K=256\n" in printed
    assert "the defaults" in printed
    assert "launch: what suits each batch" in printed

    assert run(*words, "--chunk-size", "64", "--kernels", "sglang") == 0
    assert "launch:" not in capsys.readouterr().out


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
    print_provenance(
        replace(ENTRY, command=None, default_times_us=(), held_out=("512:1", "2048:1"))
    )
    printed = capsys.readouterr().out
    assert "provenance: measured\n  command: none: from Python\n" in printed
    assert "  on:      NVIDIA H200, driver 580.159.04, Triton 3.6.0, torch 2.11.0\n" in printed
    assert "  dtype:   float16, slices 2048+1024+1024\n" in printed
    assert "  batch:   30720:1 0.5: 200.0 us (the default does not run)\n" in printed
    assert printed.endswith("  lost on none of, though not tuned on: 512:1, 2048:1\n")


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
