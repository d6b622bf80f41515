"""python -m openmsa.bench on the CPU: what it measures and writes, and what it does with contenders that fail."""

import csv
import dataclasses
import importlib.util
import json
import signal
import time

import numpy as np
import pytest
from openmsa.bench import __main__ as bench
from openmsa.bench import _benchmark, _timing
from openmsa.bench._section import Case, Prepared, Result
from openmsa.bench.sections import SECTIONS, memory, topk

SMALL = "--device cpu --heads-q 2 --heads-kv 1 --head-dim 16 --index-dim 16 --block-size 16 --topk 2".split()


def results_of(tmp_path, *arguments, status=0):
    assert bench.main([*SMALL, "--seconds", "0.01", "--output", str(tmp_path), *arguments]) == status
    return json.loads((tmp_path / "bench.json").read_text())


def with_contenders(monkeypatch, *contenders):
    """Those of the prefill section: openmsa and others like it."""
    section = SECTIONS["prefill"]
    monkeypatch.setitem(SECTIONS, "prefill", dataclasses.replace(section, contenders=contenders))
    return ["--sections", "prefill"]


def ours(name="openmsa", prepare=None):
    contender = SECTIONS["prefill"].contenders[0]
    return dataclasses.replace(contender, name=name, prepare=prepare or contender.prepare)


