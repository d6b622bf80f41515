"""Workspace of calls: one piece of memory per device and stream, and on the CPU per thread, which all plans and operations
share. It grows to what the largest call needed and is kept for the next one.

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
def per_call():
    """Within, no workspace on a GPU is kept."""
    before, _local.is_per_call = getattr(_local, "is_per_call", False), True
    try:
        yield
    finally:
        _local.is_per_call = before


class workspace:
    """With it, the address of so many bytes on the device of `anchor`, for work that is enqueued on `stream` within."""

    # _owner: the memory, which somebody may give back meanwhile.
    __slots__ = ("_anchor", "_library", "_num_bytes", "_owner", "_piece", "_stream")

    def __init__(self, num_bytes: int, library, anchor, stream: int):
        self._num_bytes, self._library, self._anchor, self._stream = num_bytes, library, anchor, stream
        self._piece: _Piece | None = None
        self._owner: Any = None

    def __enter__(self) -> int:
        if self._num_bytes == 0:
            return 0
        library, anchor = self._library, self._anchor
        device = library.device(anchor)
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
    for piece in _pieces():
        piece.lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_locks)
