from types import SimpleNamespace

import torch

from lora_autotune.kernels import arrivals
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


def test_streams_and_graphs_share_no_counter(monkeypatch):
    gpu = torch.device("cuda")
    capturing, stream, synchronized = False, 7, []
    monkeypatch.setattr(arrivals, "_rings", {})
    monkeypatch.setattr(arrivals, "_Ring", lambda _device, made=arrivals._Ring: made(CPU))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=stream)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)

    capturing = True
    assert arrival_counters(gpu, 4) is None, "zeroing them would be part of the graph"
    capturing = False
    eager = arrival_counters(gpu, 4)
    stream = 8
    other = arrival_counters(gpu, 4)
    capturing = True
    graph, again = arrival_counters(gpu, 4), arrival_counters(gpu, 4)
    places = [counters.data_ptr() for counters in (eager, other, graph, again)]
    assert len(set(places)) == 4
    assert synchronized == [gpu]
