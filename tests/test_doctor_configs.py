"""The doctor on config files: which a server here would find, and which are bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.config_file import merge_config_file
from lora_autotune.doctor import configs
from lora_autotune.doctor.configs import examine_configs
from lora_autotune.doctor.finding import Section
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.provenance import write_with_provenance
from tests.doctor_cases import (
    GOOD,
    config_file,
    facts_of,
    only_problem,
    problems,
)
from tests.provenance_cases import ENTRY


def test_configs_are_counted_by_what_a_server_here_would_do_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    for path in (
        config_file(tmp_path),
        config_file(tmp_path, K=2048),
        config_file(tmp_path, triton="3_7_1"),
        config_file(tmp_path, gpu="B200"),
    ):
        merge_config_file(path, GOOD)

    section = examine_configs("NVIDIA H200", "3.7.1+git12")
    assert problems(section) == []
    assert "for NVIDIA H200 and Triton 3.7.1+git12: 1 file" in facts_of(section, "ok")
    assert "for other GPUs: NVIDIA_B200 under triton_3_6_0 (1 file)" in facts_of(section, "ok")
    (note,) = facts_of(section, "note")
    assert note.endswith("3.7.1+git12: 1 file (triton_3_6_0), used with a warning")

    (note,) = facts_of(examine_configs("NVIDIA L4", "3.6.0"), "note")
    assert note == "none for NVIDIA L4: its server gets the defaults"
    assert "no GPU here" in facts_of(examine_configs(None, "3.6.0"), "note")[0]
    assert "no Triton here" in facts_of(examine_configs("NVIDIA H200", None), "note")[0]


def test_the_kernels_that_configs_were_tuned_on_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    here = builtin_kernels_version()
    ours = replace(ENTRY, config=GOOD[16], kernels_version=here)
    write_with_provenance(config_file(tmp_path), 16, ours)
    write_with_provenance(config_file(tmp_path), 64, ours)
    write_with_provenance(config_file(tmp_path, gpu="B200"), 16, replace(ours, kernels="other"))
    merge_config_file(config_file(tmp_path, K=2048), GOOD)

    section = examine_configs("NVIDIA H200", "3.6.0")
    said = f"tuned on the kernels: builtin {here} (2 entries), not recorded (1 entry)"
    assert said in facts_of(section, "ok")
    assert section.facts["kernels"] == {f"builtin {here}": 2, "not recorded": 1}
    assert facts_of(section, "note") == []
    assert sum(examine_configs("NVIDIA L4", "3.6.0").facts["kernels"].values()) == 4

    write_with_provenance(config_file(tmp_path), 64, replace(ours, kernels_version="0123"))
    (note,) = facts_of(examine_configs("NVIDIA H200", "3.6.0"), "note")
    assert note == f"the kernels here are builtin {here}: 1 entry was tuned on an earlier version"

    theirs = replace(ours, kernels="sglang-0.5.23", kernels_version=None)
    write_with_provenance(config_file(tmp_path, K=512), 16, theirs)
    (note,) = facts_of(examine_configs("NVIDIA H200", "3.6.0"), "note")
    assert note.startswith("tuned on different kernels: ")
    assert "sglang-0.5.23 (1 entry)" in note


def test_which_configs_sglang_launches_which_kernels_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_autotune.doctor.configs.installed_version", lambda _: "0.5.23")
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "configs")
    monkeypatch.delenv("SGLANG_LORA_CONFIG_DIR", raising=False)
    write_with_provenance(config_file(tmp_path), 16, replace(ENTRY, config=GOOD[16]))
    monkeypatch.setattr("lora_autotune.loader._PACKAGED", str(tmp_path))

    def served() -> str:
        (fact,) = (f for f in facts_of(section(), "ok") if f.startswith("SGLang 0.5.23, "))
        return fact.partition("LORA_AUTOTUNE_SGLANG=")[2]

    def section() -> Section:
        return examine_configs("NVIDIA H200", "3.6.0")

    assert served() == "configs: its kernels launch with its own files"
    write_with_provenance(
        config_file(tmp_path / "sglang"),
        16,
        replace(ENTRY, config=GOOD[16], kernels="sglang-0.5.23"),
    )
    assert served() == f"configs: its kernels launch with {tmp_path}/sglang"
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "off")
    assert served() == "off: its kernels launch with its own files"
    monkeypatch.delenv("LORA_AUTOTUNE_SGLANG")
    theirs = f"kernels: its kernels launch with {tmp_path}/sglang"
    assert served() == f"{theirs}; ours run where they can, with {tmp_path}"
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "layers")
    theirs = f"layers: its kernels launch with {tmp_path}/sglang"
    assert served() == f"{theirs}; ours run where they can, with {tmp_path}"
    assert not any("ones run" in note for note in facts_of(section(), "note"))

    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path / "sglang"))
    (note,) = (note for note in facts_of(section(), "note") if "ones run" in note)
    assert (
        note == "SGLANG_LORA_CONFIG_DIR has configs tuned on sglang kernels, but builtin ones run"
    )
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "configs")
    assert not any("ones run" in note for note in facts_of(section(), "note"))
    assert section().facts["sglang"]["configs"] == str(tmp_path / "sglang")


def test_a_provenance_of_another_config_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    write_with_provenance(config_file(tmp_path), 16, ENTRY)
    merge_config_file(config_file(tmp_path), GOOD)

    section = examine_configs("NVIDIA H200", "3.6.0")
    assert problems(section) == []
    assert f"{tmp_path} (SGLANG_LORA_CONFIG_DIR): 1 good, 0 bad" in facts_of(section, "ok")
    (note,) = facts_of(section, "note")
    assert "chunk size 16: is of another config" in note
    assert section.facts["kernels"] == {"not recorded": 1}


def test_every_bad_config_file_is_named_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(configs, "_MOST_NAMED", 2)
    merge_config_file(config_file(tmp_path), GOOD)
    for K in (1, 2, 3):
        config_file(tmp_path, K=K).write_text("{}")

    section = examine_configs("NVIDIA H200", "3.6.0")

    assert f"{tmp_path} (SGLANG_LORA_CONFIG_DIR): 1 good, 3 bad" in facts_of(section, "ok")
    first, second, rest = problems(section)
    assert f"{config_file(tmp_path, K=1)}: holds no chunk size" in first.fact
    assert f"{config_file(tmp_path, K=2)}: " in second.fact
    assert rest.fact == "and 1 file more"
    assert "lora-autotune check" in str(rest.remedy)


@pytest.mark.parametrize(
    ("below", "said"),
    [
        ("nowhere", "does not exist"),
        ("file", "is not a folder"),
        ("empty", "holds no csgmv_configs"),
        ("out/csgmv_configs", "is inside csgmv_configs"),
        ("out/csgmv_configs/triton_3_6_0", "is inside csgmv_configs"),
    ],
)
def test_a_root_where_a_server_finds_nothing_is_a_problem(
    below: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    merge_config_file(config_file(tmp_path / "out"), GOOD)
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path / below))

    problem = only_problem(examine_configs(None, None))

    assert said in problem.fact
    assert problem.stops == ("lookup",)
    if "inside" in said:
        assert problem.remedy == f"export SGLANG_LORA_CONFIG_DIR={tmp_path / 'out'}"
