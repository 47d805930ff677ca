from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lora_autotune
from lora_autotune import chunk_file
from lora_autotune.cli.command import public_command
from lora_autotune.config_file import (
    FOLDER,
    config_file_path,
    merge_config_file,
    read_config_file,
)
from lora_autotune.config_tree import check_tree
from lora_autotune.errors import ConfigFileError
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.loader import get_lora_configs
from lora_autotune.provenance import (
    check_provenance,
    find_provenance,
    is_provenance,
    provenance_path,
    read_provenance_file,
    write_with_provenance,
)
from tests.provenance_cases import CONFIG, ENTRY

CHECKOUT = Path(lora_autotune.__file__).parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return config_file_path(
        tmp_path, "expand", 4096, 64, 3, device_name="NVIDIA H200", triton_version="3.6.0"
    )


def wrong_in(tree: Path) -> list[str]:
    return [str(error) for _, error in check_tree(tree) if error is not None]


class TestWriting:
    def test_what_is_written_is_read(self, file: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        assert read_config_file(file) == {64: CONFIG}
        assert find_provenance(file, 64, CONFIG) == ENTRY
        assert sorted(file.parent.iterdir()) == sorted([file, provenance_path(file)])
        assert provenance_path(file).name == file.name[: -len(".json")] + ".provenance.json"

    def test_configs_for_other_kernels_are_not_mixed_in(self, file: Path) -> None:
        theirs = replace(ENTRY, kernels="sglang-0.5.23")
        write_with_provenance(file, 64, theirs)
        before = [path.read_bytes() for path in sorted(file.parent.iterdir())]
        with pytest.raises(ConfigFileError, match=r"tuned on the kernels sglang-0\.5\.23.*--out"):
            write_with_provenance(file, 16, replace(ENTRY, kernels="builtin"))
        assert [path.read_bytes() for path in sorted(file.parent.iterdir())] == before
        write_with_provenance(file, 64, replace(theirs, kernels="sglang-0.5.24"))
        merge_config_file(file, {16: CONFIG})  # where it is from is not known

    def test_a_field_is_a_line(self, file: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        lines = provenance_path(file).read_text().splitlines()
        assert lines[:3] == [
            "{",
            '    "64": {',
            '        "config": {"BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4},',
        ]
        assert '        "workload": ["32:8 1.0", "30720:1 0.5"],' in lines
        assert len(lines) == 4 + len(asdict(ENTRY))

    def test_other_chunk_sizes_stay(self, file: Path) -> None:
        write_with_provenance(file, 128, ENTRY)
        other = replace(ENTRY, config={"BLOCK_N": 16, "BLOCK_K": 16}, command=None, driver=None)
        write_with_provenance(file, 16, other)
        assert read_provenance_file(provenance_path(file)) == {16: other, 128: ENTRY}
        assert list(read_config_file(file)) == [16, 128]

    @pytest.mark.parametrize("of", [lambda file: file, provenance_path])
    def test_where_one_is_malformed_neither_is_written(self, file: Path, of: Any) -> None:
        write_with_provenance(file, 64, ENTRY)
        of(file).write_text("{")
        before = [path.read_bytes() for path in sorted(file.parent.iterdir())]
        with pytest.raises(ConfigFileError, match="nothing was written") as caught:
            write_with_provenance(file, 16, ENTRY)
        assert caught.value.message.startswith(str(of(file)))
        assert [path.read_bytes() for path in sorted(file.parent.iterdir())] == before

    def test_a_crash_between_the_two_is_seen(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_with_provenance(file, 64, ENTRY)
        newer = replace(ENTRY, config={"BLOCK_N": 16, "BLOCK_K": 16})
        with monkeypatch.context() as patch:
            replaced = []

            def crash(path: Path, text: str) -> None:
                if replaced:
                    raise KeyboardInterrupt
                replaced.append(path)
                chunk_file.replace_file(path, text)

            patch.setattr("lora_autotune.provenance.replace_file", crash)
            with pytest.raises(KeyboardInterrupt):
                write_with_provenance(file, 64, newer)
        assert read_config_file(file) == {64: newer.config}
        assert find_provenance(file, 64, newer.config) == (
            "of another config (the file was edited since)"
        )

    def test_two_writers_at_once_lose_nothing(self, file: Path) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            "from lora_autotune.provenance import write_with_provenance\n"
            "from tests.provenance_cases import ENTRY\n"
            "for chunk in range(int(sys.argv[2]), 60, 2):\n"
            "    write_with_provenance(Path(sys.argv[1]), chunk, ENTRY)\n"
        )
        writers = [
            subprocess.Popen([sys.executable, "-c", script, str(file), start], cwd=CHECKOUT)
            for start in ("1", "2")
        ]
        assert [writer.wait(60) for writer in writers] == [0, 0]
        assert read_provenance_file(provenance_path(file)) == dict.fromkeys(range(1, 60), ENTRY)
        check_provenance(provenance_path(file))


class TestFinding:
    def test_there_may_be_none(self, file: Path) -> None:
        assert find_provenance(file, 64, CONFIG) == "none"
        write_with_provenance(file, 64, ENTRY)
        assert find_provenance(file, 16, CONFIG) == "none"

    def test_an_edited_config_is_no_longer_spoken_of(self, file: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        merge_config_file(file, {64: {"BLOCK_N": 16, "BLOCK_K": 16}})
        found = find_provenance(file, 64, read_config_file(file)[64])
        assert found == "of another config (the file was edited since)"

    @given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_no_content_raises(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "lora_expand,any.json"
        provenance_path(file).write_bytes(content)
        assert str(find_provenance(file, 64, CONFIG)).startswith("none")

    def test_neither_does_a_folder_or_a_link_to_nowhere(self, file: Path) -> None:
        beside = provenance_path(file)
        beside.mkdir(parents=True)
        assert "is a directory" in str(find_provenance(file, 64, CONFIG))
        beside.rmdir()
        beside.symlink_to("nowhere")
        assert "No such file" in str(find_provenance(file, 64, CONFIG))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", {"BLOCK_N": "32"}),
        ("config", {"BLOCK_N": True}),
        ("config", [32]),
        ("command", 1),
        ("command", "lora-autotune \x1b[2J"),
        ("workload", "32:8"),
        ("workload", [32]),
        ("gpu", None),
        ("kernels", None),
        ("date", "yesterday"),
        ("date", 20261124),
        ("replayed", "no"),
        ("trials", -1),
        ("trials", True),
        ("times_us", [5.0]),
        ("times_us", [5.0, 0]),
        ("times_us", [5.0, True]),
        ("default_times_us", [5.0]),
        ("held_out", "512:1"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(file: Path, name: str, value: Any) -> None:
    write_with_provenance(file, 64, ENTRY)
    beside = provenance_path(file)
    body = json.loads(beside.read_text())
    body["64"][name] = value
    beside.write_text(json.dumps(body))
    with pytest.raises(ConfigFileError) as caught:
        read_provenance_file(beside)
    assert caught.value.message.startswith(f"{beside}: chunk size 64: ")
    assert name.removeprefix("default_").removesuffix("s_us") in caught.value.message

    if name != "held_out":  # which entries of earlier versions lack
        del body["64"][name]
        beside.write_text(json.dumps(body))
        with pytest.raises(ConfigFileError, match=f"{name} is missing"):
            read_provenance_file(beside)


def test_what_a_later_version_adds_is_ignored(file: Path) -> None:
    write_with_provenance(file, 64, ENTRY)
    beside = provenance_path(file)
    body = json.loads(beside.read_text())
    body["64"]["clock_mhz"] = 1980
    beside.write_text(json.dumps(body))
    assert read_provenance_file(beside) == {64: ENTRY}


def test_what_an_earlier_version_lacks_is_empty(file: Path) -> None:
    write_with_provenance(file, 64, replace(ENTRY, held_out=("512:1",)))
    beside = provenance_path(file)
    assert read_provenance_file(beside)[64].held_out == ("512:1",)
    body = json.loads(beside.read_text())
    del body["64"]["held_out"]
    beside.write_text(json.dumps(body))
    assert read_provenance_file(beside) == {64: ENTRY}


class TestChecking:
    def test_a_tree_with_provenance_is_right(self, file: Path, tmp_path: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        assert [*check_tree(tmp_path)] == [(file, None)]

    def test_a_single_file_of_it_too(self, file: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        beside = provenance_path(file)
        assert [*check_tree(beside)] == [(beside, None)]

    def test_another_config_is_wrong(self, file: Path, tmp_path: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        merge_config_file(file, {64: {"BLOCK_N": 16, "BLOCK_K": 16}})
        (wrong,) = wrong_in(tmp_path)
        assert wrong.startswith(f"{provenance_path(file)}: chunk size 64: is of another config")

    def test_provenance_alone_is_wrong(self, file: Path, tmp_path: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        file.unlink()
        assert wrong_in(tmp_path) == [
            f"{provenance_path(file)}: there is no good config file beside it"
        ]

    def test_a_malformed_one_is_wrong(self, file: Path, tmp_path: Path) -> None:
        write_with_provenance(file, 64, ENTRY)
        provenance_path(file).write_text("")
        assert wrong_in(tmp_path) == [f"{provenance_path(file)}: is empty"]

    def test_what_ships_is_right(self) -> None:
        tree = Path(lora_autotune.__file__).parent / "configs" / FOLDER
        for beside in filter(is_provenance, tree.rglob("*.json")):
            check_provenance(beside)
            for entry in read_provenance_file(beside).values():
                assert not entry.replayed
                assert entry.kernels == "builtin"
                assert "/home/" not in str(entry.command)


def test_the_loader_takes_it_for_no_config(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    write_with_provenance(file, 64, ENTRY)
    who = {"triton_version": "3.6.0"}
    assert get_lora_configs("expand", 4096, 64, 3, device_name="NVIDIA H200", **who) == {64: CONFIG}
    device = "NVIDIA H200.provenance"  # a name that no GPU has
    assert get_lora_configs("expand", 4096, 64, 3, device_name=device, **who) is None


class TestTheCommand:
    def test_it_is_as_it_was_typed(self) -> None:
        words = ["tune", "--model", "Qwen/Qwen3-0.6B", "--rank", "64", "--tokens", "32:8,zipf"]
        assert public_command(words) == f"lora-autotune {' '.join(words)}"

    @pytest.mark.parametrize(
        ("word", "public"),
        [
            ("/home/someone/models/big", "big"),
            ("/home/someone/models/big/", "big"),
            ("~/models/big", "big"),
            ("../secret/big.json", "big.json"),
            ("--model=/home/someone/big", "--model=big"),
            ("--out=private/project", "--out=project"),
            ("/", "/"),
            ("..", ".."),
            ("two words", "'two words'"),
            ("bell\a", "'bell?'"),
            ("x" * 5000, "x" * 5000),
        ],
    )
    def test_no_place_of_this_machine_is_named(self, word: str, public: str) -> None:
        assert public_command(["tune", word]) == f"lora-autotune tune {public}"

    def test_neither_is_a_relative_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "customer" / "model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert public_command(["tune", "--model", "customer/model"]).endswith("--model model")
        assert public_command(["--out", "customer/out"]).endswith("--out out")
        assert public_command(["--journal", "customer/j"]).endswith("--journal j")


def test_the_kernels_version_is_that_of_what_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_autotune import kernels_version

    room = tmp_path / "kernels"
    room.mkdir()

    def version(**sources: str) -> str:
        for name, text in sources.items():
            (room / f"{name}.py").write_text(text)
        kernels_version._tree.cache_clear()
        builtin_kernels_version.cache_clear()
        return builtin_kernels_version()

    here = builtin_kernels_version()
    assert len(here) == 12
    with monkeypatch.context() as patch:
        patch.setattr(kernels_version, "_PACKAGE", tmp_path)
        launch = (
            "from lora_autotune.kernels.shrink import kernel\n"
            "from lora_autotune.kernels.variant import Variant\n"
        )
        first = version(launch=launch, shrink="def kernel(x):\n    return x\n", reference="1")
        said = 'def kernel(x):\n    """The kernel."""\n    return x  # of course\n'
        assert version(shrink=said, reference="2", variant="3") == first
        assert version(shrink="def kernel(x):\n    return x + 1\n") != first
    assert version() == here
