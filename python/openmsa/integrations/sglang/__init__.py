"""MiniMax-M3 in SGLang on openmsa: the sparse layers, selection included, on the engine's own caches.

SGLang finds `register` by its entry point (sglang.srt.plugins) and calls it in each of its processes. The environment says
whether it does anything:

    OPENMSA_SGLANG=1 python -m sglang.launch_server --model-path MiniMaxAI/MiniMax-M3 --tp 8
    OPENMSA_SGLANG=1 OPENMSA_SGLANG_SHARD_INDEX=1 ...      # the index branch divided among the ranks of tensor parallelism

With the flag the engine's backend of sparse layers is replaced by one that is derived from it (_backend). Where openmsa does
not serve a model, a layer or a step (_support), the derived backend does what the engine's does, and says so in the log.
"""

from __future__ import annotations

import functools
import logging
import os

FLAG = "OPENMSA_SGLANG"
SHARD_INDEX = "OPENMSA_SGLANG_SHARD_INDEX"
#: Versions of SGLang whose backend the tests were run with; its interface is not one that SGLang promises to keep.
TESTED = ("0.5.23",)
TARGET = "sglang.srt.layers.attention.minimax_sparse_backend.MiniMaxSparseAttnBackend"

_log = logging.getLogger(__name__)


def register() -> None:
    """Replaces SGLang's backend of MiniMax-M3's sparse layers where the environment has OPENMSA_SGLANG=1. May be called
    again. Other values than 0 and 1, of OPENMSA_SGLANG_SHARD_INDEX too, and versions of SGLang other than 0.5.23, are named
    in a warning and leave it as it is."""
    flag = os.environ.get(FLAG, "0")
    if flag in ("", "0"):
        return
    if flag != "1":
        _log.warning("%s: expected 0 or 1, got %r; SGLang keeps its own sparse attention", FLAG, flag)
        return
    from sglang.version import __version__ as version

    if os.environ.get(SHARD_INDEX, "0") not in ("", "0", "1"):
        value = os.environ[SHARD_INDEX]
        _log.warning("%s: expected 0 or 1, got %r; SGLang keeps its own sparse attention", SHARD_INDEX, value)
        return
    if version.partition("+")[0] not in TESTED:
        _log.warning(
            "openmsa: expected SGLang %s, got %s; SGLang keeps its own sparse attention", ", ".join(TESTED), version
        )
        return
    _replace_backend()


@functools.cache
def _replace_backend() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from ._backend import backend_of_engine

    HookRegistry.register(TARGET, backend_of_engine(), HookType.REPLACE)
