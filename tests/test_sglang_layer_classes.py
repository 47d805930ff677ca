"""SGLang's own classes of linear layers, on the CPU: what they give to the backend, and get."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

from lora_autotune.sglang import MODE_VARIABLE, layers
from tests.sglang_cases import server

pytestmark = pytest.mark.usefixtures("fresh")

# What SGLang's module of layers imports besides needs packages that serving needs; their classes
# are only asked about by isinstance. Of a server's GPU, layers pin memory.
LAYERS_THEMSELVES = """
from importlib.util import find_spec
from unittest.mock import MagicMock
home = "sglang.srt.layers"
package = types.ModuleType(f"{home}.quantization")
package.__path__ = [f"{folder}/quantization" for folder in sys.modules[home].__path__]
sys.modules[package.__name__] = package
for name in ("linear", "vocab_parallel_embedding", "moe", "moe.topk", "moe.utils",
             "moe.fused_moe_triton", "moe.fused_moe_triton.layer", "moe.moe_runner",
             "moe.moe_runner.triton"):
    sys.modules[f"{home}.{name}"] = MagicMock()
from sglang.srt.lora import layers
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from lora_autotune.kernels.batch import make_batch

made_tensor = torch.tensor
torch.tensor = lambda *a, pin_memory=False, **k: made_tensor(*a, **k)
torch.Tensor.pin_memory = lambda self: self

class Base(torch.nn.Module):
    def __init__(self, weight, sizes):
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.bias, self.skip_bias_add, self.gather_output = None, False, False
        self.quant_method = UnquantizedLinearMethod()
        self.output_partition_sizes, self.output_size = sizes, sum(sizes)
        self.q_proj_shard_size, self.kv_proj_shard_size = sizes[0], sizes[-1]

def layer_of(name, backend, weight, sizes, first_output_dim=0):
    layer = getattr(layers, name)(Base(weight, sizes), backend)
    if first_output_dim:
        layer.first_output_dim = first_output_dim
    return layer

backend_class = backend.ChunkedSgmvLoRABackend

def backend_of(batch, graph=False):
    one = backend_class.__new__(backend_class)
    one.batch_info = LoRABatchInfo(
        use_cuda_graph=graph, bs=len(batch.permutation), num_segments=batch.num_segs,
        seg_indptr=batch.seg_indptr, weight_indices=batch.weight_indices,
        lora_ranks=batch.lora_ranks, scalings=batch.scalings, max_len=batch.chunk_size,
        seg_lens=None, permutation=batch.permutation,
    )
    return one

CASES = (
    ("ColumnParallelLinearWithLoRA", [40], 0),
    ("MergedColumnParallelLinearWithLoRA", [256, 256], 0),
    ("MergedColumnParallelLinearWithLoRA", [256, 256, 40], 0),
    ("InklingQKVRLinearWithLoRA", [256, 256, 256, 40], 0),
    ("QKVParallelLinearWithLoRA", [256, 256, 256], 0),
    ("RowParallelLinearWithLoRA", [264], 0),
    ("ReplicatedLinearWithLoRA", [264], 0),
    ("ReplicatedLinearWithLoRA", [256, 40], 256),
)
"""

WHAT_APPLY_LORA_IS = """
calls = []
def recorded(name):
    def forward(**operands):
        calls.append((name, operands))
        return operands.get("base_output", operands["x"])
    return forward
backend.chunked_sgmv_lora_shrink_forward = recorded("shrink")
backend.chunked_sgmv_lora_expand_forward = recorded("expand")

seen = []
def watched(self, layer, x, base_fn, lora_a, lora_b, output_offset, offsets, **options):
    calls.clear()
    base, x = torch.zeros(5, lora_b.shape[1]), torch.zeros(5, lora_a.shape[2])
    layer.apply_lora(base, x)
    (first, a), (second, b) = calls
    assert (first, second) == ("shrink", "expand")
    assert a["x"] is x and a["weights"] is lora_a and a["num_slices"] == len(offsets) - 1
    assert a["batch_info"] is b["batch_info"] is self.batch_info
    assert b["weights"] is lora_b and b["slice_offsets"] is output_offset
    assert b["base_output"] is base
    assert output_offset.tolist() == list(offsets)
    assert offsets[-1] == lora_b.shape[1]
    assert len(offsets) - 1 == lora_a.shape[1] // lora_b.shape[2]
    assert set(options) <= {"all_reduce"} and not any(options.values())
    seen.append(type(layer).__name__)
    return base
