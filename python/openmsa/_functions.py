"""The functions of the layer. Shapes, names and equations are those of openmsa.h.

Arrays are NumPy's (fp32, fp16; bf16 and fp8 through ml_dtypes) or live where PyTorch, CuPy or JAX put them; nothing is
copied. Results come from the library of the first argument, on its device, or go where the caller says (o=, lse=, ...).
On a GPU the work is enqueued on the caller's current stream.

`help` of each function shows the keyword arguments that it takes: tables of sequences and pages, numbers, a plan.

A query stands at position seqlen_k - seqlen_q + t of its sequence and sees the keys up to there.

All raise ValueError (argument, expected, got) for shapes, dtypes and values that contradict each other, TypeError for
what is no array, openmsa.Error for what a backend does not serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._call import Array, Batch, Options, ShardBatch, ShardOptions, call
from ._options import documented

if TYPE_CHECKING:
    from typing import Unpack

__all__ = [
    "append_kv",
    "block_recall",
    "block_scores",
    "dense_attention",
    "dense_attention_backward",
    "kl_loss",
    "merge_candidates",
    "merge_partials",
    "msa_attention",
    "msa_attention_backward",
    "select_blocks",
    "select_candidates",
    "sparse_attention",
    "sparse_attention_backward",
    "topk",
]


_options = documented(*Options.__annotations__)
_batch = documented(*Batch.__annotations__)
_shard_options = documented(*ShardOptions.__annotations__)
_shard_batch = documented(*ShardBatch.__annotations__)


def _pick(written: dict[str, Array], *names: str | bool):
    chosen = [written[name] for name in names if isinstance(name, str)]
    return chosen[0] if len(chosen) == 1 else tuple(chosen)


def _attention_gradients(operation: str, reads: dict[str, Array], given: tuple[Array, Array, Array], batch: Batch):
    names = ("d_q", "d_k", "d_v")
    return _pick(call(operation, reads, dict(zip(names, given)), names, batch), *names)


@_batch
def block_scores(index_q: Array, index_k: Array = None, *, block_scores: Array = None, **batch: Unpack[Batch]) -> Array:
    """Scores of the index branch per kv_block.

        block_scores[r,i,b] = max over visible j in kv_block b of index_q[i,r] . index_k[j] / sqrt(index_dim)

    index_q       [total_q, num_heads_kv, index_dim]
    index_k       [total_k, index_dim]
    returns       [num_heads_kv, total_q, number of kv_blocks] fp32; -inf for kv_blocks that the query does not see

    >>> import numpy as np, openmsa
    >>> index_q, index_k = np.ones((2, 1, 8), np.float32), np.ones((2, 8), np.float32)
    >>> openmsa.block_scores(index_q, index_k, block_size=8)
    array([[[2.828427],
            [2.828427]]], dtype=float32)
    """
    reads = {"index_q": index_q, "index_k": index_k}
    return call("block_scores", reads, {"block_scores": block_scores}, ("block_scores",), batch)["block_scores"]


@_options
def topk(block_scores: Array, seqlens_k: Array, *, topk_indices: Array = None, **batch: Unpack[Options]) -> Array:
    """The kv_blocks of highest score: forced ones first, then visible ones; equal scores: the lower kv_block wins.

    block_scores  [num_heads_kv, total_q, number of kv_blocks] fp32
    seqlens_k     [batch] int32 keys of each sequence
    returns       topk_indices [num_heads_kv, total_q, topk] int32, ascending, then -1

    >>> import numpy as np, openmsa
    >>> scores = np.array([[[3, 1, 2, 0]]], np.float32)
    >>> openmsa.topk(scores, np.array([32], np.int32), block_size=8, topk=3)
    array([[[0, 2, 3]]], dtype=int32)
    """
    reads = {"block_scores": block_scores, "seqlens_k": seqlens_k}
    return call("topk", reads, {"topk_indices": topk_indices}, ("topk_indices",), batch)["topk_indices"]


@_batch
def select_blocks(
    index_q: Array, index_k: Array = None, *, topk_indices: Array = None, **batch: Unpack[Batch]
) -> Array:
    """`block_scores` and `topk` in one pass; scores are never stored.

    index_q       [total_q, num_heads_kv, index_dim]
    index_k       [total_k, index_dim]
    returns       topk_indices [num_heads_kv, total_q, topk] int32, ascending, then -1

    >>> import numpy as np, openmsa
    >>> index_q, index_k = np.ones((17, 1, 8), np.float32), np.zeros((17, 8), np.float32)
    >>> openmsa.select_blocks(index_q, index_k, block_size=8, topk=2)[0, [0, 8, 16]]
    array([[ 0, -1],
           [ 0,  1],
           [ 0,  2]], dtype=int32)
    """
    reads = {"index_q": index_q, "index_k": index_k}
    return call("select_blocks", reads, {"topk_indices": topk_indices}, ("topk_indices",), batch)["topk_indices"]


@_shard_batch
def sparse_attention(
    q: Array,
    k: Array = None,
    v: Array = None,
    topk_indices: Array = None,
    *,
    o: Array = None,
    lse: Array = None,
    return_lse: bool = False,
    **batch: Unpack[ShardBatch],
) -> Array | tuple[Array, Array]:
    """Exact attention over the kv_blocks in topk_indices.

        o[i,h] = sum_j p_j v[j, h / group_size],  p = softmax over j in T(i, h / group_size) of softmax_scale q[i,h].k[j]

    q             [total_q, num_heads_q, head_dim]
    k, v          [total_k, num_heads_kv, head_dim]
    topk_indices  [num_heads_kv, total_q, topk] int32, kv_blocks in any order, then -1
    returns       o like q, and with return_lse lse [total_q, num_heads_q] fp32, natural logarithm. A query with nothing
                  to attend to gets o = 0, lse = -inf

    With a shard_count, kv_blocks of other shards are left out; `merge_partials` makes the whole of all shards' o and lse.
    Take o in fp32 then: o=np.empty(q.shape, np.float32).

    >>> import numpy as np, openmsa
    >>> q, k = np.zeros((1, 2, 8), np.float32), np.zeros((4, 1, 8), np.float32)
    >>> v = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 1, 8), np.float32)
    >>> o, lse = openmsa.sparse_attention(q, k, v, np.zeros((1, 1, 1), np.int32), block_size=8, return_lse=True)
    >>> o[0, :, 0], lse.round(4)
    (array([1.5, 1.5], dtype=float32), array([[1.3863, 1.3863]], dtype=float32))
    """
    reads = {"q": q, "k": k, "v": v, "topk_indices": topk_indices}
    wanted = ("o", "lse") if return_lse else ("o",)
    written = call("sparse_attention", reads, {"o": o, "lse": lse}, wanted, batch)
    return _pick(written, "o", return_lse and "lse")


@_batch
def msa_attention(
    q: Array,
    k: Array = None,
    v: Array = None,
    index_q: Array = None,
    index_k: Array = None,
    *,
    o: Array = None,
    lse: Array = None,
    topk_indices: Array = None,
    return_lse: bool = False,
    return_indices: bool = False,
    **batch: Unpack[Batch],
) -> Array | tuple[Array, ...]:
    """The whole layer: `select_blocks`, then `sparse_attention` over what it chose.

    q             [total_q, num_heads_q, head_dim]
    k, v          [total_k, num_heads_kv, head_dim]
    index_q       [total_q, num_heads_kv, index_dim]
    index_k       [total_k, index_dim]
    returns       o like q; with return_lse also lse [total_q, num_heads_q]; with return_indices also topk_indices
                  [num_heads_kv, total_q, topk]

    Tensors of PyTorch that require a gradient get none here: `openmsa.torch.msa_attention` is for training.

    >>> import numpy as np, openmsa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((300, heads, 64), np.float32) for heads in (8, 2, 2))
    >>> index_q, index_k = rng.standard_normal((300, 2, 64), np.float32), rng.standard_normal((300, 64), np.float32)
    >>> o, indices = openmsa.msa_attention(q, k, v, index_q, index_k, block_size=64, topk=2, return_indices=True)
    >>> o.shape, indices[:, -1].tolist()
    ((300, 8, 64), [[2, 4], [0, 4]])
    >>> openmsa.msa_attention(q, k, v[:200], index_q, index_k)
    Traceback (most recent call last):
    ValueError: v: expected total_k = 300 as in k, got 200 from shape[0]
    """
    reads = {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}
    wanted = ("o", *["lse"] * return_lse, *["topk_indices"] * return_indices)
    written = call("msa_attention", reads, {"o": o, "lse": lse, "topk_indices": topk_indices}, wanted, batch)
    return _pick(written, "o", return_lse and "lse", return_indices and "topk_indices")


@_batch
def dense_attention(
    q: Array,
    k: Array = None,
    v: Array = None,
    *,
    o: Array = None,
    lse: Array = None,
    return_lse: bool = False,
    **batch: Unpack[Batch],
) -> Array | tuple[Array, Array]:
    """Dense causal attention with grouped heads: `sparse_attention` over all keys up to the query's position.

    q             [total_q, num_heads_q, head_dim]
    k, v          [total_k, num_heads_kv, head_dim]
    returns       o like q, and with return_lse lse [total_q, num_heads_q]

    >>> import numpy as np, openmsa
    >>> q = k = v = np.ones((3, 1, 8), np.float32)
    >>> openmsa.dense_attention(q, k, v)[:, 0, 0]
    array([1., 1., 1.], dtype=float32)
    """
    wanted = ("o", "lse") if return_lse else ("o",)
    written = call("dense_attention", {"q": q, "k": k, "v": v}, {"o": o, "lse": lse}, wanted, batch)
    return _pick(written, "o", return_lse and "lse")


@_batch
def sparse_attention_backward(
    d_o: Array,
    q: Array,
    k: Array,
    v: Array,
    topk_indices: Array,
    o: Array,
    lse: Array,
    *,
    d_lse: Array = None,
    d_q: Array = None,
    d_k: Array = None,
    d_v: Array = None,
    **batch: Unpack[Batch],
) -> tuple[Array, Array, Array]:
    """Gradient of `sparse_attention`; the selection has none, and a key that nobody chose gets exactly 0.

        p = exp(softmax_scale q.k - lse),  ds = p (d_o.v - d_o.o + d_lse)
        d_q = softmax_scale sum_j ds k,  d_k = softmax_scale sum_i ds q,  d_v = sum_i p d_o

    d_o, o        like q; lse [total_q, num_heads_q]; the others as of `sparse_attention`, contiguous keys only
    d_lse         like lse, the gradient into lse; None: 0
    returns       d_q, d_k, d_v

    >>> import numpy as np, openmsa
    >>> q = k = v = np.ones((2, 1, 8), np.float32)
    >>> indices = np.zeros((1, 2, 1), np.int32)
    >>> o, lse = openmsa.sparse_attention(q, k, v, indices, block_size=8, return_lse=True)
    >>> d_q, d_k, d_v = openmsa.sparse_attention_backward(np.ones_like(o), q, k, v, indices, o, lse, block_size=8)
    >>> d_v[:, 0, 0]
    array([1.5, 0.5], dtype=float32)
    """
    reads = {"q": q, "k": k, "v": v, "topk_indices": topk_indices, "o": o, "lse": lse, "d_o": d_o, "d_lse": d_lse}
    return _attention_gradients("sparse_attention_backward", reads, (d_q, d_k, d_v), batch)


@_batch
def dense_attention_backward(
    d_o: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    *,
    d_lse: Array = None,
    d_q: Array = None,
    d_k: Array = None,
    d_v: Array = None,
    **batch: Unpack[Batch],
) -> tuple[Array, Array, Array]:
    """Gradient of `dense_attention`, as `sparse_attention_backward` without topk_indices.

    >>> import numpy as np, openmsa
    >>> q = k = v = np.ones((2, 1, 8), np.float32)
    >>> o, lse = openmsa.dense_attention(q, k, v, return_lse=True)
    >>> openmsa.dense_attention_backward(np.ones_like(o), q, k, v, o, lse)[2][:, 0, 0]
    array([1.5, 0.5], dtype=float32)
    """
    reads = {"q": q, "k": k, "v": v, "o": o, "lse": lse, "d_o": d_o, "d_lse": d_lse}
    return _attention_gradients("dense_attention_backward", reads, (d_q, d_k, d_v), batch)


@_batch
def kl_loss(
    q: Array,
    k: Array,
    lse: Array,
    index_q: Array,
    index_k: Array,
    topk_indices: Array = None,
    *,
    kl_weights: Array = None,
    kl_loss: Array = None,
    d_index_q: Array = None,
    d_index_k: Array = None,
    return_gradients: bool = False,
    **batch: Unpack[Batch],
) -> Array | tuple[Array, Array, Array]:
    """The loss that trains the index branch: KL(P || P_idx), averaged over queries and KV heads, or a weighted sum.

        P_idx = softmax over T of index_q.index_k / sqrt(index_dim),  P = mean over the group's heads of exp(q.k scale - lse)
        kl_loss = sum over queries i and KV heads r of kl_weights[i] KL(P || P_idx)

    q, k, index_q, index_k  as of `msa_attention`, contiguous keys only; nothing flows to q and k
    lse           [total_q, num_heads_q], of attention over the same T
    topk_indices  [num_heads_kv, total_q, topk]; None: T is every key up to the query's position (warmup)
    kl_weights    [total_q] fp32; None: 1 / (N num_heads_kv) for the N queries of all sequences. Parts of a batch with the
                  weights of the whole add up to it; queries of weight 0 give exactly nothing, even where they are NaN
    returns       kl_loss [1] fp32, and with return_gradients d_index_q, d_index_k like index_q, index_k

    >>> import numpy as np, openmsa
    >>> q, k, index_q = (np.ones((4, 1, 8), np.float32) for _ in range(3))
    >>> _, lse = openmsa.dense_attention(q, k, k, return_lse=True)
    >>> openmsa.kl_loss(q, k, lse, index_q, np.ones((4, 8), np.float32)).round(5) + 0
    array([0.], dtype=float32)
    >>> index_k = np.diag(np.arange(8, dtype=np.float32))[:4]
    >>> weights = np.array([0, 0, 1, 1], np.float32)  # the sum over the last two queries
    >>> openmsa.kl_loss(q, k, lse, index_q, index_k, kl_weights=weights).round(4)
    array([0.118], dtype=float32)
    """
    reads = {"q": q, "k": k, "lse": lse, "index_q": index_q, "index_k": index_k, "topk_indices": topk_indices}
    reads["kl_weights"] = kl_weights
    names = ("kl_loss", "d_index_q", "d_index_k")
    wanted = names if return_gradients else names[:1]
    written = call("kl_loss", reads, dict(zip(names, (kl_loss, d_index_q, d_index_k))), wanted, batch)
    return _pick(written, *wanted)


@_batch
def msa_attention_backward(
    d_o: Array,
    q: Array,
    k: Array,
    v: Array,
    index_q: Array,
    index_k: Array,
    topk_indices: Array,
    o: Array,
    lse: Array,
    *,
    d_lse: Array = None,
    kl_weights: Array = None,
    d_q: Array = None,
    d_k: Array = None,
    d_v: Array = None,
    kl_loss: Array = None,
    d_index_q: Array = None,
    d_index_k: Array = None,
    **batch: Unpack[Batch],
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The gradient of a training step's sparse layer in one call: `sparse_attention_backward`, and `kl_loss` with its
    gradients over the same topk_indices. Where both are needed a GPU computes the probabilities that they share once.

        d_q, d_k, d_v                  of attention alone: nothing flows to the teacher of the KL loss
        kl_loss, d_index_q, d_index_k  of the KL loss with weight 1

    d_o, o        like q; lse [total_q, num_heads_q]; the others as of `msa_attention`, contiguous keys only
    topk_indices  [num_heads_kv, total_q, topk] int32, the selection of the forward pass
    d_lse         like lse, the gradient into lse; None: 0
    kl_weights    [total_q] fp32 as of `kl_loss`; None: the mean. They do not reach d_q, d_k and d_v
    returns       d_q, d_k, d_v, kl_loss [1] fp32, d_index_q, d_index_k

    >>> import numpy as np, openmsa
    >>> q = k = v = index_q = np.ones((2, 1, 8), np.float32)
    >>> layer = (q, k, v, index_q, np.diag(np.arange(8, dtype=np.float32))[:2])
    >>> o, lse, indices = openmsa.msa_attention(*layer, block_size=8, topk=1, return_lse=True, return_indices=True)
    >>> gradients = openmsa.msa_attention_backward(np.ones_like(o), *layer, indices, o, lse, block_size=8)
    >>> d_q, d_k, d_v, kl_loss, d_index_q, d_index_k = gradients
    >>> d_v[:, 0, 0], kl_loss.round(4)
    (array([1.5, 0.5], dtype=float32), array([0.0078], dtype=float32))
    """
    reads = {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k, "topk_indices": topk_indices}
    reads |= {"o": o, "lse": lse, "d_o": d_o, "d_lse": d_lse, "kl_weights": kl_weights}
    names = ("d_q", "d_k", "d_v", "kl_loss", "d_index_q", "d_index_k")
    given = dict(zip(names, (d_q, d_k, d_v, kl_loss, d_index_q, d_index_k)))
    return _pick(call("msa_attention_backward", reads, given, names, batch), *names)


