"""Models of transformers in the surroundings that people put them in: autocast, checkpoints, Trainer, compiled and exported
whole, versions and layers that are not served, and the multimodal model."""

import sys

import openmsa
import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.17", reason="transformers 5.17 is not installed")

import openmsa.integrations.transformers as integration  # noqa: E402
from small_m3 import IMAGE_TOKEN, decoder, error, tokens, whole_models  # noqa: E402
from torch._dynamo.testing import CompileCounter  # noqa: E402
from transformers import StaticCache  # noqa: E402

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def model():
    return decoder(experts=True)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("use_cache", [False, True])
def test_autocast(dtype, checkpointing, use_cache):
    ids = tokens(2, 100)
    model = decoder().train()
    expected = model(ids, labels=ids).loss
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    with torch.autocast("cpu", dtype):
        loss = model(ids, labels=ids, use_cache=use_cache).loss
    loss.backward()
    assert abs(loss - expected) <= 2e-2 * expected
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("dtype", HALVES)
def test_generation_under_autocast(model, dtype):
    ids = tokens(2, 100)
    with torch.autocast("cpu", dtype):
        generated = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    assert generated.shape == (2, 103)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_trainer_in_bf16(tmp_path, checkpointing, compiled):
    pytest.importorskip("accelerate")
    torch._dynamo.reset()
    model = decoder()
    before = model.model.embed_tokens.weight.detach().clone()
    data = [{"input_ids": row, "labels": row} for row in tokens(4, 70)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, bf16=True, use_cpu=True, report_to=[],
        gradient_checkpointing=checkpointing, save_strategy="no", torch_compile=compiled,
        torch_compile_backend="aot_eager" if compiled else None,
    )  # fmt: skip
    result = transformers.Trainer(model, arguments, train_dataset=data).train()
    assert result.training_loss < 10
    assert not torch.equal(model.model.embed_tokens.weight, before)


def kl_gradients(model, ids, **inputs):
    """kl_loss, and the gradients of the parameters that it reaches."""
    model.zero_grad()
    model(ids, **inputs)
    kl = integration.kl_loss(model)
    kl.backward()
    return kl.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_kl_loss_trains_the_index_branch_alone():
    """Padding counts nothing: a batch of two rows is the weighted mean of its rows, each without padding."""
    model, ids = decoder().train(), tokens(2, 100)
    mask = torch.ones(2, 100).long()
    mask[1, 60:] = 0
    kl, gradients = kl_gradients(model, ids, attention_mask=mask, kl_weights=mask)
    assert gradients and all(".indexer." in name for name in gradients)
    alone = [kl_gradients(model, row[None], kl_weights=torch.ones(1, len(row))) for row in (ids[0], ids[1, :60])]
    torch.testing.assert_close(kl, (100 * alone[0][0] + 60 * alone[1][0]) / 160)
    for name, gradient in gradients.items():
        expected = (100 * alone[0][1][name] + 60 * alone[1][1][name]) / 160
        assert error(gradient, expected) <= 1e-4, name


def test_kl_loss_of_checkpointed_layers():
    model, ids = decoder().train(), tokens(2, 100)
    expected, exact = kl_gradients(model, ids, kl_weights=torch.ones(2, 100))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kl, gradients = kl_gradients(model, ids, kl_weights=torch.ones(2, 100))
    assert kl == expected and all(torch.equal(gradients[name], exact[name]) for name in exact)
    assert not any("kl_loss" in vars(layer) for layer in model.modules()), "nothing is kept after backward"
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.model.embed_tokens.weight.requires_grad_(True)
    model(ids, kl_weights=torch.ones(2, 100))
    with pytest.raises(ValueError, match="got one without; checkpoints: use_reentrant=False"):
        integration.kl_loss(model)
    model.gradient_checkpointing_disable()
    model(ids)
    with pytest.raises(
        ValueError, match=r"kl_weights: expected \[batch, length\], an argument of the model's last forward"
    ):
        integration.kl_loss(model)


