"""python -m openmsa.bench.engines without an engine: loads, figures, tables, and what becomes of processes that fail.
An engine that is made up stands in for one."""

import dataclasses
import itertools
import json
import sys
import textwrap
from pathlib import Path

import openmsa.bench.engines
import pytest
from openmsa.bench.engines import __main__ as bench
from openmsa.bench.engines import _arms
from openmsa.bench.engines._checkpoint import Model, configuration, write_checkpoint
from openmsa.bench.engines._engines import ENGINES
from openmsa.bench.engines._loads import STEPS, WARM_STEPS, Load, loads_of
from openmsa.bench.engines._report import rows_of, table

PLAIN = Load(context=1000, batch=2, chunk=512)
MIXED = Load(context=1000, batch=2, chunk=512, is_mixed=True)


def test_requests_outlast_the_prompts():
    """The first of them decodes while the others are read, and is still there when all decode."""
    requests = PLAIN.requests(3)
    assert [request.num_new for request in requests] == [4 + WARM_STEPS + STEPS] * 2
    prompts = [request.prompt() for request in requests + PLAIN.requests(4)]
    assert all(len(prompt) == 1000 and min(prompt) > 2 for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == 4, "no cache of prefixes has them"
    assert [request.is_late for request in MIXED.requests(0)] == [False, False, True]
    assert PLAIN.num_tokens() == 2 * (1000 + 4 + WARM_STEPS + STEPS)


def test_figures_of_prompts_and_their_decodes():
    """Steps of 2 s once both decode, but for those that are not counted."""
    late = [5.0 + 2 * step for step in range(STEPS + 10)]
    figures = PLAIN.figures([0.5, 0.6], [[1.0, 3.0, *late], late])
    assert figures == {"first_token_ms": pytest.approx(4500), "step_ms": pytest.approx(2000)}
    late[WARM_STEPS + 3] += 1.0  # one step longer and one shorter: the median does not know
    assert PLAIN.figures([0.5, 0.6], [late, late])["step_ms"] == pytest.approx(2000)


def test_figures_of_a_mixed_load():
    decodes = [[1.0, 2.0, 3.0, 4.0, 9.0], [1.0, 2.5, 3.5, 9.0]]
    figures = MIXED.figures([0.0, 0.0, 2.0], [*decodes, [4.0, 9.0]])
    assert figures == {"tokens_per_s": pytest.approx((1000 + 4) / 2), "first_token_ms": pytest.approx(2000)}


def test_loads_that_fit():
    loads = loads_of([32768, 131072], [1, 8, 32], 8192, 1 << 20)
    assert [load.label for load in loads] == ["32K x 1", "32K x 8", "32K x 32", "128K x 1", "128K x 8"]
    assert MIXED.label == "1000 x 2, and a prompt of 1000"


def test_rows_and_table():
    runs = [
        {"arm": "stock", "first_token_ms": 100.0, "tokens_per_s": 10.0},
        {"arm": "openmsa", "first_token_ms": 50.0, "tokens_per_s": 15.0},
        {"arm": "openmsa", "first_token_ms": 55.0, "tokens_per_s": 20.0},
        {"arm": "stock", "first_token_ms": 125.0, "tokens_per_s": 8.0},
    ]
    rows = rows_of("32K x 1", runs)
    assert [(row["figure"], row["stock"], row["openmsa"], row["gain"]) for row in rows] == [
        ("first_token_ms", 100.0, 50.0, 2.0),
        ("tokens_per_s", 10.0, 20.0, 2.0),
    ]
    assert rows[0]["stock_spread"] == pytest.approx(0.25) and rows[1]["stock_spread"] == pytest.approx(0.2)
    assert "| 32K x 1 | 100 | 50 | 2.00x | 25.0 %, 10.0 % |" in table("vllm", rows)
    assert "| 32K x 1 | 12346 |" in table("vllm", [row | {"stock": 12345.6} for row in rows])
    assert rows_of("32K x 1", runs[:1]) == [], "an arm without a run"


def test_a_configuration_that_both_engines_read():
    outer = configuration(Model(num_layers=3, num_dense=1, num_experts=4))
    assert outer["architectures"] == ["MiniMaxM3SparseForCausalLM"] and outer["text_config"]["num_local_experts"] == 4
    assert outer["sparse_attention_config"] == outer["text_config"]["sparse_attention_config"]
    assert outer["sparse_attention_config"]["sparse_attention_freq"] == [0, 1, 1] == outer["moe_layer_freq"]
    assert Model().bytes_per_token() == 2 * 128 * (2 * 4 * 20 + 19)


@pytest.mark.parametrize("num_experts, num_mtp", [(0, 0), (2, 0), (2, 1)])
def test_a_checkpoint(num_experts, num_mtp, tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    model = Model(num_heads_q=4, num_heads_kv=2, num_layers=2, hidden_size=64, mlp_size=32, num_experts=num_experts)
    model = dataclasses.replace(model, num_mtp=num_mtp)
    weights = safetensors.load_file(write_checkpoint(model, tmp_path / "m3") / "model.safetensors")
    assert weights["model.layers.1.self_attn.index_q_proj.weight"].shape == (2 * 128, 64)
    assert "model.layers.0.self_attn.index_q_proj.weight" not in weights
    assert weights["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16
    experts = {name for name in weights if ".experts." in name}
    assert len(experts) == 3 * num_experts * (1 + num_mtp)


#: An engine that needs no time to speak of, and says in its log what a plug-in says.
MADE_UP = """
    import sys
    from openmsa.bench.engines import _engines, _worker

    class MadeUp:
        @staticmethod
        def import_modules():
            print("imported")
        def __init__(self, settings):
            assert settings.model and settings.max_tokens * 100 < settings.cache_bytes
            assert settings.keeps_prompts == ({decodes} > 0)
            if settings.with_openmsa:
                print("{says}")
            self.step = 1.0 if settings.with_openmsa else 2.0
        def serve(self, requests):
            {dies}
            arrivals = [[self.step * (10 + number) for number in range(one.num_new)] for one in requests]
            return [0.0] * len(requests), arrivals

    _engines.ENGINES["vllm"] = MadeUp
    _worker.main(sys.argv[1:])
"""


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Has workers run the engine that is made up, in the ways that a test asks for."""

    def make(says="openmsa 0.1.0 serves 2 of 2 sparse layers", dies="", decodes=0):
        script = tmp_path / "worker.py"
        script.write_text(textwrap.dedent(MADE_UP.format(says=says, dies=dies, decodes=decodes)))
        interpreter = tmp_path / "python"
        interpreter.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" "{script}" "$@"\n')
        interpreter.chmod(0o755)
        monkeypatch.setattr(_arms.sys, "executable", str(interpreter))
        monkeypatch.setenv("PYTHONPATH", str(Path(openmsa.__file__).parent.parent))

    monkeypatch.setattr(bench, "machine_facts", lambda *_: {"gpu": "none"})
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(bench, "write_checkpoint", lambda model, folder: folder)
    return make


def run(tmp_path, *more):
    sizes = ["--contexts", "512", "--batches", "1,2", "--chunk", "512", "--mixed-chunk", "256", "--time-limit", "60"]
    return bench.main(["vllm", "--output", str(tmp_path / "out"), *sizes, *more])


def test_arms_take_turns(made_up, tmp_path, capsys):
    made_up()
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "| 512 x 1 | 2000 | 1000 | 2.00x |" in printed
    assert "| 512 x 8, and a prompt of 512 |" in printed
    results = json.loads((tmp_path / "out" / "engines-vllm.json").read_text())
    order = [(run["round"], run["arm"]) for run in results["runs"] if run["load"] == "512 x 1"]
    assert order == [
        (0, "stock"),
        (0, "openmsa"),
        (1, "stock"),
        (1, "openmsa"),
        (2, "openmsa"),
        (2, "stock"),
    ]
    assert [one["chunk"] for one in results["settings"]] == [512, 256]


def test_decodes_of_prompts_that_the_engine_keeps(made_up, tmp_path):
    """The small load's prompts are read in every round, then decoded twice more; the large one's are read once."""
    made_up(decodes=2)
    assert run(tmp_path, "--decodes", "2", "--read-once", "512") == 0
    runs = json.loads((tmp_path / "out" / "engines-vllm.json").read_text())["runs"]
    has_new_prompts = {}
    for one in runs:
        has_new_prompts.setdefault(one["load"], []).append("first_token_ms" in one)
        assert ("step_ms" in one) == ("prompt" not in one["load"])
    assert has_new_prompts["512 x 1"] == [True] * 6 + [False] * 4
    assert has_new_prompts["512 x 2"] == [True] * 2 + [False] * 4
    assert has_new_prompts["512 x 8, and a prompt of 512"] == [True] * 6


def test_prompts_of_rounds():
    """New ones are no load's; those that are read once are the beginning of a longer load's."""
    options = bench.parse(["vllm", "--decodes", "1", "--read-once", "1000"])
    fresh = itertools.count(1)
    loads = [Load(1000, 1, 512), Load(1000, 2, 512), Load(2000, 2, 512)]
    small, large, longer = (
        [[one.prompt() for one in each] for each, _ in bench.rounds_of(load, options, fresh)] for load in loads
    )
    assert len(small) == 4 and len({tuple(prompt) for (prompt,) in small}) == 3 and small[2] == small[3]
    assert large[0] == large[1] and large[0][0] == small[0][0]
    assert [prompt[:1000] for prompt in longer[0]] == large[0]
    mixed = [each for each, _ in bench.rounds_of(MIXED, options, fresh)]
    assert all(each[:2] == mixed[0][:2] for each in mixed)
    assert len({tuple(each[2].prompt()) for each in mixed}) == 3


@pytest.mark.parametrize(
    "how, message",
    [
        (
            {"says": "openmsa leaves 1 of 2"},
            "openmsa: expected openmsa in all sparse layers, got openmsa leaves 1 of 2",
        ),
        ({"says": "no GPU"}, "openmsa: expected openmsa in all sparse layers, got no word of it"),
        ({"dies": "raise SystemExit('not enough memory')"}, "stock: it ended with status 1; the end of "),
        ({"dies": "import time; time.sleep(60)"}, "stock: no answer in 2 s"),
    ],
)
def test_an_arm_that_fails(how, message, made_up, tmp_path, capsys):
    made_up(**how)
    assert run(tmp_path, "--mixed-batch", "0", "--time-limit", "2" if "sleep" in str(how) else "60") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["vllm", "--chunk", "64"], "--chunk: expected at least 128, got 64"),
        (["vllm", "--mixed-chunk", "1"], "--mixed-chunk: expected at least 128, got 1"),
        (["vllm", "--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["other"], "invalid choice"),
    ],
)
def test_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.parse(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_is_not_installed(name, monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.main([name]) == 1
    assert f"expected {name} to be installed" in capsys.readouterr().err


def test_loads_that_do_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: name)
    assert bench.main(["vllm", "--most-tokens", "1", "--mixed-batch", "0"]) == 1
    assert "expected loads of at most --most-tokens, got none" in capsys.readouterr().err
