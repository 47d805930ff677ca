"""A binary is found again by what Triton would compile another one for."""

from types import SimpleNamespace

import pytest

from lora_autotune.kernels.variant import Variant


class Kernel:
    """A Triton function that notes how it and its binaries are launched."""

    arg_names = ("x", "count", "BLOCK", "FLAG")

    def __init__(self):
        self.searched, self.direct = [], []

    def __getitem__(self, grid):
        def search(*args, **constants):
            self.searched.append((grid, args, constants))
            return Binary(self)

        return search


class Binary:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args: self.kernel.direct.append((grid, args))


def tensor(address: int = 256, *, is_cuda: bool = True) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=is_cuda, data_ptr=lambda: address)


@pytest.fixture
def variant() -> Variant:
    return Variant(Kernel(), {"FLAG": True, "num_warps": 4, "BLOCK": 16})


def test_a_binary_is_launched_again_with_its_constants_in_their_places(variant):
    x, y = tensor(), tensor(512)
    first = variant.launch((3, 1, 2), (x, 5), "half")
    assert variant.launch((1, 1, 1), (y, 6), "half") is first
    assert variant.kernel.searched == [((3, 1, 2), (x, 5), variant.constants)]
    assert variant.kernel.direct == [((1, 1, 1), (y, 6, 16, True))]


def test_each_kind_has_its_own(variant):
    x = tensor()
    for kind in ("half", "bfloat16", "half"):
        variant.launch((1, 1, 1), (x, 5), kind)
    assert (len(variant.kernel.searched), len(variant.kernel.direct)) == (2, 1)


@pytest.mark.parametrize(
    ("x", "kind"), [(tensor(264), "half"), (tensor(is_cuda=False), "half"), (tensor(), None)]
)
def test_what_it_cannot_tell_triton_does(variant, x, kind):
    variant.launch((1, 1, 1), (tensor(), 5), "half")
    variant.launch((1, 1, 1), (x, 5), kind)
    assert (len(variant.kernel.searched), len(variant.kernel.direct)) == (2, 0)
