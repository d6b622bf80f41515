"""python -m openmsa.bench on the CPU: what it writes, and what it does with contenders that fail."""

import dataclasses
import importlib.util
import json
import signal
import time

import numpy as np
import pytest
from openmsa.bench import __main__ as bench
from openmsa.bench import _contenders, _timing
from openmsa.bench._case import Case, Layer

SMALL = [
    "--device",
    "cpu",
    "--heads-q",
    "2",
    "--heads-kv",
    "1",
    "--head-dim",
    "16",
    "--block-size",
    "16",
    "--topk",
    "2",
]


def results_of(tmp_path, *arguments):
    assert bench.main([*SMALL, "--output", str(tmp_path), *arguments]) == 0
    return json.loads((tmp_path / "bench.json").read_text())


def test_every_section(tmp_path, capsys):
    results = results_of(tmp_path, "--contexts", "32,64", "--batches", "1,3")
    rows = {(row["section"], row["context"], row["batch"], row["contender"]) for row in results["rows"]}
    sizes = [("prefill", 1), ("decode", 1), ("decode", 3), ("training", 1)]
    for name in ("openmsa", "openmsa dense"):
        assert {(section, context, batch, name) for section, batch in sizes for context in (32, 64)} <= rows
    assert not results["refused"]
    assert all(row["min_ms"] <= row["median_ms"] <= row["max_ms"] for row in results["rows"])
    assert results["machine"]["cpu"] and results["machine"]["packages"]["numpy"]
    printed = capsys.readouterr()
    assert "decode: one new token per sequence, on a cache, batch 3" in printed.out
    assert printed.err.count("decode, 64 tokens, batch 3: openmsa ... ") == 1, "progress"
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "bench.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_contenders_that_fail(tmp_path, monkeypatch, capsys):
    def missing(case, inputs):
        raise ImportError("No module named 'fast'")

    def wrong(case, inputs):
        return lambda: np.zeros_like(inputs["q"])

    ours = _contenders.contenders_on("cpu")[0]
    others = [dataclasses.replace(ours, name=f.__name__, prepare=f) for f in (missing, wrong)]
    monkeypatch.setattr(bench, "contenders_on", lambda device: [ours, *others])
    results = results_of(tmp_path, "--contexts", "32", "--sections", "prefill")
    assert [row["contender"] for row in results["rows"]] == ["openmsa"]
    assert results["absent"] == {"missing": "No module named 'fast'"}
    assert results["refused"][0]["contender"] == "wrong" and "differs" in results["refused"][0]["reason"]
    assert "not here: missing" in capsys.readouterr().out


def test_a_contender_that_takes_too_long(tmp_path, monkeypatch):
    tried = []

    def slow(case, inputs):
        tried.append(case.context)
        assert json.loads((tmp_path / "bench.json").read_text())["rows"], "what was measured before is on disk"
        time.sleep(60)

    ours = _contenders.contenders_on("cpu")[0]
    monkeypatch.setattr(
        bench, "contenders_on", lambda device: [ours, dataclasses.replace(ours, name="PyTorch flash", prepare=slow)]
    )
    results = results_of(tmp_path, "--contexts", "32,64", "--sections", "prefill", "--time-limit", "0.5")
    assert [row["context"] for row in results["rows"]] == [32, 64] and tried == [32]
    reasons = [row["reason"] for row in results["refused"]]
    assert reasons == ["took longer than 0.5 s", "not tried, a smaller context took too long"]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_interrupted(tmp_path, monkeypatch, capsys):
    """What was measured so far is reported."""

    def interrupted(case, inputs):
        raise KeyboardInterrupt

    ours = _contenders.contenders_on("cpu")[0]
    monkeypatch.setattr(bench, "contenders_on", lambda device: [ours, dataclasses.replace(ours, prepare=interrupted)])
    results = results_of(tmp_path, "--contexts", "32", "--sections", "prefill")
    assert len(results["rows"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_chosen_contenders(tmp_path):
    results = results_of(tmp_path, "--contexts", "32", "--contenders", "openmsa dense")
    assert {row["contender"] for row in results["rows"]} == {"openmsa dense"}


@pytest.mark.parametrize(
    "arguments",
    [["--contexts", "33"], ["--sections", "all"], ["--contexts", "many"], ["--contenders", "openmsa,nobody"]],
)
def test_bad_arguments(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main([*SMALL, "--output", str(tmp_path), *arguments])
    assert exit.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()


def test_layers_of_a_decode_step():
    """As many on a GPU as memory allows; one of anything else."""
    m3 = Layer(64, 4, 128, 128, 16)
    layers = {
        (section, context, batch, device): Case(section, context, batch, m3, device).num_layers()
        for section, context, batch, device in [
            ("decode", 32768, 1, "cuda"),
            ("decode", 32768, 32, "cuda"),
            ("decode", 131072, 32, "cuda"),
            ("decode", 32768, 1, "cpu"),
            ("prefill", 32768, 1, "cuda"),
        ]
    }
    assert list(layers.values()) == [8, 6, 1, 1, 1]


def test_layers_have_inputs_of_their_own():
    case = Case("decode", 64, 1, Layer(2, 1, 16, 16, 2), "cpu")
    assert not np.array_equal(case.inputs(0)["k"], case.inputs(1)["k"])
    assert np.array_equal(case.inputs(1)["k"], case.inputs(1)["k"])


def test_a_time_is_the_share_of_one_function(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        def function():
            clock[0] += seconds

        return function

    timing = _timing.measure([takes(0.25), takes(0.75)], "cpu", 4.0, in_graph=False)
    assert timing == {"median_ms": 500, "min_ms": 500, "max_ms": 500, "repeats": 4}
