"""Configs and the grids they are drawn from."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.errors import UsageError
from lora_autotune.space import (
    DEFAULT_CONFIGS,
    PARAMETERS,
    SPACE_NAMES,
    Config,
    SearchSpace,
    named_space,
)
from lora_autotune.task import KERNELS

VALUE = st.integers(1, 4096)
CONFIGS = st.builds(
    Config,
    BLOCK_N=VALUE,
    BLOCK_K=VALUE,
    num_warps=st.none() | VALUE,
    num_stages=st.none() | VALUE,
    maxnreg=st.none() | VALUE,
)


@st.composite
def spaces(draw):
    axis = st.lists(VALUE, min_size=1, max_size=4, unique=True).map(tuple)
    optional = st.lists(st.none() | VALUE, min_size=1, max_size=4, unique=True).map(tuple)
    axes = {"BLOCK_N": draw(axis), "BLOCK_K": draw(axis)}
    for name in draw(st.sets(st.sampled_from(PARAMETERS[2:]))):
        axes[name] = draw(optional)
    return SearchSpace(axes)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", [0, -1, 1.0, "16", True])
def test_a_parameter_that_is_no_positive_integer_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} must be a positive integer"):
        Config(**{"BLOCK_N": 16, "BLOCK_K": 16, name: value})


@pytest.mark.parametrize("name", ["BLOCK_N", "BLOCK_K"])
def test_the_blocks_cannot_be_absent(name):
    with pytest.raises(UsageError, match=f"{name} must be a positive integer, not None"):
        Config(**{"BLOCK_N": 16, "BLOCK_K": 16, name: None})
    with pytest.raises(UsageError, match=f"no {name}"):
        Config.from_dict({key: 16 for key in ("BLOCK_N", "BLOCK_K") if key != name})


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown BLOCK_X.*BLOCK_N, BLOCK_K, num_warps"):
        Config.from_dict({"BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_X": 16})


@given(CONFIGS)
def test_a_config_survives_its_dict(config):
    values = config.as_dict()
    assert Config.from_dict(values) == config
    assert None not in values.values()
    assert list(values) == [name for name in PARAMETERS if name in values]
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_is_a_value():
    config = Config(BLOCK_N=16, BLOCK_K=64, maxnreg=96)
    assert str(config) == "BLOCK_N=16 BLOCK_K=64 maxnreg=96"
    assert {config: 1}[Config(BLOCK_N=16, BLOCK_K=64, maxnreg=96)] == 1
    with pytest.raises(FrozenInstanceError):
        config.BLOCK_N = 32  # type: ignore[misc]


def test_a_default_leaves_warps_and_stages_to_triton():
    assert {kernel: config.as_dict() for kernel, config in DEFAULT_CONFIGS.items()} == {
        "shrink": {"BLOCK_N": 16, "BLOCK_K": 256},
        "expand": {"BLOCK_N": 64, "BLOCK_K": 16},
    }
    with pytest.raises(TypeError):
        DEFAULT_CONFIGS["shrink"] = Config(BLOCK_N=16, BLOCK_K=16)  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "kernel", "size"),
    [
        ("reference", "shrink", 54),
        ("reference", "expand", 120),
        ("wide", "shrink", 400),
        ("wide", "expand", 900),
    ],
)
def test_the_named_spaces_have_their_size(name, kernel, size):
    space = named_space(name, kernel)
    configs = list(space)
    assert len(space) == len(configs) == len(set(configs)) == size
    assert DEFAULT_CONFIGS[kernel] not in space  # it lacks warps and stages
    assert ("maxnreg" in space.axes) == (kernel == "expand")


@pytest.mark.parametrize("kernel", KERNELS)
def test_axes_ascend_so_that_a_sampler_may_use_their_order(kernel):
    for name in SPACE_NAMES:
        for axis in named_space(name, kernel).axes.values():
            assert list(axis) == sorted(axis, key=lambda value: -1 if value is None else value)


@pytest.mark.parametrize(("name", "kernel"), [("widest", "shrink"), ("wide", "stretch")])
def test_an_unknown_space_is_answered_with_the_known_ones(name, kernel):
    with pytest.raises(UsageError, match="wide, reference"):
        named_space(name, kernel)


@given(spaces())
def test_a_space_is_every_combination_once(space):
    configs = list(space)
    assert len(configs) == len(set(configs)) == len(space)
    for config in configs:
        assert config in space
        position = space.indices(config)
        assert position is not None
        assert list(position) == list(space.axes)
        assert space.at(position) == config


@given(spaces(), CONFIGS)
def test_membership_is_being_in_the_grid(space, config):
    assert (config in space) == (config in set(space))
    assert (space.indices(config) is None) == (config not in space)


def test_what_is_no_config_is_in_no_space():
    assert {"BLOCK_N": 16, "BLOCK_K": 64} not in named_space("wide", "shrink")


@given(spaces())
def test_a_space_survives_pickling(space):
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert list(again) == list(space)


def test_axes_are_put_in_the_order_of_the_config_files_and_cannot_be_changed():
    given_axes = {"num_warps": [4, 8], "BLOCK_K": [64], "BLOCK_N": [16]}
    space = SearchSpace(given_axes)
    given_axes["num_warps"].append(16)
    assert dict(space.axes) == {"BLOCK_N": (16,), "BLOCK_K": (64,), "num_warps": (4, 8)}
    assert list(space.axes) == ["BLOCK_N", "BLOCK_K", "num_warps"]
    with pytest.raises(TypeError):
        space.axes["BLOCK_N"] = (1,)  # type: ignore[index]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "no BLOCK_K, BLOCK_N"),
        ({"BLOCK_N": (16,)}, "no BLOCK_K"),
        ({"BLOCK_N": (16,), "BLOCK_K": ()}, "axis BLOCK_K of a space is empty"),
        ({"BLOCK_N": (16, 16), "BLOCK_K": (64,)}, "axis BLOCK_N of a space is empty or repeats"),
        ({"BLOCK_N": (16,), "BLOCK_K": (64,), "warps": (4,)}, "unknown parameters.*warps"),
        ({"BLOCK_N": (None, 16), "BLOCK_K": (64,)}, "BLOCK_N must be a positive integer, not None"),
        ({"BLOCK_N": (16,), "BLOCK_K": (0, 64)}, "BLOCK_K must be a positive integer, not 0"),
        ({"BLOCK_N": (16,), "BLOCK_K": (64,), "num_warps": ("4", 8)}, "num_warps must be"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(axes, message):
    with pytest.raises(UsageError, match=message):
        SearchSpace(axes)
