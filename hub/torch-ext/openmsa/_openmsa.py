"""The C API by ctypes, with the names of the extension module that stands here in a wheel: a kernel has no Python symbols,
whatever versions of Python and PyTorch load it. Tensors are PyTorch's."""

from __future__ import annotations

import ctypes
import enum
from pathlib import Path

import torch

from ._namespace import NAMESPACE

_MAX_RANK = 4
_api = ctypes.CDLL(str(Path(__file__).parents[1] / f"{NAMESPACE}.abi3.so"))


class _Tensor(ctypes.Structure):
    """openmsa_tensor"""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * _MAX_RANK),
        ("strides", ctypes.c_int64 * _MAX_RANK),
    )


class _Workspace(ctypes.Structure):
    """openmsa_workspace"""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t), ("stream", ctypes.c_void_p))


def _declare(name: str, result, *arguments):
    function = getattr(_api, f"openmsa_{name}")
    function.restype, function.argtypes = result, arguments
    return function


_text, _pointer, _int = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int
_status_string = _declare("status_string", _text, _int)
_last_error = _declare("last_error", _text)
_op_name = _declare("op_name", _text, _int)
_tensor_name = _declare("tensor_name", _text, ctypes.c_int32)
_tensor_extent = _declare("tensor_extent", _text, _text, ctypes.c_int32)
_tensor_dtype = _declare("tensor_dtype", _int, _pointer, _text)
_tensors_init = _declare("tensors_init", None, _pointer)
_tensors_at = _declare("tensors_at", _pointer, _pointer, _text)
_config_init = _declare("config_init", None, _pointer)
_plan_create = _declare("plan_create", _int, _pointer, _pointer)
_plan_destroy = _declare("plan_destroy", None, _pointer)
_plan_workspace_bytes = _declare("plan_workspace_bytes", _int, _pointer, _int, _pointer)
_run = _declare("run", _int, _pointer, _int, _pointer, _Workspace)

_DTYPES = {
    "float32": 1,
    "bfloat16": 2,
    "float16": 3,
    "float64": 4,
    "int32": 5,
    "int64": 7,
    "float8_e4m3fn": 6,
}
_DTYPE_NAMES = {value: name for name, value in _DTYPES.items()}
_DTYPES_OF_TORCH = {getattr(torch, name): value for name, value in _DTYPES.items()}
_BACKENDS = {"cpu": 1, "cuda": 4, "reference": 2, "reference_float32": 3}
_ROUNDINGS = {"scaled": 0, "cast": 1, "exact": 2}


class Error(RuntimeError):
    """A status that is neither success nor an argument's fault."""


def _check(status: int) -> None:
    if status == 0:
        return
    message = _last_error().decode()
    if status == 1:  # OPENMSA_INVALID_ARGUMENT
        raise ValueError(message)
    raise Error(f"{_status_string(status).decode()}: {message}")


def _one_of(choices: dict[str, int], argument: str, name, kind: str = "") -> int:
    """The number of a name. Raises TypeError for what is no text, and for no name of a kind that is a dtype."""
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a name, got {name!r}")
    if name not in choices:
        *others, last = choices
        error = TypeError if kind else ValueError
        raise error(f"{argument}: expected {kind}{', '.join(others)} or {last}, got {name}")
    return choices[name]


def _dtype(argument: str, name) -> int:
    return _one_of(_DTYPES, argument, name, "dtype ")


def _names(name_of) -> list[str]:
    names: list[str] = []
    while (name := name_of(len(names))) is not None:
        names.append(name.decode())
    return names


Op = enum.IntEnum("Op", {name: number for number, name in enumerate(_names(_op_name))})  # type: ignore[misc]
_TENSOR_NAMES = _names(_tensor_name)


