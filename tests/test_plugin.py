"""A strategy in a distribution of its own: found, loaded, held to the contract, and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.errors import UsageError
from lora_autotune.landscape import write_landscape
from lora_autotune.strategies.grid import GridStrategy
from lora_autotune.strategy import strategy_factory, strategy_names
from lora_autotune.testing import SPACE, bowl_landscape, check_strategy, search

MODULE = '''
class Backwards:
    """The grid from its end."""

    def __init__(self, space, /, *, seed, options):
        self._configs = list(space)

    def ask(self, max_count, /):
        return [self._configs.pop() for _ in range(min(max_count, len(self._configs)))]

    def tell(self, trial, /):
        if trial.config in self._configs:
            self._configs.remove(trial.config)
'''

ENTRY_POINTS = """
[lora_autotune.strategies]
backwards = backwards_plugin:Backwards
grid = backwards_plugin:Backwards
no_such_object = backwards_plugin:Missing
no_such_module = missing_plugin:Backwards
syntax_error = backwards_plugin_broken:Backwards
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with one installed distribution in it, at the front of the path."""
    (tmp_path / "backwards_plugin.py").write_text(MODULE)
    (tmp_path / "backwards_plugin_broken.py").write_text("class Backwards(:\n")
    info = tmp_path / "backwards_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("backwards_plugin", None)


def test_without_it_the_name_is_unknown():
    with pytest.raises(UsageError, match="no strategy 'backwards'"):
        strategy_factory("backwards")


@pytest.mark.usefixtures("site")
def test_it_is_found_with_its_origin():
    names = strategy_names()
    assert names["backwards"] == "backwards-plugin (backwards_plugin:Backwards)"
    with pytest.raises(UsageError, match=r"no strategy 'backward'.*tpe.*backwards"):
        strategy_factory("backward")


@pytest.mark.usefixtures("site")
def test_it_keeps_the_contract():
    factory = strategy_factory("backwards")
    check_strategy(factory)
    assert [trial.config for trial in search(factory, 2)] == list(SPACE)[-2:]


@pytest.mark.usefixtures("site")
def test_it_cannot_take_the_name_of_a_built_in_one():
    assert strategy_factory("grid") is GridStrategy
    assert strategy_names()["grid"] == "built in"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", ["no_such_object", "no_such_module", "syntax_error"])
def test_one_that_cannot_be_loaded_is_a_clear_error(name):
    with pytest.raises(UsageError, match=rf"strategy '{name}' cannot be loaded: \w"):
        strategy_factory(name)


def test_the_command_line_runs_it(site, tmp_path):
    write_landscape(tmp_path / "bowl.jsonl.gz", bowl_landscape())
    root = Path(lora_autotune.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(root)])}

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", "lora_autotune", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "backwards-plugin (backwards_plugin:Backwards)" in command("strategies")
    output = command(
        *(
            "tune",
            "--replay",
            "bowl.jsonl.gz",
            "--strategy",
            "backwards",
            "--trials",
            "109",
            "--json",
        )
    )
    found = json.loads(output)
    assert found["replayed"] is True
    assert found["config"] == {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4}
