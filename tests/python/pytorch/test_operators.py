"""torch.ops.openmsa: registered as PyTorch wants it, the same numbers as the functions, traced without graph breaks."""

import openmsa
import openmsa.torch
import pytest
import torch
from layers import OPTIONS, torch_layer
from support import pick

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
KEYS = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")
INDEX = ("index_q", "index_k", "cu_seqlens_q", "cu_seqlens_k")


@pytest.fixture
def layer(device):
    return torch_layer([130, 1], [130, 200], device=device, dtype=DTYPE[device])


@pytest.fixture
def paged_layer(device):
    return torch_layer([3, 1], [130, 200], device=device, dtype=DTYPE[device], pages=64)


def chosen(layer):
    return openmsa.torch.select_blocks(**pick(layer, *INDEX), **OPTIONS)


def attended(layer):
    keys = pick(layer, *KEYS, topk_indices=chosen(layer))
    o, lse = openmsa.torch.sparse_attention(**keys, **OPTIONS, return_lse=True)
    return keys | {"o": o, "lse": lse}


def calls_of_shards(layer, cache):
    keys = pick(cache, "seqlens_k", "block_table", "cu_seqlens_q", shard_count=2, shard_rank=1)
    index = pick(cache, "index_q", "index_k_cache", **keys, **OPTIONS)
    yield "select_candidates", index
    candidates = torch.stack([openmsa.torch.select_candidates(**index | {"shard_rank": rank}) for rank in (0, 1)])
    lengths = pick(cache, "seqlens_k", "cu_seqlens_q")
    yield "merge_candidates", {"all_candidates": candidates, **lengths, "block_size": 64}
    o, lse = torch.randn(2, 5, 4, 64), torch.randn(2, 5, 4)
    yield "merge_partials", {"partial_o": o, "partial_lse": lse}
    new = torch_layer([1, 1], [1, 1], device="cpu", dtype=layer["q"].dtype)
    where = pick(cache, "index_k_cache", "seqlens_k", "block_table", block_size=64, shard_count=2, shard_rank=1)
    yield "append_kv", pick(new, "index_k", "cu_seqlens_q", **where)


def calls(layer, cache):
    """Arguments of every operator."""
    yield "block_scores", pick(layer, *INDEX, block_size=64)
    yield "select_blocks", pick(layer, *INDEX, **OPTIONS)
    yield (
        "select_blocks",
        pick(cache, "index_q", "index_k_cache", "seqlens_k", "block_table", "cu_seqlens_q", **OPTIONS),
    )
    lengths = layer["cu_seqlens_k"].diff()
    scores = openmsa.torch.block_scores(**pick(layer, *INDEX), block_size=64)
    yield "topk", {"block_scores": scores, "seqlens_k": lengths, "cu_seqlens_q": layer["cu_seqlens_q"], **OPTIONS}
    yield "msa_attention", layer | OPTIONS
    yield "msa_attention", cache | OPTIONS
    yield "sparse_attention", pick(layer, *KEYS, topk_indices=chosen(layer), **OPTIONS)
    new = torch_layer([1, 1], [1, 1], device=layer["q"].device, dtype=layer["q"].dtype)
    where = pick(cache, "k_cache", "v_cache", "index_k_cache", "seqlens_k", "block_table")
    yield "append_kv", pick(new, "k", "v", "index_k", "cu_seqlens_q", **where, block_size=64)
    if layer["q"].device.type == "cpu":
        yield from calls_of_shards(layer, cache)
    forward = attended(layer)
    yield "dense_attention", pick(layer, *KEYS)
    yield "block_recall", {name: value for name, value in forward.items() if name not in ("v", "o", "lse")} | OPTIONS
    d_o = torch.randn_like(forward["o"])
    yield "sparse_attention_backward", forward | {"d_o": d_o} | OPTIONS
    yield "sparse_attention_backward", forward | {"d_o": d_o, "d_lse": torch.randn_like(forward["lse"])} | OPTIONS
    o, lse = openmsa.torch.dense_attention(**pick(layer, *KEYS), return_lse=True)
    yield "dense_attention_backward", pick(layer, *KEYS, o=o, lse=lse, d_o=d_o)
    yield "dense_attention_backward", pick(layer, *KEYS, o=o, lse=lse, d_o=d_o, d_lse=torch.randn_like(lse))
    teacher = {name: value for name, value in forward.items() if name not in ("v", "o")}
    yield "kl_loss", teacher | pick(layer, "index_q", "index_k") | OPTIONS
    weights = torch.rand(len(layer["q"]), device=layer["q"].device)
    yield "kl_loss", teacher | pick(layer, "index_q", "index_k", kl_weights=weights) | OPTIONS
    both = forward | pick(layer, "index_q", "index_k") | {"d_o": d_o} | OPTIONS
    yield "msa_attention_backward", both
    yield "msa_attention_backward", both | {"d_lse": torch.randn_like(forward["lse"]), "kl_weights": weights}


