"""What the driver's libraries are asked, and what is made of their answers."""

import ctypes

import pytest
import triton

from lora_autotune.evaluators.driver import driver_version, first_gpu
from lora_autotune.evaluators.gpu import Gpu

ATTRIBUTES = {16: 132, 38: 62914560, 75: 9, 76: 0, 97: 232448}


class Cuda:
    """A libcuda.so.1 of one H200."""

    refusing = ""

    def _answer(self, name: str) -> int:
        return 100 if name == self.refusing else 0

    def cuInit(self, flags):
        assert flags == 0
        return self._answer("cuInit")

    def cuDeviceGet(self, device, ordinal):
        assert ordinal == 0
        device._obj.value = 7
        return self._answer("cuDeviceGet")

    def cuDeviceGetName(self, name, length, device):
        assert (len(name), device.value) == (length, 7)
        name.value = b"NVIDIA H200"
        return self._answer("cuDeviceGetName")

    def cuDeviceGetAttribute(self, value, number, device):
        assert device.value == 7
        value._obj.value = ATTRIBUTES[number]
        return self._answer("cuDeviceGetAttribute")


@pytest.fixture
def cuda(monkeypatch):
    one = Cuda()
    monkeypatch.setattr(ctypes, "CDLL", {"libcuda.so.1": one}.__getitem__)
    return one


def test_the_first_gpu_is_described_as_torch_does(cuda):
    assert first_gpu() == Gpu(
        name="NVIDIA H200",
        capability=90,
        multiprocessors=132,
        smem_bytes=232448,
        l2_bytes=62914560,
        triton=triton.__version__,
    )


@pytest.mark.parametrize(
    "name", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"]
)
def test_a_driver_that_refuses_names_none(cuda, name):
    cuda.refusing = name
    assert first_gpu() is None


def test_without_a_driver_there_is_none(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert first_gpu() is None
    assert driver_version() is None


def test_a_library_without_the_functions_names_none(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert first_gpu() is None