class Config(ctypes.Structure):
    """openmsa_config, with its defaults."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("backend", ctypes.c_int),
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int32) for name in ("num_heads_q", "num_heads_kv", "head_dim", "index_dim")),
        *((name, ctypes.c_int32) for name in ("block_size", "topk", "num_init_blocks", "num_local_blocks")),
        ("softmax_scale", ctypes.c_double),
        ("page_size", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("max_batch", "max_total_q", "max_seqlen_k")),
        ("num_threads", ctypes.c_int32),
        ("kv_dtype", ctypes.c_int),
        ("index_dtype", ctypes.c_int),
        ("max_total_k", ctypes.c_int64),
        ("index_q_rounding", ctypes.c_int),
        *((name, ctypes.c_int32) for name in ("index_scale_per_block", "shard_count", "shard_rank")),
    )

    def __init__(self):
        super().__init__()
        _config_init(ctypes.byref(self))

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if getattr(self, name) != value:  # ctypes drops the bits that have no place
            raise TypeError(
                f"{name}: expected a whole number of {8 * getattr(type(self), name).size} bits, got {value!r}"
            )

    def set_backend(self, name) -> None:
        self.backend = _one_of(_BACKENDS, "backend", name)

    def set_dtype(self, name) -> None:
        self.dtype = _dtype("dtype", name)

    def set_kv_dtype(self, name) -> None:
        self.kv_dtype = _dtype("kv_dtype", name)

    def set_index_dtype(self, name) -> None:
        self.index_dtype = _dtype("index_dtype", name)

    def set_index_q_rounding(self, name) -> None:
        self.index_q_rounding = _one_of(_ROUNDINGS, "index_q_rounding", name)

    def set_index_scale_per_block(self, value) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"index_scale_per_block: expected True or False, got {value!r}")
        self.index_scale_per_block = int(value)


class _Tensors:
    """openmsa_tensors: its size, and a pointer to a tensor of each name."""

    SIZE = ctypes.sizeof(ctypes.c_size_t) + len(_TENSOR_NAMES) * ctypes.sizeof(_Tensor)

    def __init__(self):
        self.memory = ctypes.create_string_buffer(self.SIZE)
        _tensors_init(self.memory)
        self.struct_size = ctypes.c_size_t.from_buffer(self.memory).value

    def set(self, name: str, tensor: torch.Tensor, dtype: int) -> None:
        at = _tensors_at(self.memory, name.encode())
        if at is None:
            raise TypeError(f"{name}: expected the name of a tensor")
        if tensor.dim() > _MAX_RANK:
            raise ValueError(f"{name}: expected rank at most {_MAX_RANK}, got {tensor.dim()}")
        to = _Tensor.from_address(at)
        to.data, to.dtype, to.rank = tensor.data_ptr(), dtype, tensor.dim()
        to.shape[: to.rank], to.strides[: to.rank] = tensor.shape, tensor.stride()


class Views(_Tensors):
    """Tensors of a call, on one device, and the current stream there."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.is_cuda = device.type == "cuda"
        self.device = device.index or 0
        self.stream = torch.cuda.current_stream(device).cuda_stream if self.is_cuda else 0


def view_tensors(api, types: tuple, dicts: tuple, other) -> Views | None:
    """Tensors by name; what is None, or `other`, is passed over. None where one of them is of another type, has memory that
    holds other numbers, or where they lie on several devices. `api` means nothing here."""
    views = None
    for tensors in dicts:
        for name, tensor in tensors.items():
            if tensor is None or tensor is other:
                continue
            if name not in _TENSOR_NAMES or type(tensor) not in types or tensor.layout != torch.strided:
                return None
            if views is None:
                views, device = Views(tensor.device), tensor.device
            is_plain = not tensor.is_neg() and tensor.device == device and tensor.dim() <= _MAX_RANK
            if not is_plain or tensor.dtype not in _DTYPES_OF_TORCH or device.type not in ("cpu", "cuda"):
                return None
            views.set(name, tensor, _DTYPES_OF_TORCH[tensor.dtype])
    return views


class Plan:
    """openmsa_plan"""

    def __init__(self, config: Config):
        self._plan = ctypes.c_void_p()
        _check(_plan_create(ctypes.byref(config), ctypes.byref(self._plan)))

    def __del__(self):
        _plan_destroy(self._plan)

    def workspace_bytes(self, op: Op) -> int:
        """Bytes of workspace that the operation needs."""
        num_bytes = ctypes.c_size_t()
        _check(_plan_workspace_bytes(self._plan, op, ctypes.byref(num_bytes)))
        return num_bytes.value

    def run_views(self, op: Op, views: Views, workspace: int, workspace_bytes: int) -> None:
        """Runs the operation on tensors of view_tensors, on their stream."""
        _check(_run(self._plan, op, views.memory, _Workspace(workspace, workspace_bytes, views.stream)))

    def run(self, op: Op, reads: dict, writes: dict, workspace: int, workspace_bytes: int, stream: int) -> None:
        """Runs the operation; reads and writes map names to (array, dtype or "")."""
        tensors = _Tensors()
        for name, (tensor, dtype) in {**reads, **writes}.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
            tensors.set(name, tensor, _dtype(name, dtype or str(tensor.dtype).removeprefix("torch.")))
        _check(_run(self._plan, op, tensors.memory, _Workspace(workspace, workspace_bytes, stream)))


def tensor_extents() -> dict[str, tuple[str, ...]]:
    """Names of what the dimensions of each tensor count, by the tensor's name."""
    return {name: tuple(_names(lambda d, name=name: _tensor_extent(name.encode(), d))) for name in _TENSOR_NAMES}


def tensor_dtype(name: str, dtype: str) -> str:
    """Dtype of a tensor of a layer in `dtype`."""
    config = Config()
    config.set_dtype(dtype)
    return _DTYPE_NAMES.get(_tensor_dtype(ctypes.byref(config), name.encode()), "")


def _constant(name: str, description: str):
    function = _declare(name, _text)

    def constant() -> str:
        return function().decode()

    constant.__name__, constant.__doc__ = name, description
    return constant


version = _constant("version", "Version of the library.")
cpu_features = _constant("cpu_features", "Instruction sets that the CPU backend can use, best first.")
cuda_device = _constant("cuda_device", "The GPU of the CUDA backend, or why there is none.")

_SIZES = {Config().struct_size: ctypes.sizeof(Config), _Tensors().struct_size: _Tensors.SIZE}
if any(expected != got for expected, got in _SIZES.items()):
    raise ImportError(f"openmsa: expected structs of {list(_SIZES)} bytes, got {list(_SIZES.values())}")