def test_sections_that_compare(tmp_path, capsys):
    results = results_of(tmp_path, "--contexts", "32,64", "--batches", "1,3", "--commit", "abc")
    rows = {(row["section"], row["context"], row["batch"], row["contender"]) for row in results["rows"]}
    sizes = [("prefill", 1), ("decode", 1), ("decode", 3), ("training", 1)]
    for name in ("openmsa", "openmsa dense"):
        assert {(section, context, batch, name) for section, batch in sizes for context in (32, 64)} <= rows
    assert not results["refused"]
    assert all(row["min_ms"] <= row["median_ms"] <= row["max_ms"] for row in results["rows"])
    assert results["machine"]["cpu"] and results["machine"]["packages"]["numpy"]
    assert results["machine"]["commit"] == "abc" and set(results["section_seconds"]) == {
        "prefill",
        "decode",
        "training",
    }
    printed = capsys.readouterr()
    assert "decode: one new token per sequence, on a paged cache" in printed.out
    assert "best dense / openmsa" in printed.out
    assert printed.err.count("decode, 64 x 3: openmsa ... ") == 1, "progress"
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "bench.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_every_section_on_one_dtype(tmp_path, monkeypatch):
    """Each has figures of openmsa, all judged right."""
    monkeypatch.setitem(topk.SIZES, "cpu", ((1024, 8, 2),))
    monkeypatch.setitem(memory.BYTES, "cpu", 1 << 20)
    dtype = "bfloat16" if importlib.util.find_spec("ml_dtypes") else "float32"
    drawn = ("attend", "attend_step", "backward")
    names = [name for name in SECTIONS if name not in drawn or importlib.util.find_spec("torch")]
    results = results_of(tmp_path, "--contexts", "64", "--sections", ",".join(names), "--dtype", dtype)
    assert not results["refused"]
    cases = {name: {row["case"] for row in results["rows"] if row["section"] == name} for name in names}
    expected = {
        "ragged": {"64", "32 of 1 to 32"},
        "chunk": {"64", "1 after 64"},
        "fp8": {"64", "64 correlated"},
        "mixed": {"8 x 32", "64 of 1 to 64"},
        "topk": {"1024 rows of 8, k = 2"},
    }
    served = {row["case"]: row["batch"] for row in results["rows"] if row["section"] == "serving"}
    assert served["17 behind 64"] == 1 and served["255 decodes of 64, a chunk of 2K"] == 256
    assert all(cases.values()) and {name: cases[name] for name in expected} == expected
    recalls = [row for row in results["rows"] if row["section"] == "fp8" and row["contender"] == "openmsa select"]
    assert all(0 < row[name] <= 1 for row in recalls for name in ("kept", "block_recall", "score_recall"))
    with open(tmp_path / "bench.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["contender"] for row in written] == [row["contender"] for row in results["rows"]]
    assert float(written[0]["median_ms"]) == results["rows"][0]["median_ms"]


@pytest.mark.parametrize("name", SECTIONS)
def test_cases_on_a_gpu(name):
    """Their names, which need no GPU; those over context go up to what was asked for."""
    options = bench.parse(["--device", "cuda", "--contexts", "8192,1048576"])
    labels = [case.label for case in SECTIONS[name].cases(options)]
    expected = {
        "prefill": ["8K", "1M"],
        "training": ["8K", "1M"],
        "decode": ["8K x 1", "8K x 32", "1M x 1", "1M x 32"],
        "fp8": ["8K", "1M", "128K correlated"],
        "attend": ["128K random", "128K clustered"],
        "backward": ["128K random", "128K clustered"],
        "attend_step": ["128K x 32 random"],
        "ragged": ["128K", "32 of 1K to 64K"],
        "chunk": ["512K", "8K after 512K"],
        "mixed": ["128K x 32", "64 of 1K to 1M"],
        "tokens": ["128K x 8, 1 token", "128K x 8, 8 tokens, agreement 0.99", "128K x 8, 8 tokens, agreement 0"],
        "serving": [
            *(f"{queries} behind {keys}" for keys in ("8K", "128K", "1M") for queries in (1, 16, 17, 64, 256, 1024)),
            *("32K x 1", "32K x 8", "32K x 32", "128K x 1", "128K x 8", "128K x 32", "1M x 1", "1M x 8"),
            "128K x 8, 8 tokens each",
            "32K x 32, 4 tokens each",
            *("a prompt of 8K", "a prompt of 32K", "a prompt of 128K", "a prompt of 1M"),
            "255 decodes of 32K, a chunk of 2K",
            "31 decodes of 32K, a chunk of 8K",
            "64 x 4 tokens of 32K, a chunk of 512",
            "12 decodes of 128K among 500 empty",
            "a prompt of 8K among 511 empty",
            "a decode of 1M among 63 of 1K",
        ],
        "memory": ["2048 MiB"],
        "topk": ["131072 rows of 1024, k = 16", "131072 rows of 2048, k = 32", "524288 rows of 4096, k = 16"],
    }
    assert labels == expected[name]


def test_recorded_selections(tmp_path):
    """A file of two layers of one KV head: the layer's two heads read one each, and its own kv_block stays the last."""
    pytest.importorskip("torch")
    own = np.arange(64) // 16
    indices = np.stack([np.zeros_like(own), own], -1)
    indices[own == 0] = [0, -1]
    recording = np.stack([indices, np.where(indices > 0, indices, np.where(own[:, None] > 1, 1, indices))])[:, None]
    np.savez_compressed(tmp_path / "some.npz", block_size=16, topk_64=recording.astype(np.uint16))
    options = bench.parse([*SMALL, "--heads-kv", "2", "--contexts", "96", "--selection", str(tmp_path / "some.npz")])
    cases = SECTIONS["backward"].cases(options)
    assert [case.label for case in cases] == ["96 random", "96 clustered", "64 recorded"]
    assert np.array_equal(cases[-1].make().selection, recording[:, 0])
    arguments = ["--contexts", "96", "--batches", "3", "--selection", str(tmp_path / "some.npz")]
    results = results_of(tmp_path, *arguments, "--sections", "attend,attend_step,backward")
    labels = {"96 random", "96 clustered", "64 recorded", "96 x 3 random", "64 x 3 recorded"}
    assert {row["case"] for row in results["rows"]} == labels
    assert not results["refused"]
    options.layer = dataclasses.replace(options.layer, topk=3)
    with pytest.raises(ValueError, match="--selection: expected 3 kv_blocks of 16, got 2 of 16"):
        SECTIONS["attend"].cases(options)


def test_list(capsys):
    assert bench.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and section.help in printed for name, section in SECTIONS.items())
    assert "vLLM Triton (cuda only)" in printed


def test_contenders_that_fail(tmp_path, monkeypatch, capsys):
    def missing(problem):
        raise ImportError("No module named 'fast'")

    def wrong(problem):
        return Prepared(lambda call: Result(np.zeros_like(problem.q[0]), topk_indices=np.zeros((1, 32, 2), np.int32)))

    section = with_contenders(monkeypatch, ours(), ours("missing", missing), ours("wrong", wrong))
    results = results_of(tmp_path, "--contexts", "32", *section)
    assert [row["contender"] for row in results["rows"]] == ["openmsa"]
    assert results["absent"] == {"missing": "No module named 'fast'"}
    assert results["refused"][0]["contender"] == "wrong" and results["refused"][0]["is_wrong"]
    assert "expected 1 kv_blocks, got 2" in results["refused"][0]["reason"]
    assert "not here: missing" in capsys.readouterr().out


