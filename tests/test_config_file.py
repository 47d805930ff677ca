"""Config files: their names, what is read from good and hostile ones, and checks of whole trees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune import config_file
from lora_autotune.chunk_file import MAX_BYTES
from lora_autotune.config_file import (
    FOLDER,
    config_file_name,
    config_file_path,
    folder_version,
    read_config_file,
    version_folder,
)
from lora_autotune.config_tree import check_tree
from lora_autotune.errors import ConfigFileError, UsageError
from tests.config_file_cases import GOOD, path_in, put

HOSTILE = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t", "empty"),
    "truncated": (b'{"16": {"BLOCK_N": 16, "BLO', "not JSON"),
    "trailing": (b'{"16": {"BLOCK_N": 16, "BLOCK_K": 16}} x', "not JSON"),
    "binary": (b"\x00\x01\x02", "not JSON"),
    "byte order mark": (b'\xef\xbb\xbf{"16": {"BLOCK_N": 16, "BLOCK_K": 16}}', "not JSON"),
    "invalid utf-8": (b'{"16": {"BLOCK_N": 16, "BLOCK_K": 16, "\xff": 1}}', "not UTF-8 (byte 39)"),
    "huge": (b" " * (MAX_BYTES + 1), f"larger than {MAX_BYTES}"),
    "deeply nested": (b"[" * 200_000, "too deeply"),
    "deeply nested value": (b'{"16": ' * 100_000, "too deeply"),
    "list": (b"[16]", "not a JSON object"),
    "number": (b"16", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "no chunk size": (b"{}", "no chunk size"),
    "outer duplicate": (
        b'{"16": {"BLOCK_N": 16, "BLOCK_K": 16}, "16": {"BLOCK_N": 32, "BLOCK_K": 16}}',
        "'16' twice",
    ),
    "inner duplicate": (
        b'{"16": {"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_N": 32}}',
        "'BLOCK_N' twice",
    ),
    **{
        f"chunk size {key!r}": (json.dumps({key: GOOD}).encode(), "where a chunk size belongs")
        for key in (
            "",
            "x",
            "0",
            "-16",
            "+16",
            "016",
            "16.0",
            " 16",
            "16 ",
            "1_6",
            "1e1",
            "١٦",
            "²",
        )
    },
    "chunk size too long": (json.dumps({"9" * 5000: GOOD}).encode(), "where a chunk size belongs"),
    "note at the top": (json.dumps({"16": GOOD, "by": "me"}).encode(), "'by' where a chunk size"),
    **{
        f"entry {entry!r}": (json.dumps({"16": entry}).encode(), "chunk size 16: is not an object")
        for entry in (None, 16, "x", [GOOD])
    },
    "unknown key": (json.dumps({"16": GOOD | {"num_ctas": 1}}).encode(), "parameter 'num_ctas'"),
    "no BLOCK_N": (b'{"16": {"BLOCK_K": 16}}', "BLOCK_N is missing"),
    "no BLOCK_K": (b'{"16": {"BLOCK_N": 16}}', "BLOCK_K is missing"),
    **{
        f"value {value!r}": (
            json.dumps({"16": GOOD | {"num_warps": value}}).encode(),
            "chunk size 16: num_warps must be an integer",
        )
        for value in (True, False, None, 4.0, 0, -4, "4", [4], 10**19)
    },
    "infinite float": (b'{"16": {"BLOCK_N": 1e999, "BLOCK_K": 16}}', "BLOCK_N must be an integer"),
    "very long integer": (
        b'{"16": {"BLOCK_N": %s, "BLOCK_K": 16}}' % (b"9" * 5000),
        "an integer of 5000",
    ),
    **{
        name: (b'{"16": {"BLOCK_N": %s, "BLOCK_K": 16}}' % name.encode(), f"holds {name}")
        for name in ("NaN", "Infinity", "-Infinity")
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return path_in(tmp_path)


class TestNames:
    def test_a_file_lies_where_the_schema_says(self, tmp_path: Path, file: Path) -> None:
        assert file.relative_to(tmp_path).as_posix() == (
            "csgmv_configs/triton_3_6_0/lora_expand,K=4096,R=64,S=3,device=NVIDIA_H200.json"
        )

    def test_an_unknown_kernel_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"'srink'.*allowed: shrink, expand"):
            config_file_name("srink", 1024, 64, 3, "NVIDIA H200")

    def test_folders_sort_as_their_versions_do(self) -> None:
        versions = [
            "3.6",
            "3.6.0.dev20260101",
            "3.6.0rc1",
            "3.6.0",
            "3.6.0+git12ab",
            "3.9.0",
            "3.10.0",
            "3.10.0.post1",
        ]
        folders = [version_folder(version) for version in versions]
        keys = {folder: folder_version(folder) for folder in folders}
        assert None not in keys.values()
        assert sorted(folders, key=lambda name: (keys[name] or ((), 0), name)) == folders

    @pytest.mark.parametrize(
        "name",
        ["3_6_0", "triton", "triton_", "triton_x", "triton_3_6_0_old", "triton_3_6_0~", "triton_٣"],
    )
    def test_other_folders_are_no_versions(self, name: str) -> None:
        assert folder_version(name) is None


class TestReading:
    def test_a_good_file(self, tmp_path: Path) -> None:
        file = tmp_path / "lora_expand,K=1,R=1,S=1,device=x.json"
        unordered = {"maxnreg": 96, "BLOCK_K": 16, "BLOCK_N": 64}
        file.write_text(json.dumps({"32": unordered, "16": GOOD}))
        table = read_config_file(file)
        assert table == {16: GOOD, 32: {"BLOCK_N": 64, "BLOCK_K": 16, "maxnreg": 96}}
        assert list(table[32]) == ["BLOCK_N", "BLOCK_K", "maxnreg"]

    @pytest.mark.parametrize(("content", "complaint"), HOSTILE.values(), ids=HOSTILE)
    def test_a_malformed_file_raises_an_error_that_names_it(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        file = tmp_path / "lora_expand,K=1,R=1,S=1,device=x.json"
        file.write_bytes(content)
        with pytest.raises(ConfigFileError) as caught:
            read_config_file(file)
        assert str(file) in caught.value.message
        assert complaint in caught.value.message

    def test_a_long_key_makes_no_long_message(self, tmp_path: Path) -> None:
        file = tmp_path / "x.json"
        key = "k" * 100_000
        for content in (
            f'{{"{key}": 1, "{key}": 2}}',
            f'{{"{key}": 1}}',
            f'{{"16": {{"{key}": 1}}}}',
        ):
            file.write_text(content)
            with pytest.raises(ConfigFileError) as caught:
                read_config_file(file)
            assert len(caught.value.message) < len(str(file)) + 150

    def test_a_register_cap_is_for_expand_only(self, tmp_path: Path) -> None:
        shrink = tmp_path / "lora_shrink,K=1,R=1,S=1,device=x.json"
        shrink.write_text(json.dumps({"16": GOOD | {"maxnreg": 96}}))
        with pytest.raises(ConfigFileError, match="unknown parameter 'maxnreg'"):
            read_config_file(shrink)
        expand = shrink.rename(tmp_path / "lora_expand,K=1,R=1,S=1,device=x.json")
        assert read_config_file(expand)[16]["maxnreg"] == 96

    def test_what_is_no_regular_file_neither_hangs_nor_passes(self, tmp_path: Path) -> None:
        folder, pipe, loop = tmp_path / "folder", tmp_path / "pipe", tmp_path / "loop"
        folder.mkdir()
        os.mkfifo(pipe)
        loop.symlink_to(loop)
        complaints = {
            tmp_path / "absent": "No such file",
            folder: "is a directory",
            pipe: "not a regular file",
            Path("/dev/zero"): "not a regular file",
            loop: "symbolic link",
            tmp_path / ("n" * 300): "name too long",
            tmp_path / "nul\0nul": "null",
            folder / "x": "No such file",
        }
        for path, complaint in complaints.items():
            with pytest.raises(ConfigFileError, match=complaint) as caught:
                read_config_file(path)
            assert str(path) in caught.value.message

    def test_an_unreadable_file(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(file, {16: GOOD})

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(os, "open", refuse)  # the owner of the tests may be allowed everything
        with pytest.raises(ConfigFileError, match="Permission denied"):
            read_config_file(file)

    @given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_no_content_raises_anything_else(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "lora_expand,any.json"
        file.write_bytes(content)
        ((_, error),) = check_tree(file)  # anything but a ConfigFileError comes out of here
        assert error is None or str(file) in error.message


class TestChecking:
    def test_a_tree(self, tmp_path: Path, file: Path) -> None:
        put(file, {16: GOOD})
        name = file.name
        bad = file.with_name(name.replace("K=4096", "K=1024"))
        bad.write_text("{}")
        misnamed = put(file.with_name("lora_expand,K=04096,R=64,S=3,device=x.json"), {16: GOOD})
        old = put(file.parent.parent / "triton_old" / name, {16: GOOD})
        outside = put(tmp_path / "triton_3_6_0" / name, {16: GOOD})
        (file.parent / "README.md").write_text("not a config file, and none of its business")
        found = {path: error and error.message for path, error in check_tree(tmp_path)}
        assert found == {
            file: None,
            bad: f"{bad}: holds no chunk size",
            misnamed: f"{misnamed}: no lookup reads a file of this name",
            old: f"{old}: no lookup reads this folder",
            outside: f"{outside}: no lookup reads this folder",
        }

    def test_every_folder_that_a_lookup_reads_is_right(self, tmp_path: Path) -> None:
        for version in ("3.6.0", "3.6.0.post1", "3.6.0+git1234"):
            path = config_file_path(
                tmp_path, "shrink", 8, 8, 1, device_name="x", triton_version=version
            )
            put(path, {16: GOOD})
        assert [error for _, error in check_tree(tmp_path)] == [None, None, None]

    def test_from_inside_a_folder(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(file, {16: GOOD})
        monkeypatch.chdir(file.parent)
        assert [*check_tree(Path())] == [(Path(file.name), None)]

    def test_a_single_file(self, tmp_path: Path) -> None:
        file = put(tmp_path / "any.json", {16: GOOD})
        assert [*check_tree(file)] == [(file, None)]
        file.write_text("")
        ((_, error),) = check_tree(file)
        assert error is not None
        assert error.message == f"{file}: is empty"

    def test_a_folder_that_cannot_be_listed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        ((folder, error),) = check_tree(tmp_path)
        assert folder == tmp_path
        assert error is not None
        assert error.message == f"{tmp_path}: Permission denied"

    def test_the_shipped_configs(self) -> None:
        tree = Path(config_file.__file__).parent / "configs" / FOLDER
        assert [error for _, error in check_tree(tree) if error is not None] == []