backend_class.forward_with_base = watched
layers.get_group_rank_size = lambda _: (0, 1)
layers.get_parallel = layers.should_skip_mlp_all_reduce = MagicMock()

one = backend_of(make_batch([0] * 5, ranks=[16], scalings=[1.0], chunk_size=16))
for name, sizes, first in CASES:
    layer = layer_of(name, one, torch.zeros(sum(sizes), 32), sizes, first)
    base = layer.base_layer
    base.tp_group, base.reduce_results, base.input_is_parallel = None, True, True
    base.use_dp_attention_reduce = False
    layer.set_lora_info(torch.zeros(1, len(sizes) * 16, 32), torch.zeros(1, sum(sizes), 16))
    layer(torch.zeros(5, 32))
print(*dict.fromkeys(seen))
print(*(name for name, one in vars(layers).items() if isinstance(one, type)
        and "apply_lora" in dir(one)))
"""


def test_apply_lora_of_these_layers_is_what_the_backend_is_given() -> None:
    code = LAYERS_THEMSELVES + WHAT_APPLY_LORA_IS
    output, _ = server(code, **{MODE_VARIABLE: "off"})
    seen, all_of_them = (line.split() for line in output.splitlines())
    assert sorted(seen) == sorted(layers.LAYERS)
    others = {"VocabParallelEmbeddingWithLoRA", "ParallelLMHeadWithLoRA"}
    assert set(all_of_them) - set(seen) == others


IN_THE_INTERPRETER = """
torch.cuda.get_device_name = lambda *_: "NVIDIA H200"
import lora_autotune.kernels.linear_forward as ours
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.sglang import layers as hooks
real, launched = ours.linear_forward, []
ours.linear_gap = lambda *_: None
ours.linear_forward = lambda *a, **k: launched.append(None) or real(*a, **k)
hooks._least_rows = lambda: 8
hooked = backend_class.forward_with_base
assert hasattr(hooked, "__wrapped__")

def error(output, reference):
    return float((output.double() - reference).norm() / reference.norm())

def fresh(*shape):
    return torch.randn(shape, generator=generator).half()

for number, (name, sizes, first) in enumerate(CASES):
    generator, rows, width, R = torch.Generator().manual_seed(number), 150, 72, 16
    ranks, S = [16, 0, 8, 7], len(sizes)
    batch = make_batch(
        torch.randint(0, 4, (rows,), generator=generator), ranks=ranks, chunk_size=32,
        scalings=[0.5, 1.0, 2.0, 1.5], grid_segments=20 if number % 2 else None,
    )
    one = backend_of(batch, graph=bool(number % 2))
    layer = layer_of(name, one, fresh(sum(sizes), width), sizes, first)
    layer.set_lora_info(fresh(4, S * R, width), fresh(4, sum(sizes), R))
    offset = layer._output_offset if "Replicated" in name else layer.output_offset
    x = fresh(rows, width)
    base = lambda: layer.base_layer.quant_method.apply(layer.base_layer, x, None)
    given = (one, layer, x, base, layer.lora_a, layer.lora_b, offset, layer.lora_offsets)
    launched.clear()
    output = hooked(*given)
    assert launched == [None], name
    theirs = hooked.__wrapped__(*given)
    middle = torch.nan_to_num(shrink_reference(x, layer.lora_a, batch, S), 0.0)
    product = x.double() @ layer.base_layer.weight.double().T
    reference = expand_reference(middle, layer.lora_b, batch, offset, product)
    assert output.dtype == theirs.dtype and output.shape == theirs.shape
    assert error(output, reference) < 2e-3, (name, error(output, reference))
    assert error(output, theirs.double()) < 2e-3, (name, error(output, theirs.double()))
    print(name)
"""


def test_hooked_on_its_own_layers_our_kernel_computes_the_reference() -> None:
    code = LAYERS_THEMSELVES + IN_THE_INTERPRETER
    output, log = server(code, TRITON_INTERPRET="1", **{MODE_VARIABLE: "layers"})
    assert set(output.split()) == set(layers.LAYERS)
    assert "goes back" not in log
    assert "LoRA layer K=72 N=768 R=16 S=3: one product with the layer's own" in log
