"""Which torch is installed, without importing it: that takes seconds."""

from __future__ import annotations

import importlib.util
import runpy
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What a torch says of itself.

    Attributes:
        version: as ``torch.__version__``.
        cuda: version of CUDA that it was built with; None: it has none in it.
    """

    version: str
    cuda: str | None


def torch_build() -> TorchBuild:
    """That of the torch that this process would import: its ``version.py``, a few assignments.

    Raises:
        ModuleNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    said = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(version=said["__version__"], cuda=said["cuda"])
