"""Workspace of calls: one piece of memory per device and stream, and on the CPU per thread, which all plans and operations
share. It grows to what the largest call needed and is kept for the next one. A caller may give memory instead (`Workspace`),
or have none kept (`workspace_per_call`).

What belongs to somebody else is never kept: memory allocated while a CUDA graph is captured, or for an operator of PyTorch
(whose compiler may run it in a graph's pool), is taken for the call and given back. On a stream that is safe at once, since
the allocators of PyTorch and CuPy hand it out again to work behind the call on that stream.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any

from ._arrays import library_of

_NOTHING = (None, 0, 0)


class _Piece:
    """Memory that is kept, and the lock of whoever enqueues work on it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.memory: tuple[Any, int, int] = _NOTHING

    def grown(self, num_bytes: int, library, anchor) -> tuple[Any, int, int]:
        """Owner, address and size of at least so many bytes."""
        if num_bytes > self.memory[2]:
            self.memory = _NOTHING  # first, so that both are never there at once
            self.memory = (*library.memory(num_bytes, anchor), num_bytes)
        return self.memory


_of_streams: dict[tuple, _Piece] = {}
_of_threads: weakref.WeakSet[_Piece] = weakref.WeakSet()
_of_graphs: list[Any] = []  # what graphs of CuPy read, which have no memory of their own
_given: weakref.WeakSet[Workspace] = weakref.WeakSet()
_local = threading.local()


def workspace_bytes() -> int:
    """Bytes of workspace that the library keeps between calls, on all devices together.

    >>> import openmsa
    >>> openmsa.free_workspace()
    >>> openmsa.workspace_bytes()
    0
    """
    return sum(piece.memory[2] for piece in _pieces())


def free_workspace() -> None:
    """Gives all workspace back that is kept between calls; the next call allocates what it needs. Calls that run in other
    threads keep theirs until they end."""
    for piece in _pieces():
        piece.memory = _NOTHING


@contextlib.contextmanager
def workspace_per_call():
    """Within, calls of this thread on a GPU keep no workspace: each takes what it needs from the allocator of its arrays'
    library and gives it back when it has enqueued its work. For programs that share a GPU's memory with others, and that
    capture CUDA graphs, whose calls otherwise keep their workspace as long as the graph.

    >>> import openmsa
    >>> with openmsa.workspace_per_call():
    ...     pass  # calls
    """
    before, _local.is_per_call = getattr(_local, "is_per_call", False), True
    try:
        yield
    finally:
        _local.is_per_call = before


class Workspace:
    """Memory that the caller gives, for all calls of this thread on its device within ``with workspace:``, whatever their
    plans. The innermost counts; on other devices nothing changes.

    memory        [bytes] uint8, contiguous, of NumPy, PyTorch or CuPy: at least the `Plan.workspace_bytes` of every operation
                  that will run, and 256 more unless its address is a multiple of 256 (on the CPU of 64)

    On a GPU the calls of one stream follow one another in it; streams that run at the same time need one each. Its contents
    are undefined before and after, and no tensor of a call may lie in it. A CUDA graph that is captured within keeps its
    address: the memory must live as long as the graph. A call that needs more raises ValueError.

    >>> import numpy as np, openmsa
    >>> plan = openmsa.Plan(num_heads_q=8, num_heads_kv=2, head_dim=64, index_dim=64, max_total_q=1, max_seqlen_k=4096)
    >>> workspace = openmsa.Workspace(np.empty(plan.workspace_bytes("msa_attention") + 256, np.uint8))
    >>> q, k, index_k = np.ones((1, 8, 64), np.float32), np.ones((9, 2, 64), np.float32), np.ones((9, 64), np.float32)
    >>> with workspace:
    ...     o = openmsa.msa_attention(q, k, k, q[:, :2], index_k, plan=plan)
    """

    def __init__(self, memory):
        library = library_of("memory", memory)
        if library.dtype(memory) != "uint8" or len(memory.shape) != 1:
            raise ValueError(
                f"memory: expected [bytes] of dtype uint8, got {list(memory.shape)} of {library.dtype(memory)}"
            )
        self.device = library.device(memory)
        address = library.address(memory)
        if address is None:
            raise ValueError(f"memory: expected a contiguous array that can be written, got {type(memory).__name__}")
        alignment = 64 if self.device[0] == "cpu" else 256
        self.memory, self.lock = memory, threading.Lock()
        self._address = -(-address // alignment) * alignment
        self.num_bytes = max(memory.shape[0] - (self._address - address), 0)
        _given.add(self)

    def address(self, num_bytes: int) -> int:
        """Of so many bytes. Raises ValueError where there are fewer."""
        if num_bytes > self.num_bytes:
            raise ValueError(f"workspace: expected at least {num_bytes} bytes, got {self.num_bytes}")
        return self._address

    def __enter__(self) -> Workspace:
        _given_to_thread().append(self)
        return self

    def __exit__(self, *error) -> None:
        _given_to_thread().pop()


def _given_to_thread() -> list[Workspace]:
    if not hasattr(_local, "given"):
        _local.given = []
    return _local.given


class workspace:
    """With it, the address of so many bytes on the device of `anchor`, for work that is enqueued on `stream` within."""

    # _owner: the memory, which somebody may give back meanwhile.
    __slots__ = ("_anchor", "_library", "_num_bytes", "_owner", "_piece", "_stream")

    def __init__(self, num_bytes: int, library, anchor, stream: int):
        self._num_bytes, self._library, self._anchor, self._stream = num_bytes, library, anchor, stream
        self._piece: _Piece | Workspace | None = None
        self._owner: Any = None

    def __enter__(self) -> int:
        if self._num_bytes == 0:
            return 0
        library, anchor = self._library, self._anchor
        device = library.device(anchor)
        given = next((given for given in reversed(_given_to_thread()) if given.device == device), None)
        if given is not None:
            address = given.address(self._num_bytes)
            given.lock.acquire()
            self._piece = given
            return address
        if device[0] == "cpu":
            piece = _piece_of_thread()
        elif getattr(_local, "is_per_call", False) or library.is_in_graph_pool(anchor):
            self._owner, address = library.memory(self._num_bytes, anchor)
            return address
        else:
            piece = _of_streams.get((device, self._stream)) or _of_streams.setdefault((device, self._stream), _Piece())
        piece.lock.acquire()
        try:
            self._owner = memory = piece.grown(self._num_bytes, library, anchor)
            if library.is_captured(anchor):
                _of_graphs.append(memory)
        except BaseException:
            piece.lock.release()
            raise
        self._piece = piece
        return memory[1]

    def __exit__(self, *error) -> None:
        if self._piece is not None:
            self._piece.lock.release()


def _piece_of_thread() -> _Piece:
    if not hasattr(_local, "piece"):
        _local.piece = _Piece()
        _of_threads.add(_local.piece)
    return _local.piece


def _pieces() -> list[_Piece]:
    return [*_of_streams.values(), *_of_threads]


def _forget_locks() -> None:
    """In a child, threads that held a lock are gone."""
    locked: list[_Piece | Workspace] = [*_pieces(), *_given]
    for memory in locked:
        memory.lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_locks)
