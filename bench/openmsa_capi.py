"""openmsa's C API on PyTorch tensors, through ctypes: the structs of openmsa.h and the calls that the benchmarks make."""

import ctypes
from ctypes import c_double, c_int, c_int32, c_int64, c_size_t, c_void_p

import torch

BACKEND_CPU, BACKEND_CUDA = 1, 4
OPERATIONS = {
    "block_scores": 0,
    "topk": 1,
    "select_blocks": 2,
    "sparse_attention": 3,
    "msa_attention": 4,
    "dense_attention": 5,
}
DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.int32: 5, torch.float8_e4m3fn: 6}


class CTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("rank", c_int32),
        ("shape", c_int64 * 4),
        ("strides", c_int64 * 4),
    ]

    @classmethod
    def of(cls, tensor):
        rank = tensor.dim()
        padding = (0,) * (4 - rank)
        return cls(
            tensor.data_ptr(),
            DTYPES[tensor.dtype],
            rank,
            (c_int64 * 4)(*tensor.shape, *padding),
            (c_int64 * 4)(*tensor.stride(), *padding),
        )


class CConfig(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("backend", c_int),
        ("dtype", c_int),
        ("num_heads_q", c_int32),
        ("num_heads_kv", c_int32),
        ("head_dim", c_int32),
        ("index_dim", c_int32),
        ("block_size", c_int32),
        ("topk", c_int32),
        ("num_init_blocks", c_int32),
        ("num_local_blocks", c_int32),
        ("softmax_scale", c_double),
        ("page_size", c_int32),
        ("max_batch", c_int64),
        ("max_total_q", c_int64),
        ("max_seqlen_k", c_int64),
        ("num_threads", c_int32),
        ("kv_dtype", c_int),
        ("index_dtype", c_int),
    ]


class CTensors(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t)] + [
        (name, CTensor)
        for name in (
            "cu_seqlens_q cu_seqlens_k seqlens_k block_table q k v index_q index_k k_cache v_cache index_k_cache "
            "k_scale v_scale index_k_scale block_scores topk_indices o lse d_o d_q d_k d_v d_index_q d_index_k kl_loss block_recall score_recall"
        ).split()
    ]


class CWorkspace(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("bytes", c_size_t), ("stream", c_void_p)]


class Library:
    """libopenmsa.so, with a status other than success raised as RuntimeError."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.openmsa_last_error.restype = ctypes.c_char_p
        self._library.openmsa_version.restype = ctypes.c_char_p
        self._library.openmsa_plan_destroy.argtypes = [c_void_p]
        self._library.openmsa_plan_workspace_bytes.argtypes = [c_void_p, c_int, c_void_p]
        self._library.openmsa_run.argtypes = [c_void_p, c_int, c_void_p, CWorkspace]

    def version(self):
        return self._library.openmsa_version().decode()

    def check(self, status):
        if status != 0:
            raise RuntimeError(self._library.openmsa_last_error().decode())

    def plan(self, **config):
        return Plan(self, self._library, config)


class Plan:
    """A plan for one shape; `config` has members of openmsa_config, others keep their defaults."""

    def __init__(self, owner, library, config):
        self._owner, self._library, self._handle = owner, library, c_void_p()
        c_config = CConfig()
        library.openmsa_config_init(ctypes.byref(c_config))
        for name, value in config.items():
            setattr(c_config, name, value)
        owner.check(library.openmsa_plan_create(ctypes.byref(c_config), ctypes.byref(self._handle)))

    def __del__(self):
        self._library.openmsa_plan_destroy(self._handle)

    def workspace_bytes(self, operation):
        size = c_size_t()
        self._owner.check(
            self._library.openmsa_plan_workspace_bytes(self._handle, OPERATIONS[operation], ctypes.byref(size))
        )
        return size.value

    def prepare(self, operation, workspace=None, **tensors):
        """A function without arguments that enqueues `operation` on the current stream and keeps its tensors alive.
        `workspace`: uint8 tensor of at least workspace_bytes, for calls that never run at once; default: one of its own.
        """
        c_tensors = CTensors()
        self._library.openmsa_tensors_init(ctypes.byref(c_tensors))
        for name, tensor in tensors.items():
            setattr(c_tensors, name, CTensor.of(tensor))
        device = next(iter(tensors.values())).device
        memory = workspace
        if memory is None:
            memory = torch.empty(max(self.workspace_bytes(operation), 1), dtype=torch.uint8, device=device)

        def call(alive=tensors):
            stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else None
            c_workspace = CWorkspace(memory.data_ptr(), memory.numel(), stream or None)
            self._owner.check(
                self._library.openmsa_run(self._handle, OPERATIONS[operation], ctypes.byref(c_tensors), c_workspace)
            )

        return call