@_batch
def block_recall(
    q: Array,
    k: Array,
    topk_indices: Array,
    *,
    block_recall: Array = None,
    score_recall: Array = None,
    **batch: Unpack[Batch],
) -> tuple[Array, Array]:
    """How well a selection does beside dense attention: the share of the kv_blocks of highest attention mass that it has,
    and the share of attention mass that falls into it.

    q             [total_q, num_heads_q, head_dim]
    k             [total_k, num_heads_kv, head_dim], contiguous only
    topk_indices  [num_heads_kv, total_q, topk] int32
    returns       block_recall, score_recall [num_heads_kv, total_q] fp32, 0 to 1

    >>> import numpy as np, openmsa
    >>> q, k = np.zeros((16, 1, 8), np.float32), np.zeros((16, 1, 8), np.float32)
    >>> indices = np.zeros((1, 16, 1), np.int32)
    >>> block, score = openmsa.block_recall(q, k, indices, block_size=8)
    >>> block[0, -1], score[0, -1]
    (np.float32(1.0), np.float32(0.5))
    """
    reads = {"q": q, "k": k, "topk_indices": topk_indices}
    names = ("block_recall", "score_recall")
    written = call("block_recall", reads, dict(zip(names, (block_recall, score_recall))), names, batch)
    return _pick(written, *names)