def test_a_wrong_result_of_our_own_is_a_failure(tmp_path, monkeypatch):
    def late(problem):
        """Right when it is judged first, wrong when it has been timed."""
        prepared = SECTIONS["decode"].contenders[0].prepare(problem)
        calls = []

        def run(call):
            calls.append(call)
            result = prepared.run(call)
            return result if len(calls) == 1 else dataclasses.replace(result, o=result.o + 1)

        return Prepared(run)

    section = with_contenders(monkeypatch, ours("openmsa select"), ours(prepare=late))
    results = results_of(tmp_path, "--contexts", "32", *section, status=1)
    assert "o differs from float64" in results["refused"][0]["reason"]


def test_a_problem_that_cannot_be_made(tmp_path, monkeypatch):
    def make():
        raise MemoryError("512 GB")

    section = dataclasses.replace(SECTIONS["mixed"], cases=lambda options: [Case("large", 64, 1, make)])
    monkeypatch.setitem(SECTIONS, "mixed", section)
    results = results_of(tmp_path, "--sections", "mixed", status=1)
    assert {row["reason"] for row in results["refused"]} == {"512 GB"}


def test_a_contender_that_takes_too_long(tmp_path, monkeypatch):
    tried = []

    def slow(problem):
        tried.append(problem.total_q)
        assert json.loads((tmp_path / "bench.json").read_text())["rows"], "what was measured before is on disk"
        time.sleep(60)

    section = with_contenders(monkeypatch, ours(), ours("slow", slow))
    results = results_of(tmp_path, "--contexts", "64,32", *section, "--time-limit", "0.5")
    assert [row["context"] for row in results["rows"]] == [32, 64] and tried == [32]
    reasons = [row["reason"] for row in results["refused"]]
    assert reasons == ["took longer than 0.5 s", "not tried, a smaller context took too long"]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_interrupted(tmp_path, monkeypatch, capsys):
    """What was measured so far is reported."""

    def interrupted(problem):
        raise KeyboardInterrupt

    section = with_contenders(monkeypatch, ours(), ours("interrupted", interrupted))
    results = results_of(tmp_path, "--contexts", "32", *section)
    assert len(results["rows"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_chosen_contenders(tmp_path):
    results = results_of(tmp_path, "--contexts", "32", "--contenders", "openmsa dense")
    assert {row["contender"] for row in results["rows"]} == {"openmsa dense"}


def test_chosen_cases(tmp_path):
    results = results_of(
        tmp_path, "--contexts", "32,64", "--batches", "1,3", "--sections", "decode", "--cases", "^64 x [2-4]"
    )
    assert {row["case"] for row in results["rows"]} == {"64 x 3"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--contexts", "33"],
        ["--sections", "all"],
        ["--contexts", "many"],
        ["--contenders", "openmsa,nobody"],
        ["--cases", "("],
    ],
)
def test_bad_arguments(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main([*SMALL, "--output", str(tmp_path), *arguments])
    assert exit.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()


def test_a_rate_is_work_over_time(monkeypatch):
    """Of the contender's own inputs: half the bytes in fp8."""
    monkeypatch.setattr(
        _benchmark, "measure", lambda functions, *rest: ({"median_ms": 2.0, "calls": 1}, functions[0]())
    )
    options = bench.parse([*SMALL, "--contexts", "64"])
    section = SECTIONS["decode"]
    run = _benchmark.Benchmark("cpu", 1.0, 60.0, lambda: None)
    names = ("openmsa", "openmsa select", "openmsa fp8 caches")
    run.run(section, section.cases(options)[:1], [one for one in section.contenders if one.name in names])
    rates = {row["contender"]: row["gb_per_s"] for row in run.rows}
    index, keys = 64 * 16, 32 * 2 * 16  # numbers read: all index keys, k and v of two kv_blocks
    expected = {"openmsa": 4 * (index + keys), "openmsa select": 4 * index, "openmsa fp8 caches": index + keys}
    assert rates == pytest.approx({name: count / 2e-3 * 1e-9 for name, count in expected.items() if name in rates})
    assert len(rates) >= 2


def test_a_time_is_the_share_of_one_function(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(_timing.time, "process_time", lambda: 2 * clock[0])

    def takes(seconds, result):
        def function():
            clock[0] += seconds
            return result

        return function

    timing, result = _timing.measure([takes(0.25, "a"), takes(0.75, "b")], "cpu", 4.0, in_graph=False)
    assert timing == {
        "median_ms": 500,
        "min_ms": 500,
        "max_ms": 500,
        "repeats": 4,
        "calls": 2,
        "processor_ms": 1000,
    }
    assert result == "b"


def test_a_slow_function_runs_once(monkeypatch):
    clock, runs = [0.0], []

    def slow():
        runs.append(0)
        clock[0] += 5

    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock[0])
    timing, _ = _timing.measure([slow], "cpu", 1.0, in_graph=False)
    assert timing["repeats"] == len(runs) == 1