DIFFERENTIABLE = {"sparse_attention": "qkv", "dense_attention": "qkv", "kl_loss": ("index_q", "index_k")}


def test_opcheck(layer, paged_layer):
    for name, arguments in calls(layer, paged_layer):
        arguments = {
            key: value.detach().requires_grad_() if key in DIFFERENTIABLE.get(name, ()) else value
            for key, value in arguments.items()
        }
        operator = getattr(torch.ops.openmsa, name).default
        names = [argument.name for argument in operator._schema.arguments]
        torch.library.opcheck(operator, tuple(arguments.get(key) for key in names))


def test_operators_do_what_the_functions_do(layer, paged_layer):
    for name, arguments in calls(layer, paged_layer):
        if name == "append_kv":
            continue
        result = getattr(torch.ops.openmsa, name)(**arguments)
        first = result if isinstance(result, torch.Tensor) else result[0]
        expected = getattr(openmsa, name)(**arguments)
        expected = expected if isinstance(expected, torch.Tensor) else expected[0]
        assert torch.equal(first, expected), name


@pytest.mark.parametrize("rounding", ["scaled", "cast", "exact"])
def test_rules_of_index_queries_beside_fp8_keys(rounding):
    """opcheck cannot compare tensors in fp8. With gradients asked for the layer is two calls, of which one selects."""
    layer = torch_layer([130, 1], [130, 200], device="cpu", dtype=torch.float32)
    layer["index_k"] = layer["index_k"].to(torch.float8_e4m3fn)
    options = OPTIONS | {"index_q_rounding": rounding}
    expected, indices = openmsa.msa_attention(**layer, **options, return_indices=True)
    queries = [layer["index_q"]]
    if rounding == "cast":
        queries.append(layer["index_q"].to(torch.float8_e4m3fn))
    step = torch.compile(openmsa.torch.msa_attention, fullgraph=True, backend="aot_eager")
    for index_q in queries:
        assert torch.equal(openmsa.select_blocks(index_q, **pick(layer, *INDEX[1:]), **options), indices)
        assert torch.equal(openmsa.torch.msa_attention(**layer | {"index_q": index_q}, **options), expected)
        with torch.no_grad():
            assert torch.equal(step(**layer | {"index_q": index_q}, **options), expected)


def test_compiled_without_graph_breaks(layer):
    def step(layer):
        o, indices = openmsa.torch.msa_attention(**layer, **OPTIONS, return_indices=True)
        return o * 2, indices + 1

    with torch.no_grad():
        results = torch.compile(step, fullgraph=True, backend="aot_eager")(layer)
        for result, expected in zip(results, step(layer)):
            assert torch.equal(result, expected)