@_shard_options
def append_kv(
    k: Array = None,
    v: Array = None,
    index_k: Array = None,
    *,
    k_cache: Array = None,
    v_cache: Array = None,
    index_k_cache: Array = None,
    seqlens_k: Array,
    block_table: Array,
    k_scale: Array = None,
    v_scale: Array = None,
    index_k_scale: Array = None,
    **batch: Unpack[ShardOptions],
) -> None:
    """Stores new tokens in paged caches, in place: the last seqlen_q[b] of the seqlens_k[b] tokens of each sequence.

    k, v          [total new tokens, num_heads_kv, head_dim], divided by cu_seqlens_q, together with k_cache and v_cache or
                  not at all
    index_k       [total new tokens, index_dim], together with index_k_cache or not at all
    seqlens_k     [batch] int32 lengths with the new tokens; a sequence of length 0 is padding
    k_scale, v_scale, index_k_scale  of fp8 caches: [1] is read; those of tokens are written

    With a shard_count, tokens of other shards are not stored.

    >>> import numpy as np, openmsa
    >>> k = np.full((1, 1, 8), 7, np.float32)
    >>> cache = np.zeros((2, 8, 1, 8), np.float32)
    >>> table, length = np.array([[1, 0]], np.int32), np.array([9], np.int32)
    >>> openmsa.append_kv(k, k, k_cache=cache, v_cache=cache.copy(), seqlens_k=length, block_table=table, block_size=8)
    >>> np.argwhere(cache[:, :, 0, 0])
    array([[0, 0]])
    """
    reads = {"k": k, "v": v, "index_k": index_k, "seqlens_k": seqlens_k, "block_table": block_table}
    writes = {"k_cache": k_cache, "v_cache": v_cache, "index_k_cache": index_k_cache}
    scales = {"k_scale": k_scale, "v_scale": v_scale, "index_k_scale": index_k_scale}
    for name, scale in scales.items():  # one number is read, one per token is written
        if scale is not None:
            (reads if tuple(scale.shape) == (1,) else writes)[name] = scale
    call("append_kv", reads, writes, (), batch)


