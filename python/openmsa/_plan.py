"""Plans: shapes and capacities of a layer, checked once."""

from __future__ import annotations

import functools
from typing import Any

from . import _openmsa
from ._arrays import library_of, np
from ._workspace import workspace

DEFAULTS = {"block_size": 128, "topk": 16, "num_init_blocks": 0, "num_local_blocks": 1, "softmax_scale": 0.0}


class Plan:
    """Shapes and capacities of one layer, for repeated calls: ``openmsa.msa_attention(..., plan=plan)``.

    dtype         of q, k, v, index_q, index_k: "float32", "bfloat16", "float16"; "float64" with the reference; or the
                  dtype object of NumPy or PyTorch
    backend       "cpu", "cuda", "reference" (the equations in float64) or "reference_float32"
    max_batch, max_total_q, max_seqlen_k
                  capacities: sequences, query tokens of all sequences together, keys of one sequence
    max_total_k   capacity of kl_loss and the backward functions: contiguous keys of all sequences together; 0: on the GPU
                  the larger of max_total_q and max_seqlen_k, else no bound
    softmax_scale None: 1/sqrt(head_dim)
    page_size     tokens per cache page, a divisor of block_size; 0: contiguous keys
    shard_count, shard_rank
                  shards of each sequence's kv_blocks, and the one that the caches hold: kv_block b is kv_block
                  b // shard_count of shard b % shard_count
    kv_dtype, index_dtype
                  None: dtype; "float8_e4m3fn" for fp8 caches and index keys
    index_q_rounding
                  how index_q meets fp8 index keys: "scaled", rounded to e4m3 with a scale per row; "cast", rounded to e4m3
                  as it is, or in e4m3 already; "exact", not rounded
    index_scale_per_block
                  True: fp8 index keys in pages have a scale per kv_block, in index_k_scale [num_pages] that of its first
                  page; False: per token
    num_threads   CPU backend; 0: one per core that affinity, CPU quota and the environment's OPENMSA_NUM_THREADS (or, if
                  that is not set, OMP_NUM_THREADS) leave to the process

    A plan is read-only and may be used by several threads at once; it can be copied and pickled. Workspace is not its own:
    all plans share what `openmsa.workspace_bytes` counts, and a call in a CUDA graph that is captured gets memory of the
    graph.

    Raises ValueError or TypeError naming the option, what was expected and what came; openmsa.Error for what the backend
    does not serve.

    >>> import openmsa
    >>> plan = openmsa.Plan(num_heads_q=8, num_heads_kv=2, head_dim=64, index_dim=64, max_total_q=1, max_seqlen_k=4096)
    >>> plan.topk, plan.block_size, plan.dtype
    (16, 128, 'float32')
    >>> openmsa.Plan(num_heads_q=3, num_heads_kv=2, head_dim=64, index_dim=64, max_total_q=1, max_seqlen_k=4096)
    Traceback (most recent call last):
    ValueError: num_heads_q: expected a multiple of num_heads_kv = 2, got 3
    """

    def __init__(
        self,
        *,
        num_heads_q: int,
        num_heads_kv: int,
        head_dim: int,
        index_dim: int,
        max_total_q: int,
        max_seqlen_k: int,
        max_batch: int = 1,
        max_total_k: int = 0,
        dtype: str = "float32",
        backend: str = "cpu",
        block_size: int = 128,
        topk: int = 16,
        num_init_blocks: int = 0,
        num_local_blocks: int = 1,
        softmax_scale: float | None = None,
        page_size: int = 0,
        kv_dtype: str | None = None,
        index_dtype: str | None = None,
        index_q_rounding: str = "scaled",
        index_scale_per_block: bool = False,
        num_threads: int = 0,
        shard_count: int = 1,
        shard_rank: int = 0,
    ):
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        options |= {name: _dtype_name(options[name]) for name in ("dtype", "kv_dtype", "index_dtype")}
        check_scale("softmax_scale", softmax_scale)
        config = _openmsa.Config()
        for name, value in options.items():
            if value is not None:
                _set(config, name, value)
        self._handle = _openmsa.Plan(config)
        self.run_views = self._handle.run_views
        self._options = options
        self._operations: dict[str, tuple[_openmsa.Op, int]] = {}
        self.runs_on_cuda = backend == "cuda"

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name not in options:
            raise AttributeError(f"Plan has no attribute {name!r}")
        return options[name]

    def __reduce__(self):
        return functools.partial(Plan, **self._options), ()

    def __repr__(self) -> str:
        return f"Plan({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def workspace_bytes(self, operation: str) -> int:
        """Bytes of workspace that every call of `operation` within the capacities needs."""
        return self.operation(operation)[1]

    def operation(self, name: str) -> tuple[_openmsa.Op, int]:
        """The operation of that name and its workspace."""
        found = self._operations.get(name)
        if found is None:
            op = _openmsa.Op[name]
            found = self._operations[name] = (op, self._handle.workspace_bytes(op))
        return found

    def reserve(self, like, *operations: str) -> int:
        """Takes the workspace of `operations` now that their calls would take, on the device and the current stream of the
        array `like`: for a program that measures the memory that is left before its first call. Returns its bytes.

        >>> import numpy as np, openmsa
        >>> plan = openmsa.Plan(num_heads_q=8, num_heads_kv=2, head_dim=64, index_dim=64, max_total_q=1, max_seqlen_k=4096)
        >>> plan.reserve(np.empty(0), "msa_attention") == plan.workspace_bytes("msa_attention") <= openmsa.workspace_bytes()
        True
        """
        library = library_of("like", like)
        self._check_device("like", library.device(like)[0])
        num_bytes = max(self.workspace_bytes(operation) for operation in operations)
        with library.on_device_of(like):
            if library.is_in_graph_pool(like):
                raise ValueError(
                    "reserve: expected no CUDA graph that is captured, whose calls have memory of the graph"
                )
            with workspace(num_bytes, library, like, library.stream(like)):
                return num_bytes

    def _check_device(self, name: str, device: str) -> None:
        if (device == "cuda") != self.runs_on_cuda:
            raise ValueError(f"backend: expected one for arrays on {device}, where {name} is, got {self.backend}")

    def run(self, operation: str, reads: dict[str, Any], writes: dict[str, Any]) -> None:
        """Runs an operation of the C API by name, on arrays by name: what the functions of the package come down to.
        On a GPU the work is enqueued on the caller's current stream and not waited for."""
        name, anchor = next(iter({**reads, **writes}.items()))
        library = library_of(name, anchor)
        self._check_device(name, library.device(anchor)[0])
        with library.on_device_of(anchor):
            stream = library.stream(anchor)
            op, num_bytes = self.operation(operation)
            exported = [
                {n: library_of(n, a).export(n, a, is_written) for n, a in arrays.items()}
                for arrays, is_written in ((reads, False), (writes, True))
            ]
            with workspace(num_bytes, library, anchor, stream) as address:
                self._handle.run(op, *exported, address, num_bytes, stream)
            library.finish(anchor)
            for name, array in writes.items():
                library_of(name, array).note_written(array)


