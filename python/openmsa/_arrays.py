"""What openmsa needs of an array library: names of dtypes and devices, new memory, the current stream, and a view by
DLPack. NumPy, PyTorch, CuPy and JAX have one class each; an array of any other library with DLPack is read as it is, and
results beside it are NumPy's."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

try:
    import numpy as np
except ImportError:  # a kernel of the Hugging Face Hub may have PyTorch alone
    np = None  # type: ignore[assignment]

# DLPack's DLDeviceType.
_DEVICE_NAMES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}
# What neither DLPack nor the buffer protocol can name everywhere goes as plain bytes.
_AS_BYTES = {"bfloat16": "uint16", "float8_e4m3fn": "uint8"}
# CUDA's handle of the legacy default stream, cudaStreamLegacy.
_LEGACY_STREAM = 1


class NumPy:
    """Also arrays of libraries that are not known by name."""

    def device(self, array) -> tuple[str, int]:
        if isinstance(array, np.ndarray):
            return "cpu", 0
        kind, index = array.__dlpack_device__()
        return _DEVICE_NAMES.get(int(kind), f"DLPack device {int(kind)}"), int(index)

    def dtype(self, array) -> str:
        return getattr(array.dtype, "name", str(array.dtype))

    def empty(self, shape, dtype: str, like):
        return np.empty(shape, _numpy_dtype(dtype))

    def stream(self, array) -> int:
        return 0

    def on_device_of(self, array):
        return contextlib.nullcontext()

    def is_in_graph_pool(self, array) -> bool:
        """Whether new memory would belong to a CUDA graph, which the current stream of the array's device captures."""
        return False

    def is_captured(self, array) -> bool:
        """Whether a CUDA graph is captured that will read memory which is not its own."""
        return False

    def finish(self, array) -> None:
        """Called after the work on `array` and its kind is enqueued."""

    def note_written(self, array) -> None:
        """Called after a call that writes into `array`."""

    def export(self, name: str, array, is_written: bool) -> tuple[Any, str]:
        """What the extension can import, and the dtype that it then cannot see."""
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{name}: expected an array without a mask, got a masked one; fill it first")
        if isinstance(array, np.ndarray) and not array.dtype.isnative:
            raise TypeError(f"{name}: expected the byte order of this machine, got {array.dtype.str}")
        if isinstance(array, np.ndarray) and array.dtype.name in _AS_BYTES:
            return array.view(_AS_BYTES[array.dtype.name]), array.dtype.name
        return array, ""

    def memory(self, num_bytes: int, like) -> tuple[Any, int]:
        """64-byte aligned memory, and its address."""
        owner = np.empty(num_bytes + 64, np.uint8)
        return owner, -(-owner.ctypes.data // 64) * 64

    def address(self, array) -> int | None:
        """Of the bytes of a contiguous array that can be written; None for any other."""
        is_memory = isinstance(array, np.ndarray) and array.flags.c_contiguous and array.flags.writeable
        return array.ctypes.data if is_memory else None


class Torch(NumPy):
    def __init__(self):
        import torch

        self._torch = torch

    def device(self, array):
        return array.device.type, array.device.index or 0

    def dtype(self, array):
        return str(array.dtype).removeprefix("torch.")

    def empty(self, shape, dtype, like):
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=like.device)

    def stream(self, array):
        return self._torch.cuda.current_stream(array.device).cuda_stream if array.is_cuda else 0

    def on_device_of(self, array):
        return self._torch.cuda.device(array.device) if array.is_cuda else contextlib.nullcontext()

    def is_in_graph_pool(self, array):
        return array.is_cuda and self._torch.cuda.is_current_stream_capturing()

    def note_written(self, array):
        if not array.is_inference():
            self._torch.autograd.graph.increment_version(array)

    def export(self, name, array, is_written):
        if self._torch._C._functorch.is_functorch_wrapped_tensor(array):
            raise TypeError(f"{name}: expected a plain tensor, got one inside torch.func; openmsa.torch is for these")
        if array.layout != self._torch.strided:
            raise TypeError(f"{name}: expected a dense tensor with strides, got layout {array.layout}")
        if array.is_neg() or array._is_zerotensor():  # numbers that memory does not hold as they are
            if is_written:
                raise TypeError(f"{name}: expected memory that can be written, got a view that is computed when read")
            array = array.clone() if array._is_zerotensor() else array.resolve_neg()
        array = array.detach()
        if array.dtype == self._torch.float8_e4m3fn:  # DLPack has a name for it from 1.1 on only
            return array.view(self._torch.uint8), "float8_e4m3fn"
        return array, ""

    def memory(self, num_bytes, like):
        owner = self._torch.empty(num_bytes + 256, dtype=self._torch.uint8, device=like.device)
        return owner, -(-owner.data_ptr() // 256) * 256

    def address(self, array):
        return array.data_ptr() if array.layout == self._torch.strided and array.is_contiguous() else None


class CuPy(NumPy):
    def __init__(self):
        import cupy

        self._cupy = cupy

    def device(self, array):
        return "cuda", array.device.id

    def empty(self, shape, dtype, like):
        return self._cupy.empty(shape, _numpy_dtype(dtype))

    def stream(self, array):
        return self._cupy.cuda.get_current_stream().ptr

    def on_device_of(self, array):
        return self._cupy.cuda.Device(array.device.id)

    def is_captured(self, array):
        return self._cupy.cuda.get_current_stream().is_capturing()

    def export(self, name, array, is_written):
        dtype = array.dtype.name
        viewed = array.view(_AS_BYTES[dtype]) if dtype in _AS_BYTES else array
        # -1: no synchronisation, since the work goes to the stream that is current for CuPy too.
        return viewed.__dlpack__(stream=-1), dtype if dtype in _AS_BYTES else ""

    def memory(self, num_bytes, like):
        owner = self._cupy.empty(num_bytes + 256, np.uint8)
        return owner, -(-owner.data.ptr // 256) * 256

    def address(self, array):
        return array.data.ptr if array.flags.c_contiguous else None


class Jax(NumPy):
    """JAX has no current stream. On a GPU the work goes to the default stream, which waits for the inputs, and the call
    returns when it is done. Results are new arrays, written before anybody else sees them."""

    def empty(self, shape, dtype, like):
        import jax.numpy as jnp

        return jnp.empty(shape, dtype=dtype, device=next(iter(like.devices()))).block_until_ready()

    def stream(self, array):
        return _LEGACY_STREAM if self.device(array)[0] == "cuda" else 0

    def finish(self, array):
        if self.device(array)[0] != "cuda":
            return
        status = ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(_LEGACY_STREAM))
        if status != 0:
            raise RuntimeError(f"cuStreamSynchronize: CUDA driver error {status}")

    def export(self, name, array, is_written):
        if type(array).__name__.endswith("Tracer"):
            raise TypeError(
                f"{name}: expected an array, got one that jax.jit traces; wrap the call in jax.pure_callback"
            )
        if self.device(array)[0] == "cuda":
            return array.__dlpack__(stream=_LEGACY_STREAM), ""
        return array.__dlpack__(), ""

    def memory(self, num_bytes, like):
        owner = self.empty((num_bytes + 256,), "uint8", like)
        return owner, -(-owner.unsafe_buffer_pointer() // 256) * 256


_CLASSES = {"torch": Torch, "cupy": CuPy, "jax": Jax, "jaxlib": Jax}
_libraries: dict[str, NumPy] = {}


def library_of(name: str, array) -> NumPy:
    """The array library of `array`, the argument `name`."""
    if not hasattr(array, "dtype") or not hasattr(array, "shape"):
        raise TypeError(f"{name}: expected an array with a dtype and a shape, got {type(array).__name__}")
    if type(array).__name__.endswith("Tracer"):
        raise TypeError(f"{name}: expected an array, got one that JAX traces; wrap the call in jax.pure_callback")
    for kind in type(array).__mro__:
        module = kind.__module__.partition(".")[0]
        if module in _CLASSES:
            if module not in _libraries:
                _libraries[module] = _CLASSES[module]()
            return _libraries[module]
    return _libraries.setdefault("numpy", NumPy())


def _numpy_dtype(name: str):
    if name not in _AS_BYTES:
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name))
