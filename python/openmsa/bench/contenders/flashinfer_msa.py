"""FlashInfer's kernels for MiniMax-M3 on Hopper: e4m3 index keys, k and v; scores written to memory, a top-k over them, and
attention over the kv_blocks. Decode steps also with index keys in bf16, without their attention."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from .._errors import Refused
from .._judge import judge_layer, judge_selection
from .._problem import Problem
from .._section import Contender, Prepared, Result
from ._call import joined

#: Query tokens of a sequence up to which it has kernels for decode: of scores, and of attention.
SCORES_DECODED, DECODED = 4, 16
#: Block scores that are in memory at once: larger prompts are scored in parts.
MOST_SCORES = 1 << 30


class Calls:
    """The calls of a problem whose sequences have equally many query tokens."""

    def __init__(self, problem: Problem):
        layer = problem.layer
        if (layer.block_size, layer.head_dim, layer.index_dim, layer.topk) != (128, 128, 128, 16):
            raise Refused("16 kv_blocks of 128 keys and heads of 128 only")
        if len(set(problem.queries)) > 1:
            raise Refused("as many new tokens of every sequence only")
        self.library = importlib.import_module("flashinfer.msa_ops")
        self.problem, self.tokens = problem, problem.queries[0]
        if self.tokens > SCORES_DECODED and not problem.has_fp8_index:
            raise Refused(f"16-bit index keys of at most {SCORES_DECODED} new tokens only")
        self.pages = [problem.pages(call) for call in range(problem.calls)]
        self.tables = [pages["block_table"].clamp(min=0) for pages in self.pages]  # -1 where there is no page
        self.index_k = self.pages[0]["index_k_cache"][:, None]
        shape = (problem.calls, problem.total_q, layer.num_heads_kv, layer.topk)
        self.topk_indices = problem.source.full(shape, -1, "int32")
        self.parts = self._parts()

    def with_attention(self) -> Calls:
        """What attention takes beside the selection."""
        layer, full = self.problem.layer, self.problem.source.full
        self.kv_cache = joined(self.pages[0]["k_cache"], self.pages[0]["v_cache"])
        self.chosen = full((layer.num_heads_kv, self.problem.total_q, layer.topk), -1, "int32")
        shape = (self.problem.total_q, layer.num_heads_q, layer.head_dim)
        self.o = full(shape, float("nan"), self.problem.dtype)
        return self

    def _parts(self) -> list[dict]:
        """Query tokens that are scored together: all, or some of a prompt."""
        problem, layer = self.problem, self.problem.layer
        blocks = -(-problem.max_seqlen_k // layer.block_size)
        most = max(MOST_SCORES // (layer.num_heads_kv * blocks), 1)
        if problem.total_q > most and problem.batch > 1:
            raise Refused(f"at most {MOST_SCORES} block scores of several sequences")
        scores = problem.source.full((layer.num_heads_kv * blocks * min(problem.total_q, most),), 0.0, "float32")
        result = []
        for begin in range(0, problem.total_q, most):
            end = min(begin + most, problem.total_q)
            queries = [(end - begin) // problem.batch] * problem.batch
            lengths = [n - (problem.total_q - end) for n in problem.lengths] if problem.batch == 1 else problem.lengths
            result.append(self._part(slice(begin, end), np.array(queries), np.array(lengths), scores))
        return result

    def _part(self, rows: slice, queries: np.ndarray, lengths: np.ndarray, scores) -> dict:
        size, on_device = self.problem.layer.block_size, self.problem.source.on_device
        blocks, total = int(-(-lengths.max() // size)), int(queries.sum())
        positions = [np.arange(n - q, n) for q, n in zip(queries, lengths)]
        heads = self.problem.layer.num_heads_kv
        return {
            "rows": rows,
            "queries": int(queries[0]),
            "blocks": blocks,
            "cu_seqlens_q": on_device(np.cumsum([0, *queries]).astype(np.int32)),
            "seqused_k": on_device(lengths.astype(np.int32)),
            "visible": on_device((np.concatenate(positions) // size + 1).astype(np.int32)),
            "scores": scores[: heads * blocks * total].view(heads, blocks, total),
        }

    def select(self, call: int) -> Result:
        for part in self.parts:
            self.library.msa_proxy_score(
                self.problem.index_q[call][part["rows"]],
                self.index_k,
                part["cu_seqlens_q"],
                page_table=self.tables[call],
                seqused_k=part["seqused_k"],
                max_seqlen_q=part["queries"],
                max_k_tiles=part["blocks"],
                output=part["scores"],
            )
            self.library.msa_topk_select(
                part["scores"],
                self.problem.layer.topk,
                num_valid_pages=part["visible"],
                output=self.topk_indices[call][part["rows"]],
                force_end_blocks=1,
            )
        return Result(topk_indices=self.topk_indices[call].transpose(0, 1))

    def layer(self, call: int) -> Result:
        problem, pages = self.problem, self.pages[call]
        k, v = self.kv_cache.split(problem.layer.head_dim, -1)
        chosen = self.select(call).topk_indices
        if not chosen.is_contiguous():
            chosen = self.chosen.copy_(chosen)
        common = {"page_table": self.tables[call], "seqused_k": pages["seqlens_k"], "out": self.o}
        q = problem.q[call]
        if self.tokens <= DECODED:
            self.library.msa_sparse_decode_attention(q, k, v, chosen, seqlen_q=self.tokens, **common)
        else:
            self.library.msa_sparse_attention(q, k, v, chosen, pages["cu_seqlens_q"], causal=True, **common)
        return Result(self.o, topk_indices=chosen)


def layer(problem: Problem) -> Prepared:
    problem = problem.with_fp8_caches().with_cast_index_q()
    return Prepared(Calls(problem).with_attention().layer, problem)


def select(inputs: Callable[[Problem], Problem]) -> Callable[[Problem], Prepared]:
    def prepare(problem: Problem) -> Prepared:
        problem = inputs(problem)
        return Prepared(Calls(problem).select, problem)

    return prepare


def _fp8_index(problem: Problem) -> Problem:
    return problem.with_fp8_index().with_cast_index_q()


ALL = (
    Contender("FlashInfer MSA fp8 caches", "layer", layer, judge_layer, ("cuda",)),
    Contender("FlashInfer MSA select", "select", select(lambda problem: problem), judge_selection, ("cuda",)),
    Contender("FlashInfer MSA fp8 select", "select", select(_fp8_index), judge_selection, ("cuda",)),
)
