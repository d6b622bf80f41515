"""Layers of random numbers, the same layer in pages, and how far from the float64 reference a result may be."""

import ml_dtypes
import numpy as np
import openmsa

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
TOLERANCE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}


def random_layer(seqlens_q, seqlens_k, *, heads_q=4, heads_kv=2, dim=64, index_dim=64, dtype="float32", seed=0):
    """Inputs of one layer over a ragged batch, as keyword arguments."""
    rng = np.random.default_rng(seed)
    total_q, total_k = sum(seqlens_q), sum(seqlens_k)
    shapes = {
        "q": (total_q, heads_q, dim),
        "k": (total_k, heads_kv, dim),
        "v": (total_k, heads_kv, dim),
        "index_q": (total_q, heads_kv, index_dim),
        "index_k": (total_k, index_dim),
    }
    layer = {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    return layer | {"cu_seqlens_q": prefix_sums(seqlens_q), "cu_seqlens_k": prefix_sums(seqlens_k)}


def prefix_sums(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def pick(layer, *names, **more):
    return {name: layer[name] for name in names} | more


def paged(layer, page_size, *, seed=1):
    """The same layer with its keys in pages of any order, and NaN wherever no token lies."""
    bounds = layer["cu_seqlens_k"]
    lengths = np.diff(bounds)
    pages_of = [-(-int(length) // page_size) for length in lengths]
    order = np.random.default_rng(seed).permutation(sum(pages_of) + 3).astype(np.int32)
    table = np.full((len(lengths), max(max(pages_of), 1)), -1, np.int32)
    result = pick(layer, "q", "index_q", "cu_seqlens_q", seqlens_k=lengths.astype(np.int32), block_table=table)
    for name in ("k", "v", "index_k"):
        shape = (len(order), page_size, *layer[name].shape[1:])
        result[f"{name}_cache"] = np.full(shape, np.nan, layer[name].dtype)
    used = 0
    for b, (begin, length) in enumerate(zip(bounds, lengths)):
        table[b, : pages_of[b]] = order[used : used + pages_of[b]]
        used += pages_of[b]
        for token in range(length):
            page, entry = table[b, token // page_size], token % page_size
            for name in ("k", "v", "index_k"):
                result[f"{name}_cache"][page, entry] = layer[name][begin + token]
    return result


def in_float64(arrays):
    """The same numbers for the reference backend."""
    return {name: a.astype(np.float64) if a.dtype != np.int32 else a for name, a in arrays.items()}


def reference(function, arrays, **options):
    return getattr(openmsa, function)(**in_float64(arrays), backend="reference", **options)


def error(result, expected):
    """||result - expected|| / ||expected||; infinities must lie at the same places."""
    result, expected = np.asarray(result).astype(np.float64), np.asarray(expected).astype(np.float64)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(expected))
    finite = np.isfinite(expected)
    norm = np.linalg.norm(expected[finite])
    return np.linalg.norm(result[finite] - expected[finite]) / max(norm, 1e-30)