@_shard_batch
def select_candidates(
    index_q: Array, index_k: Array = None, *, candidates: Array = None, **batch: Unpack[ShardBatch]
) -> Array:
    """The best kv_blocks of a shard with their scores, for `merge_candidates`. Those that `select_blocks` takes in any case
    (num_init_blocks, num_local_blocks) are left out.

        candidate = key 2^32 + (2^32 - 1 - kv_block), key: the score's fp32 bits as an integer that orders scores

    index_q       [total_q, num_heads_kv, index_dim]
    index_k       [total_k, index_dim] without shards; in shards keys lie in index_k_cache
    returns       candidates [num_heads_kv, total_q, topk] int64, descending, then -2^63

    >>> import numpy as np, openmsa
    >>> index_q = np.ones((1, 1, 8), np.float32)
    >>> index_k_cache = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 8, 8), np.float32)
    >>> keys = {"index_k_cache": index_k_cache, "seqlens_k": np.array([41], np.int32)}  # 6 kv_blocks, the last one local
    >>> table = np.array([[0, 1, 2]], np.int32)  # of shard 1: its kv_blocks 1, 3 and 5
    >>> found = openmsa.select_candidates(
    ...     index_q, **keys, block_table=table, shard_count=2, shard_rank=1, block_size=8, topk=4
    ... )
    >>> (2**32 - 1 - found % 2**32)[found != -(2**63)]  # the kv_blocks, best first
    array([3, 1])
    """
    reads = {"index_q": index_q, "index_k": index_k}
    return call("select_candidates", reads, {"candidates": candidates}, ("candidates",), batch)["candidates"]


