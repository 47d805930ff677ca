"""The files that a lookup reads: of which version, in which root, and what if they are bad."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, merge_config_file
from lora_autotune.loader import (
    DEFAULT_EXPAND_CONFIG,
    DEFAULT_SHRINK_CONFIG,
    clear_cache,
    get_lora_configs,
    get_lora_expand_config,
    get_lora_shrink_config,
)
from tests.loader_cases import (
    H200,
    HERE,
    TABLE,
    marked,
    path_of,
    put,
    said,
    shrink,
    spoil,
)

pytestmark = pytest.mark.usefixtures("root", "log")


class TestVersions:
    def test_the_running_version_comes_first(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.6.0", marked(16))
        put(root, "3.7.1", marked(32))
        assert shrink()["BLOCK_N"] == 16
        assert not log.records

    def test_then_the_others_by_number_with_one_warning(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.9.0", marked(16))
        newest = put(root, "3.10.0", marked(32))
        put(root, "3.2.0", marked(64))
        for chunk_size in (16, 32, 16):
            assert shrink(chunk_size)["BLOCK_N"] == 32
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == marked(32)
        (warning,) = said(log, "WARNING")
        assert str(newest) in warning
        assert "3.6.0" in warning

    def test_folders_of_no_version_are_ignored(self, root: Path) -> None:
        for folder in ("triton_old", "triton_", "3_7_0", "triton_3_7_0~"):
            path = root / FOLDER / folder / path_of(root).name
            merge_config_file(path, TABLE)
        (root / FOLDER / "triton_3_8_0").write_text("a file where a folder belongs")
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None

    @pytest.mark.parametrize("version", ["3.6.0+git1234", "3.6.0.post1", "3.6.0rc2"])
    def test_a_build_reads_its_own_folder_then_its_releases(
        self, root: Path, version: str, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.9.0", marked(16))
        put(root, "3.6.0", marked(32))
        assert shrink(device_name=H200, triton_version=version)["BLOCK_N"] == 32
        assert len(said(log, "WARNING")) == 1
        put(root, version, marked(64))
        clear_cache()
        assert shrink(device_name=H200, triton_version=version)["BLOCK_N"] == 64

    def test_others_read_a_builds_folder(self, root: Path) -> None:
        put(root, "3.6.0+git1234", marked(32))
        put(root, "3.5.1", marked(16))
        assert shrink(device_name=H200, triton_version="3.7.1")["BLOCK_N"] == 32


class TestRoots:
    def test_the_variable_is_read_at_each_lookup(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(root, table=marked(16))
        other = tmp_path_factory.mktemp("other")
        put(other, table=marked(32))
        assert shrink()["BLOCK_N"] == 16
        monkeypatch.setenv(loader.ROOT_VARIABLE, str(other))
        assert shrink()["BLOCK_N"] == 32
        monkeypatch.setenv(loader.ROOT_VARIABLE, str(root))
        assert shrink()["BLOCK_N"] == 16

    @pytest.mark.parametrize("value", [None, ""])
    def test_without_it_the_packaged_configs_are_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        if value is None:
            monkeypatch.delenv(loader.ROOT_VARIABLE)
        else:
            monkeypatch.setenv(loader.ROOT_VARIABLE, value)
        put(root)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE

    def test_those_for_the_kernels_of_sglang_are_packaged_apart(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        theirs = {"kernels": "sglang", **HERE}
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) is None
        put(root)
        put(root / "sglang", table=marked(32))
        clear_cache()
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) == TABLE  # the named folder
        monkeypatch.delenv(loader.ROOT_VARIABLE)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) == marked(32)
        assert get_lora_shrink_config(1024, 64, 3, 16, **theirs) == marked(32)[16]
        assert get_lora_expand_config(1024, 64, 3, 16, **theirs) == DEFAULT_EXPAND_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE

    def test_that_none_are_packaged_for_sglang_is_no_fault(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv(loader.ROOT_VARIABLE)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, kernels="sglang", **HERE) is None
        assert log.records == []

    def test_the_packaged_configs_lie_beside_the_module(self) -> None:
        assert Path(loader._PACKAGED).samefile(Path(loader.__file__).parent / "configs")

    @pytest.mark.parametrize("kind", ["absent", "file"])
    def test_a_root_that_is_none_gives_the_defaults(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        log: pytest.LogCaptureFixture,
        kind: str,
    ) -> None:
        (tmp_path / "file").write_text("")
        wrong = str(tmp_path / kind)
        monkeypatch.setenv(loader.ROOT_VARIABLE, wrong)
        assert shrink(16) == shrink(32) == DEFAULT_SHRINK_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None
        assert len([line for line in said(log, "WARNING") if wrong in line]) == 1


class TestHostileFiles:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"16": {"BLOCK_N": 0}}', b"[" * 99_999]
    )
    def test_one_error_then_the_defaults(
        self, root: Path, log: pytest.LogCaptureFixture, content: bytes
    ) -> None:
        path = spoil(root, content=content)
        for chunk_size in (16, 32, 64):
            assert shrink(chunk_size) == DEFAULT_SHRINK_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None
        (error,) = said(log, "ERROR")
        assert str(path) in error

    def test_one_error_then_the_next_version(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        bad = [spoil(root), spoil(root, "3.9.0")]
        third = put(root, "3.8.0", marked(32))
        assert shrink()["BLOCK_N"] == 32
        errors = said(log, "ERROR")
        assert [str(path) in error for path, error in zip(bad, errors, strict=True)] == [True, True]
        assert [str(third) in line for line in said(log, "WARNING")] == [True]

    @pytest.mark.parametrize("kind", ["folder", "pipe", "broken link", "loop"])
    def test_what_is_no_regular_file(
        self, root: Path, log: pytest.LogCaptureFixture, kind: str
    ) -> None:
        path = path_of(root)
        path.parent.mkdir(parents=True)
        make: dict[str, Callable[[], object]] = {
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "broken link": lambda: path.symlink_to("nowhere"),
            "loop": lambda: path.symlink_to(path),
        }
        make[kind]()
        assert shrink() == DEFAULT_SHRINK_CONFIG
        assert [str(path) in line for line in said(log, "ERROR")] == [True]

    def test_a_file_and_a_folder_that_may_not_be_read(
        self, root: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: object, *_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        path = put(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            patch.setattr(os, "listdir", refuse)
            patch.setattr(os, "scandir", refuse)
            patch.setattr(Path, "iterdir", refuse)
            config = shrink()
        assert config == DEFAULT_SHRINK_CONFIG
        assert [str(path) in line for line in said(log, "ERROR")] == [True]
        assert [str(root) in line for line in said(log, "WARNING")] == [True]

    @pytest.mark.parametrize("device", ["../../x", "a/b", "n" * 400, "nul\0", "\udcff", "\n"])
    def test_an_odd_device_name(self, device: str) -> None:
        assert shrink(device_name=device, triton_version="3.6.0") == DEFAULT_SHRINK_CONFIG

    @pytest.mark.parametrize("version", ["main", "../..", "3.6.0/../../x", "nul\0", "3" * 400])
    def test_an_odd_version(self, root: Path, version: str) -> None:
        put(root)
        assert shrink(device_name=H200, triton_version=version) == TABLE[16]
