"""SGLang's description of a batch, as our kernels read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_autotune.kernels.batch import Batch


def batch_view(batch_info: Any, rows: int) -> Batch:
    """A view of a ``LoRABatchInfo``: the same memory, no copy, no synchronisation.

    Under a CUDA graph the buffers are static and longer than the batch, and the number of segments
    is that of the batch it was captured with. So a launch covers the whole buffer then, and relies
    on its surplus segments being empty, as SGLang's own launch does.

    Args:
        batch_info: the ``LoRABatchInfo``.
        rows: of the matrices.
    """
    from lora_autotune.kernels.batch import Batch

    permutation = batch_info.permutation
    if permutation.shape[0] > rows:
        permutation = permutation[:rows]
    segments = batch_info.weight_indices
    return Batch(
        seg_indptr=batch_info.seg_indptr,
        weight_indices=segments,
        lora_ranks=batch_info.lora_ranks,
        scalings=batch_info.scalings,
        permutation=permutation,
        num_segs=segments.shape[0] if batch_info.use_cuda_graph else batch_info.num_segments,
        chunk_size=batch_info.max_len,
    )