def test_compiled_step_with_append(paged_layer):
    """The mutation of the caches is seen by what follows."""
    device, dtype = paged_layer["q"].device, paged_layer["q"].dtype
    new = torch_layer([1, 1], [1, 1], device=device, dtype=dtype)
    where = ("k_cache", "v_cache", "index_k_cache", "seqlens_k", "block_table")

    def step(cache, q, index_q):
        tensors = pick(cache, *where, cu_seqlens_q=new["cu_seqlens_q"])
        openmsa.torch.append_kv(**pick(new, "k", "v", "index_k"), **tensors, block_size=64)
        return openmsa.torch.msa_attention(q, index_q=index_q, **tensors, **OPTIONS)

    copies = [{name: paged_layer[name].clone() for name in where} for _ in range(2)]
    with torch.no_grad():
        expected = step(copies[0], new["q"], new["index_q"])
        result = torch.compile(step, fullgraph=True, backend="aot_eager")(copies[1], new["q"], new["index_q"])
    assert torch.equal(result, expected)
    assert torch.equal(copies[0]["k_cache"].nan_to_num(), copies[1]["k_cache"].nan_to_num())
    assert not torch.equal(copies[0]["k_cache"].nan_to_num(), paged_layer["k_cache"].nan_to_num())


AUTOCAST = {"cpu": [torch.bfloat16, torch.float16], "cuda": [torch.bfloat16, torch.float16]}


@pytest.mark.parametrize("which", [0, 1])
def test_autocast_casts_what_is_mixed(layer, paged_layer, device, which):
    """As for PyTorch's own attention: whatever mixture of dtypes comes, the layer runs in autocast's."""
    dtype = AUTOCAST[device][which]
    cast = lambda arguments, dtypes: {  # noqa: E731
        name: value.to(dtypes.get(name, dtypes[None])) if name in dtypes or is_half(name, value) else value
        for name, value in arguments.items()
    }
    is_half = lambda name, value: isinstance(value, torch.Tensor) and name in ("q", "k", "v", "index_q", "index_k")  # noqa: E731
    for name, arguments in calls(layer, paged_layer):
        if "k_cache" in arguments or "index_k_cache" in arguments or name.endswith("_backward") or name == "topk":
            continue
        one = cast(arguments, {None: dtype})
        expected = getattr(torch.ops.openmsa, name)(**one)
        with torch.autocast(device, dtype):
            mixed = cast(one, {"q": torch.float32, "index_k": torch.float32, None: dtype})
            result = getattr(torch.ops.openmsa, name)(**mixed)
        for ours, theirs in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (result, expected))):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


def test_autocast_leaves_caches_as_they_are(device):
    """Queries and new keys take the dtype of the cache."""
    paged_layer = torch_layer([3, 1], [130, 200], device=device, dtype=torch.bfloat16, pages=64)
    expected = openmsa.torch.msa_attention(**paged_layer, **OPTIONS)
    mixed = paged_layer | {name: paged_layer[name].float() for name in ("q", "index_q")}
    new = torch_layer([1, 1], [1, 1], device=device)
    where = pick(paged_layer, "k_cache", "v_cache", "index_k_cache", "seqlens_k", "block_table")
    with torch.autocast(device, torch.float16), torch.no_grad():
        assert torch.equal(openmsa.torch.msa_attention(**mixed, **OPTIONS), expected)
        openmsa.torch.append_kv(**pick(new, "k", "v", "index_k", "cu_seqlens_q"), **where, block_size=64)
    page = where["block_table"][1, 199 // 64]
    assert torch.equal(where["k_cache"][page, 199 % 64], new["k"][1].bfloat16())


def test_double_precision_stays(device):
    """Autocast leaves fp64 alone, everywhere in PyTorch."""
    if device == "cuda":
        pytest.skip("the reference is on the CPU")
    layer = torch_layer([20], [20], dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        o = openmsa.torch.msa_attention(**layer, block_size=8, topk=2, backend="reference")
    assert o.dtype == torch.float64


def test_typos_and_foreign_arguments_are_named():
    layer = torch_layer([20], [20])
    for more, kind, message in (
        ({"blocksize": 32}, TypeError, "msa_attention: unexpected argument blocksize$"),
        (
            {"plan": None},
            TypeError,
            "unexpected argument plan; operators plan and allocate for themselves, openmsa.msa",
        ),
        ({"o": layer["q"]}, TypeError, "unexpected argument o; operators"),
        ({"k": layer["k"].numpy()}, TypeError, "k: expected a torch.Tensor, got ndarray$"),
        ({"cu_seqlens_q": [0, 20]}, TypeError, "cu_seqlens_q: expected a torch.Tensor, got list"),
        ({"cu_seqlens_q": torch.tensor([0, 20])}, TypeError, "cu_seqlens_q: expected dtype int32, got int64"),
        ({"k": None, "return_kl": True}, ValueError, "k: expected contiguous keys for kl_loss, got a cache"),
    ):
        with pytest.raises(kind, match=message):
            openmsa.torch.msa_attention(**layer | OPTIONS | more)
    with pytest.raises(TypeError, match="select_blocks: unexpected argument blocksize"):
        openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], blocksize=32)
    with pytest.raises(ValueError, match="reduction: expected mean or sum, got none"):
        openmsa.torch.kl_loss(
            layer["q"], layer["k"], layer["q"][..., 0], layer["index_q"], layer["index_k"], reduction="none"
        )


