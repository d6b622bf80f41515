"""The examples run, in small settings, and do what they say."""

import importlib
import random
import re
import sys
from pathlib import Path

import openmsa.torch
import pytest

FOLDER = Path(__file__).parents[3] / "examples"


@pytest.fixture
def example(monkeypatch, request):
    """The module of an example."""
    if not FOLDER.exists():
        pytest.skip("no examples beside the tests")
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module(request.param)
    for name in (request.param, "small_decoder", "needle_text"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("example", ["serve_loop"], indirect=True)
def test_serving(example, device):
    arguments = ["--requests", "6", "--max-batch", "3", "--max-prompt", "150", "--new-tokens", "8", "--device", device]
    share = example.main(arguments)
    assert share == 1 if device == "cpu" else share > 0.9  # bf16: some tokens are near a tie


@pytest.fixture
def model_of_bytes(tmp_path):
    """The folder of a small model with random weights, as `msa train` would leave one."""
    m3 = pytest.importorskip("transformers.models.minimax_m3_vl.modeling_minimax_m3_vl")
    config = m3.MiniMaxM3VLTextConfig(
        vocab_size=256, hidden_size=32, dense_intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, rotary_dim=8, index_n_heads=1, index_head_dim=16, index_block_size=32,
        index_topk_blocks=2, layer_types=["full_attention", "minimax_m3_sparse"], mlp_layer_types=["dense", "dense"],
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    m3.MiniMaxM3VLForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("example", ["needle"], indirect=True)
def test_needle(example, model_of_bytes, tmp_path):
    """A model that knows nothing: that it runs, and that what it looks at is what the model read."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "needle.png"
    arguments = ["--model", str(model_of_bytes), "--depths", "3", "--output", str(path)]
    result = example.main([*arguments, "--longest", "1024"])
    assert path.stat().st_size > 5000
    assert set(result["shares"]) == {512, 1024}
    assert 0 <= result["hits"] <= result["rows"] == 3


@pytest.mark.parametrize("example", ["needle"], indirect=True)
def test_what_was_read(example, model_of_bytes, monkeypatch):
    """The picture shows what the layer chose for the question's last byte."""
    question = example.Question(example.Noise(True), "words", 300, 0.5, random.Random(0))
    text = bytes(question.ids[0].tolist()).decode()
    key = text[-3:]
    assert text[question.place - 3 :].startswith(f"{key}{question.value}; ") and text.count(key) == 2
    question.place = 62
    assert [list(question.kv_blocks(size)) for size in (32, 64)] == [[1, 2], [0, 1]]
    question.place = 60
    assert list(question.kv_blocks(32)) == [1]

    attend, chosen_by_layers = openmsa.torch.msa_attention, []

    def watched(*tensors, **options):
        o, indices = attend(*tensors, **options, return_indices=True)
        chosen_by_layers.append(indices[:, -1])
        return o

    monkeypatch.setattr(openmsa.torch, "msa_attention", watched)
    ((scores, chosen),) = example.what_was_read(example.load_model(model_of_bytes), question)
    assert chosen.tolist() == chosen_by_layers[0].tolist() and (chosen >= 0).all()
    assert scores.shape == (1, 10) and scores.isfinite().all()


@pytest.mark.parametrize("example", ["needle"], indirect=True)
def test_needle_without_a_model(example, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        example.main(["--model", str(tmp_path)])
    assert exit.value.code == 2
    assert "make needle" in capsys.readouterr().err


@pytest.mark.parametrize("example", ["needle_text"], indirect=True)
def test_text_with_facts(example):
    """Facts come back often enough to be learned from, and training does not see what the needle is hidden in."""
    draw, noise = random.Random(0), example.Noise(is_held_out=False)
    facts = [example.fact(draw) for _ in range(8)]
    text = example.document(noise, 4000, facts, 0.5, draw)
    found = re.findall(r"[A-Z]{3}[0-9]{4}; ", text)
    assert set(found) == set(facts)
    assert 0.4 * len(text) < sum(map(len, found)) < 0.6 * len(text)
    questions, training = (set(example.library_files(is_held_out)) for is_held_out in (True, False))
    assert questions and training and not questions & training


@pytest.mark.parametrize("example", ["convert_dense"], indirect=True)
def test_conversion(example):
    """A few steps: the order of the losses that does not depend on luck."""
    arguments = ["--dense-steps", "12", "--index-steps", "4", "--sparse-steps", "4", "--tokens", "64", "--batch", "4"]
    losses = example.main(arguments)
    assert losses["dense"] < 5.0, "below ln 256 = 5.55"
    assert losses["sparse, trained on"] < losses["sparse, index branch untrained"]
    assert losses["dense, trained on as long"] < losses["dense"]
