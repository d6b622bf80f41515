"""The one maker of problems: a layer and random inputs of its calls, whole prompts or new tokens on paged caches."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Sequence

import numpy as np

from . import _work
from ._errors import Refused
from ._tensors import Array, cast, source_of, take, to_fp8

# A row of calls reads so much, several times the L2 cache, before it comes back to a page.
MORE_THAN_CACHE = 256 << 20
LEAST_CALLS, MOST_CALLS = 8, 64
# Keys and values of all sets of pages together.
MOST_KEY_BYTES = 48 << 30


@dataclasses.dataclass(frozen=True)
class Layer:
    num_heads_q: int
    num_heads_kv: int
    head_dim: int
    index_dim: int
    block_size: int
    topk: int

    @property
    def group_size(self) -> int:
        return self.num_heads_q // self.num_heads_kv


def sets_and_calls(layer: Layer, lengths: Sequence[int]) -> tuple[int, int]:
    """Sets of pages, and calls that go through the sets in turn, of a decode step in bf16 on a GPU. A row of calls
    reads more than the L2 cache holds before it comes back to a page, of index keys and of attended keys."""
    tokens = sum(-(-n // layer.block_size) for n in lengths) * layer.block_size
    index_bytes, key_bytes = 2 * layer.index_dim, 4 * layer.num_heads_kv * layer.head_dim
    sets = max(math.ceil(MORE_THAN_CACHE / (tokens * index_bytes)), 2)
    sets = max(min(sets, MOST_CALLS, MOST_KEY_BYTES // (tokens * key_bytes)), 1)
    attended = sum(min(n, layer.topk * layer.block_size) for n in lengths) * key_bytes
    return sets, min(max(sets, math.ceil(MORE_THAN_CACHE / attended), LEAST_CALLS), MOST_CALLS)


class Problem:
    """Sequences of (queries, keys); the queries stand at the end of their keys.

    q, index_q     [calls, total_q, heads, dim]
    k, v, index_k  [rows, ...]: tokens of the sequences one after another, or pages of block_size tokens
    index_k_scale  [rows] or [1] of index keys in fp8, or None
    index_q_rounding  how index_q meets those: "scaled", "cast" or "exact", as openmsa.Plan says
    selection      topk_indices to attend over, or None: those that select_blocks finds

    A whole prompt is one call. A decode step on a GPU is measured as a row of calls, since a model has many layers and
    the start of a kernel hides behind the one before. Each call has queries of its own, and pages that are shared only
    by calls so far apart that what is read between them fills the L2 cache.

    agreement      correlation of the query vectors of a sequence: tokens of real text choose mostly the same kv_blocks
    is_correlated  the main branch's heads are noisy copies of the index branch's, so that there is something to recall
    """

    def __init__(
        self,
        layer: Layer,
        sequences: list[tuple[int, int]],
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int = 0,
        is_paged: bool = False,
        agreement: float = 0.0,
        is_correlated: bool = False,
        seed: int = 1,
    ):
        self.layer, self.sequences, self.device, self.dtype = layer, sequences, device, dtype
        self.threads, self.is_paged = threads, is_paged
        self.queries, self.lengths = zip(*sequences)
        self.batch, self.total_q, self.max_seqlen_k = len(sequences), sum(self.queries), max(self.lengths)
        is_row = is_paged and device == "cuda" and self.queries != self.lengths
        self.sets, self.calls = sets_and_calls(layer, self.lengths) if is_row else (1, 1)
        self.source = source_of(device, seed)
        rng = np.random.default_rng(seed)
        # Where each sequence begins: rows of keys, or pages of one set in random order.
        self._key_begins = np.cumsum([0, *self.lengths])
        self._tables = [self._pages_in_random_order(number, rng) for number in range(self.sets)] if is_paged else []
        self._make_lengths()
        self._make_tensors(agreement, is_correlated)
        self.index_k_scale: Array | None = None
        self.index_q_rounding = "scaled"
        self.selection: Array | None = None

    def _pages_in_random_order(self, number: int, rng) -> np.ndarray:
        """block_table [batch, most pages] of a set, padded with -1."""
        counts = [self._pages(n) for n in self.lengths]
        pages = rng.permutation(sum(counts)) + number * sum(counts)
        table = np.full((self.batch, max(counts)), -1, np.int32)
        for row, part in zip(table, np.split(pages, np.cumsum(counts)[:-1])):
            row[: len(part)] = part
        return table

    def _make_tensors(self, agreement: float, is_correlated: bool) -> None:
        layer, normal = self.layer, self.source.normal
        rows = self.sets * self.pages_per_set * layer.block_size if self.is_paged else sum(self.lengths)
        self.k, self.v = (normal(rows, layer.num_heads_kv, layer.head_dim, dtype=self.dtype) for _ in range(2))
        self.index_k = normal(rows, layer.index_dim, dtype=self.dtype)
        self.q = self._make_queries(agreement, layer.num_heads_q, layer.head_dim)
        self.index_q = self._make_queries(agreement, layer.num_heads_kv, layer.index_dim)
        if is_correlated:
            for head in range(layer.num_heads_kv):
                self.q[..., self.group(head), :] += self.index_q[..., head, None, :]
                self.k[:, head] += self.index_k
            self.q, self.k = (cast(x * 0.5**0.5, self.dtype) for x in (self.q, self.k))

    def _make_queries(self, agreement: float, heads: int, dim: int) -> Array:
        """[calls, total_q, heads, dim] of variance 1: one vector per sequence mixed with one per token."""
        if agreement == 0:
            return self.source.normal(self.calls, self.total_q, heads, dim, dtype=self.dtype)
        shape = (self.calls * self.batch, self.queries[0], heads, dim)
        shared, own = self.source.normal(shape[0], 1, heads, dim), self.source.normal(*shape)
        mixed = agreement**0.5 * shared + (1 - agreement) ** 0.5 * own
        return cast(mixed, self.dtype).reshape(self.calls, self.total_q, heads, dim)

    def with_fp8_index(self, scale: str | None = None) -> Problem:
        """The same inputs with index keys in e4m3: with a scale per "token", with "one" for all, or with none."""
        result = copy.copy(self)
        if scale is None:
            result.index_k = cast(self.index_k, "float8_e4m3fn")
        else:
            codes, scales = to_fp8(self.index_k if scale == "token" else self.index_k.reshape(1, -1))
            result.index_k, result.index_k_scale = codes.reshape(self.index_k.shape), scales.reshape(-1)
        return result

    def with_fp8_caches(self) -> Problem:
        """The same inputs with all keys and values in e4m3, without scales."""
        result = self.with_fp8_index()
        result.k, result.v = (cast(x, "float8_e4m3fn") for x in (self.k, self.v))
        return result

    def with_index_q_rounding(self, rounding: str) -> Problem:
        """The same inputs, whose index queries meet fp8 keys so."""
        result = copy.copy(self)
        result.index_q_rounding = rounding
        return result

    def with_cast_index_q(self) -> Problem:
        """The same inputs with index queries in e4m3 as they are, for contenders that do not round them themselves."""
        result = copy.copy(self)
        result.index_q = cast(self.index_q, "float8_e4m3fn")
        return result

    @property
    def has_fp8_index(self) -> bool:
        return "float8" in str(self.index_k.dtype)

    @property
    def has_fp8_keys(self) -> bool:
        return "float8" in str(self.k.dtype)

    # ------------------------------------------------------------------------------------------------------- places

    def group(self, head: int) -> slice:
        """Query heads of a KV head."""
        return slice(head * self.layer.group_size, (head + 1) * self.layer.group_size)

    def _pages(self, length: int) -> int:
        return -(-length // self.layer.block_size)

    @property
    def pages_per_set(self) -> int:
        return sum(self._pages(n) for n in self.lengths)

    def sample(self, count: int, seed: int = 11) -> list[tuple[int, int, int]]:
        """(row of q, sequence, position among its keys) of a few queries: the first, the last and some between."""
        rng = np.random.default_rng(seed)
        rows = sorted({0, self.total_q - 1, *rng.integers(self.total_q, size=count).tolist()})
        begins = np.cumsum([0, *self.queries])
        result = []
        for row in rows:
            sequence = int(np.searchsorted(begins, row, side="right")) - 1
            first = self.lengths[sequence] - self.queries[sequence]
            result.append((row, sequence, first + row - int(begins[sequence])))
        return result

    def rows(self, call: int, sequence: int, tokens: np.ndarray) -> np.ndarray:
        """Where tokens of a sequence lie in k, v and index_k."""
        if not self.is_paged:
            return self._key_begins[sequence] + tokens
        size = self.layer.block_size
        pages = self._tables[call % self.sets][sequence, tokens // size].astype(np.int64)
        return pages * size + tokens % size

    def contiguous_rows(self, call: int, sequence: int, tokens: np.ndarray) -> np.ndarray:
        """Where tokens of a sequence lie in k and v for contenders that take no block_table: see `contiguous`."""
        if not self.is_paged:
            return self.rows(call, sequence, tokens)
        return (call % self.sets * self.batch + sequence) * self.max_seqlen_k + tokens

    # -------------------------------------------------------------------------------------------- tensors of a call

    def _make_lengths(self) -> None:
        def on_device(numbers) -> Array:
            return self.source.on_device(np.asarray(numbers, np.int32))

        self._cu_seqlens = {"cu_seqlens_q": on_device(np.cumsum([0, *self.queries]))}
        self._parts: dict[tuple[int, int], Array] = {}  # cu_seqlens_q of some sequences
        self._cu_seqlens["cu_seqlens_k"] = on_device(np.cumsum([0, *self.lengths]))
        self._seqlens_k = on_device(self.lengths)
        tables = self._tables or [np.arange(self.pages_per_set)[None]]
        self._tables_on_device = [on_device(table) for table in tables]

    def where(self, call: int) -> dict[str, Array]:
        """Arguments of the functions of openmsa that say which keys a query sees."""
        if self.is_paged:
            return self._where_paged(call)
        return self._cu_seqlens if self.batch > 1 else {}

    def _where_paged(self, call: int) -> dict[str, Array]:
        table = self._tables_on_device[call % self.sets]
        return {"cu_seqlens_q": self._cu_seqlens["cu_seqlens_q"], "seqlens_k": self._seqlens_k, "block_table": table}

    def part(self, call: int, sequences: slice) -> tuple[slice, dict[str, Array]]:
        """Rows of q of some sequences of a paged problem, and what `where` says of these."""
        queries = np.cumsum([0, *self.queries[sequences]])
        begin = sum(self.queries[: sequences.start])
        key = (sequences.start, sequences.stop)
        if key not in self._parts:  # the first time only: a CUDA graph cannot capture a copy from the host
            self._parts[key] = self.source.on_device(queries.astype(np.int32))
        bounds = self._parts[key]
        tables = {name: array[sequences] for name, array in self._where_paged(call).items() if name != "cu_seqlens_q"}
        return slice(begin, begin + int(queries[-1])), tables | {"cu_seqlens_q": bounds}

    def keys(self) -> dict[str, Array]:
        """k and v under the names that the functions of openmsa have for them."""
        if self.is_paged:
            return {"k_cache": self._paged(self.k), "v_cache": self._paged(self.v)}
        return {"k": self.k, "v": self.v}

    def index_keys(self) -> dict[str, Array]:
        tensors = {"index_k_cache": self._paged(self.index_k)} if self.is_paged else {"index_k": self.index_k}
        return tensors if self.index_k_scale is None else tensors | {"index_k_scale": self.index_k_scale}

    def _paged(self, x: Array) -> Array:
        return x.reshape(-1, self.layer.block_size, *x.shape[1:])

    def pages(self, call: int) -> dict[str, Array]:
        """Keys and lengths as a paged cache, for contenders that know nothing else."""
        if not self.is_paged and (self.batch > 1 or self.max_seqlen_k % self.layer.block_size != 0):
            raise Refused("of prompts only one, with full pages")
        caches = {"k_cache": self.k, "v_cache": self.v, "index_k_cache": self.index_k}
        return self._where_paged(call) | {name: self._paged(cache) for name, cache in caches.items()}

    def contiguous(self, call: int) -> tuple[Array, Array]:
        """k and v [batch, tokens, heads, dim] of a call, its pages in the order of memory."""
        if len(set(self.lengths)) > 1 or (self.is_paged and self.max_seqlen_k % self.layer.block_size != 0):
            raise Refused("sequences of one length, with full pages, only")
        begin = call % self.sets * self.batch * self.max_seqlen_k
        shape = (self.batch, self.max_seqlen_k, self.layer.num_heads_kv, self.layer.head_dim)
        k, v = (x[begin : begin + shape[0] * shape[1]].reshape(shape) for x in (self.k, self.v))
        return k, v

    # ------------------------------------------------------------------------------------------- judge and rates

    def judged_index(self, call: int, row: int, rows: np.ndarray) -> tuple[Array, Array]:
        """index_q of a query and index_k of some rows in float64, as the library takes them: queries that meet fp8 keys are
        rounded as index_q_rounding says, unless they came so."""
        q, k = self.index_q[call, row], cast(take(self.index_k, rows), "float64")
        if self.index_k_scale is not None:
            scales = self.index_k_scale if len(self.index_k_scale) == 1 else take(self.index_k_scale, rows)
            k = k * cast(scales, "float64")[:, None]
        if not self.has_fp8_index or "float8" in str(q.dtype) or self.index_q_rounding == "exact":
            return cast(q, "float64"), k
        if self.index_q_rounding == "cast":
            return cast(cast(q, "float8_e4m3fn"), "float64"), k
        codes, scale = to_fp8(q)
        return cast(codes, "float64") * cast(scale, "float64"), k

    def work(self, part: str, rate: str) -> float:
        return _work.work(self, part, rate)


def log_uniform(count: int, least: int, most: int, seed: int = 7) -> list[int]:
    """Lengths from `least` to `most`."""
    chosen, least = random.Random(seed), max(least, 1)
    return [int(least * (most / least) ** chosen.random()) for _ in range(count)]
