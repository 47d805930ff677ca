"""Workers start here from a server that has torch already: hundreds of them, two seconds each.

What runs in a process of its own starts as a tuner does.
"""

import pytest

from lora_autotune.evaluators import compiling, worker
from tests.gpus import H200

worker.PRELOADED += ("lora_autotune.evaluators.measuring",)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """A compile worker for a GPU that is not there."""
    found = worker.Worker(compiling.set_up, H200, str(tmp_path_factory.mktemp("cache")))
    yield found
    found.close()
