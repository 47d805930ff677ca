"""What the GPU's driver tells without torch, and without a CUDA context.

A wedged driver never answers. A process that has asked for the device must not fork others that
use it.
"""

from __future__ import annotations

import ctypes

from lora_autotune.evaluators.gpu import Gpu

_LONGEST = 80
_LONGEST_NAME = 256

# Numbers of CUdevice_attribute in cuda.h.
_MULTIPROCESSORS = 16
_L2_BYTES = 38
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_SMEM_BYTES = 97  # MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def driver_version() -> str | None:
    """What NVML says ("580.159.04"), None where it does not; it is what CUDA does not tell."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(_LONGEST)
        refused = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _LONGEST)
    except (OSError, AttributeError):
        return None
    return None if refused else text.value.decode(errors="replace")


def has_gpu() -> bool:
    """CUDA_VISIBLE_DEVICES leaves the driver a device; as torch.cuda.is_available(), in no time."""
    return _first_device() is not None


def first_gpu() -> Gpu | None:
    """The device that CUDA_VISIBLE_DEVICES has first, None where the driver names none."""
    import triton

    name = ctypes.create_string_buffer(_LONGEST_NAME)
    found = _first_device()
    if found is None:
        return None
    cuda, device = found
    try:
        if cuda.cuDeviceGetName(name, _LONGEST_NAME, device):
            return None
        return Gpu(
            name=name.value.decode(errors="replace"),
            capability=10 * _attribute(cuda, device, _CAPABILITY_MAJOR)
            + _attribute(cuda, device, _CAPABILITY_MINOR),
            multiprocessors=_attribute(cuda, device, _MULTIPROCESSORS),
            smem_bytes=_attribute(cuda, device, _SMEM_BYTES),
            l2_bytes=_attribute(cuda, device, _L2_BYTES),
            triton=triton.__version__,
        )
    except (OSError, AttributeError):
        return None


def _first_device() -> tuple[ctypes.CDLL, ctypes.c_int] | None:
    device = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        refused = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    except (OSError, AttributeError):
        return None
    return None if refused else (cuda, device)


def _attribute(cuda: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device):
        raise OSError(f"the driver does not tell attribute {number}")
    return value.value
