import subprocess
import sys

import pytest
import torch

from lora_autotune.evaluators.torch_build import TorchBuild, torch_build


def test_it_is_what_torch_says():
    assert torch_build() == TorchBuild(version=str(torch.__version__), cuda=torch.version.cuda)


def test_it_does_not_import_torch():
    code = (
        "import sys; from lora_autotune.evaluators.torch_build import torch_build; torch_build()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_where_there_is_none_it_is_as_if_it_was_imported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError, match="No module named 'torch'") as caught:
        torch_build()
    assert caught.value.name == "torch"
