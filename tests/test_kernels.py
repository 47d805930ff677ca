import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("kernel_cases.py")


def run_cases(device: str, dtype: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(CASES.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(CASES), device, dtype],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_match_the_reference_in_the_interpreter():
    done = run_cases("cpu", "float16", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_match_the_reference_on_the_gpu(dtype):
    done = run_cases("cuda", dtype)
    assert done.returncode == 0, done.stderr