def check_scale(name: str, value) -> None:
    """0 is C's word for the default; here that is None."""
    if name == "softmax_scale" and value is not None and value == 0:
        raise ValueError("softmax_scale: expected a number other than 0, or None for 1/sqrt(head_dim), got 0")


def _dtype_name(dtype) -> Any:
    """The name of a dtype object of NumPy, ml_dtypes or PyTorch; anything else as it is."""
    if type(dtype).__module__.partition(".")[0] == "torch":
        return str(dtype).removeprefix("torch.")
    if np is not None and isinstance(dtype, (np.dtype, type)):
        try:
            return np.dtype(dtype).name
        except TypeError:
            return dtype
    return dtype


def _set(config, name: str, value) -> None:
    try:
        if hasattr(config, f"set_{name}"):
            getattr(config, f"set_{name}")(value)
        else:
            setattr(config, name, value)
    except TypeError as error:
        if str(error).startswith(name):
            raise
        kind = "a number" if name == "softmax_scale" else "a whole number of 32 bits"
        kind = "a name" if hasattr(config, f"set_{name}") else kind
        kind = "True or False" if name == "index_scale_per_block" else kind
        raise TypeError(f"{name}: expected {kind}, got {value!r}") from None


#: Plans of calls made without one: a few numbers each.
cached_plan = functools.lru_cache(maxsize=256)(Plan)