def test_exported_with_a_dynamic_length(layer):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, index_q, index_k):
            with torch.no_grad():
                return openmsa.torch.msa_attention(q, k, v, index_q, index_k, **OPTIONS)

    names = ("q", "k", "v", "index_q", "index_k")
    single = [layer[name][:130] for name in names]
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(Layer(), tuple(single), dynamic_shapes=tuple({0: tokens} for _ in names))
    shorter = [tensor[:77] for tensor in single]
    assert torch.equal(program.module()(*shorter), Layer()(*shorter))


def test_on_other_streams(layer):
    if not layer["q"].is_cuda:
        pytest.skip("streams are the GPU's")
    expected = openmsa.torch.sparse_attention(**pick(layer, *KEYS), topk_indices=chosen(layer), **OPTIONS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        q = layer["q"] * 1  # written on this stream, after the sleep
        result = openmsa.sparse_attention(
            q, *(layer[n] for n in ("k", "v")), chosen(layer), **pick(layer, "cu_seqlens_q", "cu_seqlens_k"), **OPTIONS
        )
        assert not stream.query(), "the call did not wait"
    stream.synchronize()
    assert torch.equal(result, expected)


def test_attention_in_shards_is_that_of_the_functions():
    cache = torch_layer([3, 1], [130, 200], device="cpu", dtype=torch.float32, pages=64)
    lengths = pick(cache, "seqlens_k", "cu_seqlens_q")
    table, parts = cache.pop("block_table"), []
    whole_index = pick(cache, "index_q", "index_k_cache", **lengths, **OPTIONS)
    indices = openmsa.torch.select_blocks(**whole_index, block_table=table)
    for rank in (0, 1):
        keys = {
            "block_table": table[:, rank::2].contiguous(),
            **lengths,
            "shard_count": 2,
            "shard_rank": rank,
            **OPTIONS,
        }
        arguments = pick(cache, "q", "k_cache", "v_cache", topk_indices=indices, **keys)
        parts.append(openmsa.torch.sparse_attention(**arguments, return_lse=True))
        for result, expected in zip(parts[-1], openmsa.sparse_attention(**arguments, return_lse=True)):
            assert torch.equal(result, expected)
    o, lse = (torch.stack(part) for part in zip(*parts))
    whole = openmsa.torch.sparse_attention(
        **pick(cache, "q", "k_cache", "v_cache"), topk_indices=indices, block_table=table, **lengths, **OPTIONS
    )
    torch.testing.assert_close(openmsa.torch.merge_partials(o, lse), whole, rtol=1e-5, atol=1e-5)


def test_one_shard_has_gradients(device):
    layer = torch_layer([130], [130], device=device, dtype=DTYPE[device])
    q = layer["q"].requires_grad_()
    indices = openmsa.torch.select_blocks(**pick(layer, *INDEX), **OPTIONS)
    keys = pick(layer, *KEYS, topk_indices=indices)
    openmsa.torch.sparse_attention(**keys, **OPTIONS, shard_count=1).sum().backward()
    assert q.grad.abs().sum() > 0
