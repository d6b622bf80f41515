"""What functions take beside their own tensors, in words: from this table come the signatures and the part of the docstrings
that `help` shows."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable)

# Name: what the signature shows as its default, and its line. None stands for absent.
_WORDS: dict[str, tuple[object, str]] = {
    "cu_seqlens_q": (None, "[batch + 1] int32 prefix sums of the queries; None: one sequence"),
    "cu_seqlens_k": (None, "[batch + 1] int32 prefix sums of contiguous keys; None: one sequence"),
    "seqlens_k": (None, "[batch] int32 keys of each sequence, with block_table"),
    "block_table": (None, "[batch, max_pages] int32 page numbers of each sequence"),
    "k_cache": (None, "[num_pages, page_size, num_heads_kv, head_dim], in the place of k"),
    "v_cache": (None, "the same, in the place of v"),
    "index_k_cache": (None, "[num_pages, page_size, index_dim], in the place of index_k"),
    "k_scale": (None, "fp32, of an fp8 k_cache: [1], or [num_heads_kv, num_pages * page_size]; None: 1"),
    "v_scale": (None, "fp32, of an fp8 v_cache, likewise"),
    "index_k_scale": (
        None,
        "fp32, of fp8 index keys: [1], per token [num_pages * page_size] or [total_k]; None: 1; "
        "per kv_block [num_pages], that of its first page",
    ),
    "block_size": (128, "keys per kv_block"),
    "topk": (16, "kv_blocks kept per query and KV head"),
    "num_init_blocks": (0, "first kv_blocks that are always chosen"),
    "num_local_blocks": (1, "last kv_blocks that are always chosen"),
    "softmax_scale": (None, "None: 1/sqrt(head_dim)"),
    "index_q_rounding": (
        "scaled",
        'how index_q meets fp8 index keys: "scaled", "cast" or "exact", as openmsa.Plan says',
    ),
    "max_seqlen_k": (None, "the most keys of one sequence; None: what the shapes allow"),
    "shard_count": (1, "shards of each sequence's kv_blocks; more than one: in caches with a block_table of the shard"),
    "shard_rank": (
        0,
        "the shard that the caches hold: kv_block b is kv_block b // shard_count of shard b % shard_count",
    ),
    "num_threads": (0, "CPU backend; 0 is one per core"),
    "backend": (None, 'None: that of the arrays\' device; "cpu", "cuda", or "reference", the equations in float64'),
    "plan": (None, "an openmsa.Plan in the place of all these numbers"),
}
_HEADING = "Keyword arguments, as far as they apply:"


def documented(*names: str) -> Callable[[_Function], _Function]:
    """Shows `names` in the signature and docstring of a function that takes them as **keywords."""

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        shown = [name for name in names if name not in taken]
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_WORDS[name][0]) for name in shown]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        lines = [f"{_HEADING}\n", *(f"{name:<16}  {_line(name)}\n" for name in shown)]
        body, examples = _split_examples(inspect.cleandoc(function.__doc__ or ""))
        function.__doc__ = f"{body}\n\n{''.join(lines)}" + (f"\n{examples}" if examples else "")
        return function

    return decorate


def _line(name: str) -> str:
    default, words = _WORDS[name]
    return words if default is None else f"{words} ({default})"


def _split_examples(doc: str) -> tuple[str, str]:
    lines = doc.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(">>>")), len(lines))
    return "\n".join(lines[:first]).rstrip(), textwrap.dedent("\n".join(lines[first:]))
