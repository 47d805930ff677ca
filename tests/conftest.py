"""Workers start here from a server that has torch already: hundreds of them, two seconds each.

What runs in a process of its own starts as a tuner does.
"""

import logging
from pathlib import Path

import pytest

from lora_autotune.evaluators import compiling, worker
from tests.gpus import H200

DOUBLES = ("fault_stage", "journal_cases", "pipeline_doubles", "sglang_cases", "tuner_doubles")
"""What tests share, with asserts in it."""

pytest.register_assert_rewrite(*(f"tests.{name}" for name in DOUBLES))
worker.PRELOADED += ("lora_autotune.evaluators.measuring",)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A compile worker for a GPU that is not there."""
    found = worker.Worker(compiling.set_up, H200, str(tmp_path_factory.mktemp("cache")))
    yield found
    found.close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two landscapes of one shape, for the command line."""
    from tests.cli_runs import landscape_file

    return [str(landscape_file(tmp_path, chunk)) for chunk in (16, 64)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty root for lookups."""
    from tests.loader_cases import empty_root

    yield from empty_root(tmp_path, monkeypatch)


@pytest.fixture
def log(caplog):
    """What the loader logs."""
    caplog.set_level(logging.INFO, logger="lora_autotune.loader")
    return caplog


@pytest.fixture
def fresh(monkeypatch, caplog):
    """The plug-in for SGLang as if never asked."""
    from tests.sglang_cases import forgetful

    yield from forgetful(monkeypatch, caplog)


@pytest.fixture
def made_up_gpu(monkeypatch):
    """Launches take what a table says."""
    from tests.timing_doubles import make_up_gpu

    make_up_gpu(monkeypatch)


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Where faults are played; afterwards it must hold no trace of them."""
    from tests.fault_stage import Stage

    one = Stage(monkeypatch, tmp_path)
    yield one
    one.check_traces()
