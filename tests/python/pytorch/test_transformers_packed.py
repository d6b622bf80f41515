"""Documents packed into one row of a model of transformers: the logits of each are those that it has alone."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.17", reason="transformers 5.17 is not installed")

from small_m3 import decoder, error, tokens  # noqa: E402
from transformers import StaticCache  # noqa: E402

LENGTHS = (120, 1, 79)
TOTAL = sum(LENGTHS)
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]
CU_SEQ_LENS = torch.tensor([0, 120, 121, 200], dtype=torch.int32)
FLATTENED = {"cu_seq_lens_q": CU_SEQ_LENS, "cu_seq_lens_k": CU_SEQ_LENS, "max_length_q": 120, "max_length_k": 120}
NUMBERED = torch.repeat_interleave(torch.arange(1, 4), torch.tensor(LENGTHS))[None]
WAYS = {
    "positions": {"position_ids": POSITIONS},
    "positions, no cache": {"position_ids": POSITIONS, "use_cache": False},
    "positions, mask of ones": {"position_ids": POSITIONS, "attention_mask": torch.ones(1, TOTAL).long()},
    "positions, numbered documents": {"position_ids": POSITIONS, "attention_mask": NUMBERED},
    "prefix sums": FLATTENED,
    "prefix sums, no cache": {**FLATTENED, "use_cache": False},
    "both": {**FLATTENED, "position_ids": POSITIONS, "use_cache": False},
}


@pytest.fixture(scope="module")
def model():
    return decoder(experts=True)


@pytest.fixture(scope="module")
def ids():
    return tokens(1, TOTAL)


def alone(model, ids):
    return torch.cat([model(document).logits for document in ids.split(LENGTHS, 1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_each_document_as_alone(model, ids, way):
    expected = alone(model, ids)
    assert error(model(ids).logits, expected) > 0.1, "packing matters"
    assert error(model(ids, **WAYS[way]).logits, expected) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_last_document_goes_on(model, ids, cache):
    """Later steps on the cache see the last document alone."""
    past = StaticCache(config=model.config, max_cache_len=256) if cache == "static" else None
    past = model(ids, position_ids=POSITIONS, past_key_values=past, use_cache=True).past_key_values
    new = tokens(1, 4, seed=1)
    first = model(new[:, :1], position_ids=torch.tensor([[79]]), past_key_values=past).logits
    rest = model(new[:, 1:], position_ids=torch.tensor([[80, 81, 82]]), past_key_values=past).logits
    expected = model(torch.cat([ids[:, 121:], new], 1)).logits[:, -4:]
    assert error(torch.cat([first, rest], 1), expected) <= 1e-5


@torch.no_grad()
def test_rows_of_a_batch_are_packed_in_their_own_ways(model, ids):
    other = tokens(1, TOTAL, seed=2)
    positions = torch.cat([POSITIONS, torch.arange(TOTAL)[None]])
    logits = model(torch.cat([ids, other]), position_ids=positions).logits
    assert error(logits[:1], alone(model, ids)) <= 1e-5
    assert error(logits[1:], model(other).logits) <= 1e-5


@torch.no_grad()
def test_packed_behind_padding(model, ids):
    """Padding in front, between documents, and behind."""
    padded = torch.cat(
        [ids[:, :0].new_zeros(1, 7), ids[:, :120], ids.new_zeros(1, 5), ids[:, 120:], ids.new_zeros(1, 3)], 1
    )
    counts = padded.ne(0).long()
    positions = torch.zeros_like(padded).masked_scatter(counts.bool(), POSITIONS)
    logits = model(padded, attention_mask=counts, position_ids=positions).logits[counts.bool()]
    assert error(logits, alone(model, ids)[0]) <= 1e-5


def gradients(model, call, labels, **options):
    model.zero_grad()
    call(labels, labels=labels, **options).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("collator_options", [{}, {"return_flash_attn_kwargs": True}])
def test_trained_by_the_flattening_collator(ids, collator_options):
    from transformers import DataCollatorWithFlattening

    model = decoder()
    documents = [{"input_ids": document[0].tolist()} for document in ids.split(LENGTHS, 1) if document.shape[1] > 1]
    batch = DataCollatorWithFlattening(**collator_options)(documents)
    model.zero_grad()
    model(**batch).loss.backward()
    packed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for document in documents:
        row = torch.tensor([document["input_ids"]])
        (model(row, labels=row).loss * (row.shape[1] - 1) / (TOTAL - 1 - len(documents))).backward()
    apart = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(packed, apart):
        assert error(one, other) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("way", ["positions, no cache", "positions, mask of ones", "prefix sums, no cache"])
def test_compiled_in_one_graph(model, ids, way):
    torch._dynamo.reset()
    options = WAYS[way] | {"use_cache": False}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(compiled(ids, **options).logits, alone(model, ids)) <= 1e-5


def test_compiled_training_step(ids):
    torch._dynamo.reset()
    model = decoder()
    options = {"position_ids": POSITIONS, "use_cache": False}
    expected = gradients(model, model, ids, **options)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(gradients(model, compiled, ids, **options), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cu_seq_lens_q": CU_SEQ_LENS[:3]}, "cu_seq_lens_q: expected prefix sums up to 200, got 121"),
        ({"cu_seq_lens_k": CU_SEQ_LENS + 1}, "cu_seq_lens_q: expected prefix sums up to 200, got 201"),
    ],
)
def test_what_is_refused(model, ids, options, message):
    with pytest.raises(ValueError, match=message):
        model(ids, **options)
    with pytest.raises(ValueError, match="cu_seq_lens_q: expected a batch of one row, got 2"):
        model(torch.cat([ids, ids]), **FLATTENED)
    with pytest.raises(
        ValueError, match="attention_mask: expected none with padding beside cu_seq_lens_q, got 3 in front"
    ):
        model(ids, attention_mask=torch.arange(TOTAL).ge(3)[None].long(), **FLATTENED)
