"""A binary is found again by what Triton would compile another one for."""

from types import SimpleNamespace

import pytest

from lora_autotune.kernels.variant import Variant


class Kernel:
    """A Triton function that notes how it and its binaries are launched."""

    arg_names = ("x", "count", "BLOCK", "FLAG")

    def __init__(self):
        self.searched, self.direct = [], []
        self.pre_run_hooks = []

    def __getitem__(self, grid):
        def search(*args, **constants):
            self.searched.append((grid, args, constants))
            return Binary(self)

        return search

    @property
    def launches(self):
        """Those for which a binary was searched, and those of a known one."""
        return len(self.searched), len(self.direct)


class Binary:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args: self.kernel.direct.append((grid, args))


def tensor(address=256, *, is_cuda=True, device=0, dtype="half") -> SimpleNamespace:
    return SimpleNamespace(is_cuda=is_cuda, data_ptr=lambda: address, device=device, dtype=dtype)


@pytest.fixture
def variant() -> Variant:
    return Variant(Kernel(), {"FLAG": True, "num_warps": 4, "BLOCK": 16})


def test_a_binary_is_launched_again_with_its_constants_in_their_places(variant):
    x, y = tensor(), tensor(512)
    first = variant.launch((3, 1, 2), (x, 5), ())
    assert variant.launch((1, 1, 1), (y, 6), ()) is first
    assert variant.kernel.searched == [((3, 1, 2), (x, 5), variant.constants)]
    assert variant.kernel.direct == [((1, 1, 1), (y, 6, 16, True))]


@pytest.mark.parametrize(
    ("x", "kind"), [(tensor(device=1), 8), (tensor(dtype="float"), 8), (tensor(), 16)]
)
def test_each_device_dtype_and_kind_has_its_own(variant, x, kind):
    for one, other in ((tensor(), 8), (x, kind), (tensor(), 8), (x, kind)):
        variant.launch((1, 1, 1), (one, 5), other)
    assert variant.kernel.launches == (2, 2)
    assert [x.device for x, *_ in (args for _, args in variant.kernel.direct)] == [0, x.device]


def test_so_has_the_dtype_of_a_tensor_that_is_not_the_first(variant):
    for dtype in ("int64", "int32", "int64"):
        variant.launch((1, 1, 1), (tensor(), tensor(dtype=dtype)), 8)
    assert variant.kernel.launches == (2, 1)


@pytest.mark.parametrize(
    ("x", "kind"), [(tensor(264), 8), (tensor(is_cuda=False), 8), (tensor(), None)]
)
def test_what_it_cannot_tell_triton_does(variant, x, kind):
    variant.launch((1, 1, 1), (tensor(), 5), 8)
    variant.launch((1, 1, 1), (x, 5), kind)
    assert variant.kernel.launches == (2, 0)


def test_a_hook_before_each_launch_is_run_by_triton(variant):
    variant.launch((1, 1, 1), (tensor(), 5), 8)
    variant.kernel.pre_run_hooks.append(print)
    variant.launch((1, 1, 1), (tensor(), 5), 8)
    assert variant.kernel.launches == (2, 0)
