import torch

from lora_autotune.kernels.arrivals import COUNTERS, arrival_counters

CPU = torch.device("cpu")


def test_two_launches_in_a_row_share_no_counter():
    first, second = arrival_counters(CPU, 5), arrival_counters(CPU, 5)
    assert first is not None
    assert second is not None
    first[:] = 1
    assert second.tolist() == [0] * len(second)
    first.zero_()


def test_all_are_aligned_as_triton_compiled_for():
    counters = [arrival_counters(CPU, count) for count in (1, 2, 3, 4, 5)]
    assert {one.data_ptr() % 16 for one in counters if one is not None} == {0}


def test_more_than_there_are_cannot_be_had():
    assert arrival_counters(CPU, COUNTERS) is not None
    assert arrival_counters(CPU, COUNTERS + 1) is None
