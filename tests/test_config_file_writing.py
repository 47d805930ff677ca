"""Config files that are written: merged, never torn, and by two writers at once."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lora_autotune
from lora_autotune.config_file import ConfigTable, merge_config_file, read_config_file
from lora_autotune.config_tree import check_tree
from lora_autotune.errors import ConfigFileError
from tests.config_file_cases import GOOD, path_in, put

CHECKOUT = Path(lora_autotune.__file__).parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return path_in(tmp_path)


sizes = st.integers(min_value=1, max_value=1 << 20)
configs = st.fixed_dictionaries(
    {"BLOCK_K": sizes, "BLOCK_N": sizes},
    optional={"maxnreg": sizes, "num_stages": sizes, "num_warps": sizes},
)
tables = st.dictionaries(st.integers(min_value=1, max_value=9_999_999), configs, min_size=1)


class TestMerging:
    def test_the_text_is_for_people_and_always_the_same(self, file: Path) -> None:
        put(file, {64: {"BLOCK_K": 16, "BLOCK_N": 64}})
        put(
            file,
            {16: {"maxnreg": 96, "num_stages": 2, "num_warps": 4, "BLOCK_K": 16, "BLOCK_N": 32}},
        )
        assert (
            file.read_text()
            == """{
    "16": {
        "BLOCK_N": 32,
        "BLOCK_K": 16,
        "num_warps": 4,
        "num_stages": 2,
        "maxnreg": 96
    },
    "64": {
        "BLOCK_N": 64,
        "BLOCK_K": 16
    }
}
"""
        )

    @given(first=tables, second=tables)
    def test_what_is_merged_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, first: ConfigTable, second: ConfigTable
    ) -> None:
        file = tmp_path_factory.getbasetemp() / "lora_expand,round.json"
        file.unlink(missing_ok=True)
        merge_config_file(file, first)
        assert read_config_file(file) == first
        merge_config_file(file, second)
        merged = read_config_file(file)
        assert merged == first | second
        assert list(merged) == sorted(merged)

    def test_an_empty_table_changes_nothing(self, file: Path) -> None:
        merge_config_file(file, {})
        assert not file.exists()

    @pytest.mark.parametrize(
        "table",
        [
            {0: GOOD},
            {True: GOOD},
            {16: {"BLOCK_N": 16}},
            {16: GOOD | {"num_warps": 0}},
            {16: GOOD | {"num_warps": True}},
            {16: GOOD | {"other": 1}},
        ],
    )
    def test_a_table_that_breaks_the_schema_is_a_bug(self, file: Path, table: ConfigTable) -> None:
        put(file, {32: GOOD})
        before = file.read_bytes()
        with pytest.raises(ValueError, match="chunk size"):
            merge_config_file(file, table)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("content", [b"", b"{}", b'{"16": {"BLOCK_N"', b"\xff"])
    def test_a_malformed_file_is_left_as_it_is(self, file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        with pytest.raises(ConfigFileError, match=r"nothing was written") as caught:
            merge_config_file(file, {16: GOOD})
        assert str(file) in caught.value.message
        assert [*file.parent.iterdir()] == [file]
        assert file.read_bytes() == content

    def test_a_broken_link_is_left_as_it_is(self, file: Path) -> None:
        file.parent.mkdir(parents=True)
        file.symlink_to("nowhere")
        with pytest.raises(ConfigFileError, match="nothing was written"):
            merge_config_file(file, {16: GOOD})
        assert file.is_symlink()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "blocker").write_text("")
        with pytest.raises(ConfigFileError, match=r"cannot be written.*--out"):
            merge_config_file(tmp_path / "blocker" / "x" / "file.json", {16: GOOD})

    def test_a_file_system_without_locks_only_warns(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(9, "Bad file descriptor")

        monkeypatch.setattr(fcntl, "flock", refuse)
        put(file, {16: GOOD})
        assert read_config_file(file) == {16: GOOD}
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_permissions_are_the_users_choice(self, file: Path) -> None:
        before = os.umask(0o027)
        try:
            put(file, {16: GOOD})
        finally:
            os.umask(before)
        assert file.stat().st_mode & 0o777 == 0o640


class TestCrashes:
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    @pytest.mark.parametrize("crash", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_write_that_fails_leaves_the_old_file_alone(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, step: str, crash: BaseException
    ) -> None:
        put(file, {16: GOOD})
        before = file.read_bytes()

        def fail(*_: object) -> None:
            raise crash

        with monkeypatch.context() as patch:
            patch.setattr({"fsync": os, "replace": Path}[step], step, fail)
            expected = ConfigFileError if isinstance(crash, OSError) else KeyboardInterrupt
            with pytest.raises(expected):
                merge_config_file(file, {64: GOOD})
        assert file.read_bytes() == before
        assert [*file.parent.iterdir()] == [file]
        put(file, {64: GOOD})
        assert set(read_config_file(file)) == {16, 64}

    def test_a_killed_writer_leaves_a_whole_file(self, file: Path, tmp_path: Path) -> None:
        put(file, {1: GOOD})
        script = (
            "import itertools, pathlib, sys\n"
            "from lora_autotune.config_file import merge_config_file\n"
            "print(flush=True)\n"
            "for i in itertools.count(2):\n"
            "    table = {chunk: {'BLOCK_N': i, 'BLOCK_K': i} for chunk in range(2, 2000)}\n"
            "    merge_config_file(pathlib.Path(sys.argv[1]), table)\n"
        )
        moments = random.Random(0)
        for _ in range(6):
            with started(script, file) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(moments.uniform(0.0, 0.08))
                writer.kill()
            table = read_config_file(file)
            assert table.pop(1) == GOOD
            assert len({tuple(config.items()) for config in table.values()}) <= 1
        assert [error for _, error in check_tree(tmp_path)] == [None]

    def test_leftovers_of_a_killed_writer_are_never_read(self, file: Path, tmp_path: Path) -> None:
        put(file, {16: GOOD})
        file.with_name(f".{file.name}.0badc0de~").write_text('{"16": {')
        assert read_config_file(file) == {16: GOOD}
        assert [*check_tree(tmp_path)] == [(file, None)]
        put(file, {32: GOOD})
        assert set(read_config_file(file)) == {16, 32}


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_writers_at_once_lose_nothing(file: Path) -> None:
    script = (
        "import pathlib, sys\n"
        "from lora_autotune.config_file import merge_config_file\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for chunk in range(int(sys.argv[2]), 200, 2):\n"
        "    table = {chunk: {'BLOCK_N': chunk, 'BLOCK_K': 1}}\n"
        "    merge_config_file(pathlib.Path(sys.argv[1]), table)\n"
    )
    with started(script, file, 1) as odd, started(script, file, 2) as even:
        for writer in (odd, even):
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in (odd, even):
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert (odd.wait(60), even.wait(60)) == (0, 0)
    assert read_config_file(file) == {n: {"BLOCK_N": n, "BLOCK_K": 1} for n in range(1, 200)}
    assert [*file.parent.iterdir()] == [file]