@_shard_options
def merge_candidates(
    all_candidates: Array, seqlens_k: Array, *, topk_indices: Array = None, **batch: Unpack[ShardOptions]
) -> Array:
    """The selection of whole sequences from the candidates of all shards: bit by bit that of `select_blocks`.

    all_candidates  [shard_count, num_heads_kv, total_q, topk] int64: slice s is what `select_candidates` gave with
                  shard_rank = s
    seqlens_k     [batch] int32 keys of each whole sequence
    returns       topk_indices [num_heads_kv, total_q, topk] int32, ascending, then -1

    >>> import numpy as np, openmsa
    >>> candidate = lambda score, kv_block: score * 2**32 + (2**32 - 1 - kv_block)
    >>> none = -(2**63)
    >>> shards = np.array([[candidate(5, 2), candidate(1, 0)], [candidate(7, 3), none]])[:, None, None]
    >>> openmsa.merge_candidates(shards, np.array([40], np.int32), block_size=8)  # of 5 kv_blocks, the last one local
    array([[[3, 4]]], dtype=int32)
    """
    reads = {"all_candidates": all_candidates, "seqlens_k": seqlens_k}
    return call("merge_candidates", reads, {"topk_indices": topk_indices}, ("topk_indices",), batch)["topk_indices"]