def test_trainer_with_an_index_branch_that_learns(tmp_path):
    pytest.importorskip("accelerate")
    kl_losses = []

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            output = model(**inputs, kl_weights=torch.ones_like(inputs["input_ids"]))
            kl_losses.append(integration.kl_loss(model))
            loss = output.loss + kl_losses[-1]
            return (loss, output) if return_outputs else loss

    data = [{"input_ids": row, "labels": row} for row in tokens(2, 150)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=2, bf16=True, use_cpu=True, report_to=[],
        gradient_checkpointing=True, save_strategy="no", learning_rate=1e-2, disable_tqdm=True,
    )  # fmt: skip
    Trainer(decoder(), arguments, train_dataset=data).train()
    assert kl_losses[-1] < 0.8 * kl_losses[0]


WITH_AND_WITHOUT = [{}, {"attention_mask": torch.ones(2, 100).long()}]


@torch.no_grad()
@pytest.mark.parametrize("options", WITH_AND_WITHOUT)
@pytest.mark.parametrize("use_cache", [False, True])
def test_compiled_in_one_graph(model, options, use_cache):
    torch._dynamo.reset()
    ids = tokens(2, 100)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(compiled(ids, use_cache=use_cache, **options).logits, model(ids).logits) <= 1e-5


@torch.no_grad()
def test_compiled_with_padding_of_every_kind(model):
    """What a graph cannot look at it computes with: the logits of tokens that count are those without the graph."""
    torch._dynamo.reset()
    ids = tokens(4, 100)
    mask = torch.ones(4, 100).long()
    mask[0, :30] = mask[1, 60:] = mask[2, 20:40] = 0
    logits = torch.compile(model, backend="eager", fullgraph=True)(ids, attention_mask=mask, use_cache=False).logits
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    assert error(logits[mask.bool()], expected[mask.bool()]) <= 1e-5
    assert error(logits[0, 30:], model(ids[:1, 30:]).logits[0]) <= 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_step_without_a_cache(checkpointing):
    torch._dynamo.reset()
    ids = tokens(1, 100)
    model = decoder().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        call(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for expected, result in zip(*gradients):
        if expected is not None:  # the index branch has none; compiled, it may have zeros
            assert error(result, expected) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_static_cache_compiles_once(model, masked):
    """One graph for the first step and at most one more, for a mask that grows; none for the steps behind."""
    torch._dynamo.reset()
    counter = CompileCounter()
    ids = tokens(2, 106)
    cache = StaticCache(config=model.config, max_cache_len=160)
    model(ids[:, :100], past_key_values=cache)
    step = torch.compile(model.forward, backend=counter, fullgraph=True)
    for length in range(101, 107):
        options = {"attention_mask": torch.ones(2, length).long()} if masked else {}
        logits = step(ids[:, length - 1 : length], past_key_values=cache, **options).logits
        assert error(logits, model(ids[:, :length]).logits[:, -1:]) <= 1e-5
    assert counter.frame_count == 1 + masked


@torch.no_grad()
@pytest.mark.parametrize("side", [None, "left"])
def test_generation_with_its_own_compilation(model, side):
    """generate compiles the steps of a static cache by itself."""
    torch._dynamo.reset()
    ids = tokens(2, 90)
    mask = torch.ones_like(ids)
    if side:
        mask[1, :25] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask}
    config = transformers.CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled = model.generate(ids, cache_implementation="static", compile_config=config, **options)
    assert torch.equal(compiled, model.generate(ids, **options))


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", WITH_AND_WITHOUT)
def test_exported(strict, options):
    model = decoder()
    ids = tokens(2, 100)
    program = torch.export.export(model, (ids,), kwargs={"use_cache": False, **options}, strict=strict)
    result = program.module()(ids, use_cache=False, **options).logits
    assert error(result, model(ids, use_cache=False, **options).logits) <= 1e-6


