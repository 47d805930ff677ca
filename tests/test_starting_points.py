"""What a search without a scout tries first."""

import pytest

from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.starting_points import starting_points
from lora_autotune.task import Task


def task(kernel: str, R: int) -> Task:
    return Task(kernel=kernel, K=2048, R=R, S=2, chunk_size=16)


@pytest.mark.parametrize("kernel", ["shrink", "expand"])
@pytest.mark.parametrize("rank", [1, 8, 16, 20, 64, 256])
@pytest.mark.parametrize("name", ["wide", "reference"])
def test_they_are_different_configs_of_the_space(kernel, rank, name):
    space = named_space(name, kernel)
    found = starting_points(task(kernel, rank), space)
    assert len(set(found)) == len(found)
    assert all(config in space for config in found)
    assert DEFAULT_CONFIGS[kernel] not in found
    if name == "wide":
        assert len(found) >= 6


@pytest.mark.parametrize(("rank", "deepest"), [(4, 16), (16, 16), (20, 32), (64, 64), (256, 64)])
def test_expand_goes_through_the_rank_in_one_step_if_it_can(rank, deepest):
    first = starting_points(task("expand", rank), named_space("wide", "expand"))[0]
    assert first == Config(BLOCK_N=128, BLOCK_K=deepest, num_warps=4, num_stages=1, maxnreg=128)