@_shard_options
def merge_partials(
    partial_o: Array,
    partial_lse: Array,
    *,
    o: Array = None,
    lse: Array = None,
    return_lse: bool = False,
    **batch: Unpack[ShardOptions],
) -> Array | tuple[Array, Array]:
    """Attention from its parts over different keys, as `sparse_attention` gives them on each shard.

        lse[i,h] = log sum_s exp(partial_lse[s,i,h])
        o[i,h]   = sum_s exp(partial_lse[s,i,h] - lse[i,h]) partial_o[s,i,h]

    partial_o     [shard_count, total_q, num_heads_q, head_dim], fp32 or the layer's dtype
    partial_lse   [shard_count, total_q, num_heads_q] fp32. A part with -inf gives nothing, whatever its o
    returns       o [total_q, num_heads_q, head_dim] in the dtype of partial_o (o=... for another), and with return_lse lse

    >>> import numpy as np, openmsa
    >>> partial_o = np.array([1, 5], np.float32)[:, None, None, None] * np.ones((2, 1, 1, 8), np.float32)
    >>> partial_lse = np.log(np.array([3, 1], np.float32))[:, None, None]
    >>> o, lse = openmsa.merge_partials(partial_o, partial_lse, return_lse=True)
    >>> o[0, 0, :2].round(4), lse.round(4)
    (array([2., 2.], dtype=float32), array([[1.3863]], dtype=float32))
    """
    reads = {"partial_o": partial_o, "partial_lse": partial_lse}
    wanted = ("o", "lse") if return_lse else ("o",)
    written = call("merge_partials", reads, {"o": o, "lse": lse}, wanted, batch)
    return _pick(written, "o", return_lse and "lse")