@torch.no_grad()
def test_without_numbers():
    """Shapes alone: on the meta device, and for tools that estimate memory by fake tensors."""
    from torch._subclasses import FakeTensorMode

    model = decoder()
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.zeros(2, 100, dtype=torch.int64)
        assert model(ids, use_cache=False).logits.shape == (2, 100, 512)
    model, ids = model.to("meta"), tokens(2, 100).to("meta")
    assert model(ids).logits.shape == (2, 100, 512)
    assert model(ids, use_cache=False, attention_mask=torch.ones_like(ids)).logits.shape == (2, 100, 512)


@torch.no_grad()
def test_rollback_and_assistants(model):
    """A cache that is cropped, as assisted generation does, answers as one that never had the rest."""
    ids = tokens(1, 100)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=3), expected)
    assistant = decoder(seed=1)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, assistant_model=assistant), expected)


@torch.no_grad()
def test_images():
    """The whole model: vision tower, projector, and image tokens in the text; prompt and generated tokens."""
    eager, mine = whole_models()
    grid = torch.tensor([[1, 8, 8], [1, 4, 8]])
    pixels = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    ids = tokens(1, 150)
    ids[0, 20:36] = ids[0, 60:68] = IMAGE_TOKEN
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid}
    logits = mine(**inputs).logits
    assert error(logits, eager(**inputs).logits) <= 1e-4
    assert error(mine(ids.clamp(max=500)).logits, logits) > 1e-3, "images matter"
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(mine.generate(**inputs, **options), eager.generate(**inputs, **options))


@pytest.mark.parametrize(
    "name, got, options",
    [
        ("Llama", "LlamaAttention", {}),
        ("Mistral", "MistralAttention", {"sliding_window": 8}),
        ("Qwen2Moe", "Qwen2MoeAttention", {"moe_intermediate_size": 32, "num_experts": 2}),
        ("Bert", "a bidirectional mask", {"is_decoder": False}),
    ],
)
def test_layers_that_are_not_served(name, got, options):
    """A model of another kind, and none of its numbers, whatever its masks."""
    integration.register()
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**shape, **options, vocab_size=512)
    model = getattr(transformers, f"{name}Model")._from_config(config, attn_implementation="openmsa")
    with pytest.raises(ValueError, match=rf"expected causal layers of MiniMax-M3 \(minimax_m3_vl\), got {got}"):
        model(tokens(1, 20))


@pytest.mark.parametrize("version", ["5.16.1", "5.25rc1", "6.0.0.dev0", "unknown"])
def test_versions_that_are_not_served(monkeypatch, version):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(openmsa.Error, match=f"transformers: expected version 5.17 to 5.24, got {version}"):
        integration.register()


def test_registered_twice_is_hooked_once():
    integration.register()
    hook = integration.m3.MiniMaxM3VLIndexer.forward
    integration.register()
    assert integration.m3.MiniMaxM3VLIndexer.forward is hook


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(20, 20).tril().bool()[None, None],
        torch.ones(20, 20, dtype=torch.int32).tril()[None, None],
        torch.zeros(1, 1, 20, 20),
    ],
)
def test_masks_that_people_made(model, mask):
    with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, length\].* got torch.* \[1, 1, 20, 20\]"):
        model(tokens(1, 20), attention_mask=mask)


def test_masks_that_do_not_fit(model):
    with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, 20\].* got \[1, 19\]"):
        model(tokens(1, 20), attention_mask=torch.ones(1, 19).long())
    with pytest.raises(ValueError, match="attention_mask: .* got a dict with None"):
        model(tokens(1, 20), attention_mask={"full_attention": None})


def test_a_cache_without_index_keys(model):
    with pytest.raises(ValueError, match="past_key_values: expected a cache that keeps index keys.* got DynamicLayer"):
        model(tokens(1, 20), past_key_values=transformers.DynamicCache())
