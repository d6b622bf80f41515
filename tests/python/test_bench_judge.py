"""The benchmark's problems and its judge: right results pass, and each thing that can be wrong with one is found."""

import re
from pathlib import Path

import numpy as np
import pytest
from openmsa.bench import _judge, _problem, _tensors
from openmsa.bench._errors import Refused, Wrong
from openmsa.bench._problem import Layer, Problem, log_uniform, sets_and_calls
from openmsa.bench._section import Result
from openmsa.bench._tensors import to_fp8
from openmsa.bench.contenders import ours
from openmsa.bench.contenders.ours_training import Step

LAYER = Layer(num_heads_q=4, num_heads_kv=2, head_dim=16, index_dim=16, block_size=16, topk=3)
M3 = Layer(64, 4, 128, 128, 128, 16)
K = 1024


PROBLEMS = {
    "prompt": {"sequences": [(100, 100)]},
    "prompts": {"sequences": [(100, 100), (1, 1), (40, 70)]},
    "decode": {"sequences": [(1, 100), (1, 7), (1, 48)], "is_paged": True},
    "several tokens": {"sequences": [(3, 100), (3, 7)], "is_paged": True, "agreement": 0.5},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_right_results_pass(name):
    problem = Problem(LAYER, **PROBLEMS[name])
    assert _judge.judge_layer(problem, 0, ours.Calls(problem).layer(0)) < 1e-6
    assert _judge.judge_sparse(problem, 0, ours.Calls(problem).layer(0)) < 1e-6
    assert _judge.judge_dense(problem, 0, ours.Calls(problem).dense(0)) < 1e-6
    assert _judge.judge_attention(problem, 0, ours.attend(problem).run(0)) < 1e-6


def change_o(result, problem):
    result.o[0] *= 1 + 1e-5


def leave_o(result, problem):
    result.o[-1] = np.nan


def change_lse(result, problem):
    result.lse[-1] += 1e-4


def exchange_worst_block(result, problem):
    """The first kv_block of the last query for one that was left out."""
    row = result.topk_indices[0, -1]
    left_out = [block for block in range(row[-1]) if block not in row]
    row[0] = left_out[0]
    row.sort()


def leave_own_block(result, problem):
    result.topk_indices[0, -1] = [0, 1, 2]


def unsort(result, problem):
    result.topk_indices[1, -1] = result.topk_indices[1, -1][::-1].copy()


def repeat_a_block(result, problem):
    result.topk_indices[1, -1, 0] = result.topk_indices[1, -1, 1]


def forget_a_block(result, problem):
    result.topk_indices[0, -1, -1] = -1


@pytest.mark.parametrize(
    "spoil, message",
    [
        (change_o, "o differs from float64"),
        (leave_o, "o differs from float64"),
        (change_lse, "lse is off"),
        (exchange_worst_block, "a better kv_block was left out"),
        (leave_own_block, "expected ascending kv_blocks up to 6"),
        (unsort, "expected ascending kv_blocks"),
        (repeat_a_block, "expected ascending kv_blocks"),
        (forget_a_block, "expected 3 kv_blocks, got 2"),
    ],
)
def test_wrong_results_are_found(spoil, message):
    problem = Problem(LAYER, [(100, 100)])
    result = ours.Calls(problem).layer(0)
    spoil(result, problem)
    with pytest.raises(Wrong, match=message):
        _judge.judge_layer(problem, 0, result)


def test_dense_attention_is_no_sparse_attention():
    problem = Problem(LAYER, [(100, 100)])
    calls = ours.Calls(problem)
    with pytest.raises(Wrong, match="o differs"):
        _judge.judge_dense(problem, 0, Result(calls.layer(0).o))
    with pytest.raises(Wrong, match="o differs"):
        _judge.judge_sparse(problem, 0, Result(calls.dense(0).o))


@pytest.mark.parametrize("name", ["d_q", "d_k", "d_v"])
@pytest.mark.parametrize("step", [Step.step, Step.dense_step])
def test_gradients_are_judged(name, step):
    problem = Problem(LAYER, [(100, 100)])
    result = step(Step(problem), 0)
    assert _judge.judge_gradients(problem, 0, result) < 1e-6
    getattr(result, name)[0] += 1e-3
    with pytest.raises(Wrong, match=f"{name} differs"):
        _judge.judge_gradients(problem, 0, result)


@pytest.mark.parametrize("kl", [Step.kl, Step.whole_kl])
def test_gradients_of_the_index_branch_are_judged(kl):
    problem = Problem(LAYER, [(100, 100)])
    result = kl(Step(problem), 0)
    assert _judge.judge_kl(problem, 0, result) < 1e-5
    result.d_index_q[99] *= 1.01
    with pytest.raises(Wrong, match="d_index_q differs"):
        _judge.judge_kl(problem, 0, result)


@pytest.mark.parametrize("name", ["d_q", "d_k", "d_v", "d_index_q"])
@pytest.mark.parametrize("step", [Step.fused_step, Step.fused_backward])
def test_both_gradients_of_one_call_are_judged(name, step):
    problem = Problem(LAYER, [(100, 100)])
    result = step(Step(problem), 0)
    assert _judge.judge_step(problem, 0, result) < 1e-6
    getattr(result, name)[[0, 99]] += 1e-3
    with pytest.raises(Wrong, match=f"{name} differs"):
        _judge.judge_step(problem, 0, result)


@pytest.mark.parametrize("scale", [None, "token", "one"])
def test_fp8_index_keys_are_judged_as_rounded(scale):
    pytest.importorskip("ml_dtypes")
    problem = Problem(LAYER, [(100, 100)])
    rounded = problem.with_fp8_index(scale)
    result = ours.Calls(rounded).layer(0)
    _judge.judge_layer(rounded, 0, result)
    with pytest.raises(Wrong, match="a better kv_block was left out"):  # on the inputs that were not rounded
        for seed in range(1, 20):
            problem = Problem(LAYER, [(100, 100)], seed=seed)
            _judge.judge_selection(problem, 0, ours.Calls(problem.with_fp8_index(scale)).select(0))


@pytest.mark.parametrize("rounding", ["cast", "exact"])
def test_index_queries_are_judged_by_their_rule(rounding):
    pytest.importorskip("ml_dtypes")
    problem = Problem(LAYER, [(100, 100)]).with_fp8_index("token")
    told = problem.with_index_q_rounding(rounding)
    _judge.judge_layer(told, 0, ours.Calls(told).layer(0))
    with pytest.raises(Wrong, match="a better kv_block was left out"):  # by the other rule
        for seed in range(1, 60):
            problem = Problem(LAYER, [(100, 100)], seed=seed).with_fp8_index("token")
            result = ours.Calls(problem.with_index_q_rounding(rounding)).select(0)
            _judge.judge_selection(problem, 0, result)


def test_rows_are_rounded_to_fp8_as_the_library_does():
    """x * (448 / amax): divided by amax / 448, numbers of this row between two of e4m3 go to the other one."""
    fp8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
    x = (np.arange(1, 209) / 128).astype(np.float32)
    codes, scale = to_fp8(x[None])
    assert np.array_equal(codes[0], (x * (np.float32(448) / x[-1])).astype(fp8))
    assert np.any(codes[0] != (x / scale[0]).astype(fp8))


def test_index_queries_that_came_in_fp8_are_judged_as_they_are():
    pytest.importorskip("ml_dtypes")
    problem = Problem(LAYER, [(100, 100)]).with_fp8_index()
    cast = problem.with_cast_index_q()
    rows = np.arange(100)
    q, k = cast.judged_index(0, 99, rows)
    assert np.array_equal(q, cast.index_q[0, 99].astype(np.float64))
    assert np.array_equal(k, cast.index_k.astype(np.float64))
    assert not np.array_equal(q, problem.judged_index(0, 99, rows)[0])


def test_choices_that_rounding_decides_are_left():
    """Of four kv_blocks, the second and third equally good for the last place but one; the last is the query's own."""
    assert _judge._clear_choice(np.array([0.0, 1.0, 1.0, -5.0]), 2, 1e-3) is None
    assert _judge._clear_choice(np.array([0.0, 1.0, 1.1, -5.0]), 2, 1e-3).tolist() == [2, 3]
    assert _judge._clear_choice(np.array([1.0, 1.0, -5.0]), 3, 1e-3).tolist() == [0, 1, 2]


def test_tolerances_are_those_of_the_library():
    path = Path(__file__).parents[2] / "src/core/tolerance.h"
    if not path.exists():
        pytest.skip("only beside the library's sources")
    text = path.read_text()
    rows = [tuple(map(float, row.split(","))) for row in re.findall(r"return \{(.*)\};", text)]
    ours = [(t.o, t.lse, t.gradient, t.score) for t in _judge.TOLERANCES.values()]
    assert rows == ours
    assert float(re.findall(r"score = ([0-9.e-]+);", text)[0]) == _judge.FP8_INDEX_SCORE


def test_rows_of_a_decode_step():
    """Of 8 to 64 calls; index keys alone outgrow the L2 cache before a page is read again, as memory allows."""
    steps = [(32 * K, 1), (32 * K, 32), (128 * K, 32), (1024 * K, 1), (1024 * K, 32)]
    counts = [sets_and_calls(M3, [context] * batch) for context, batch in steps]
    assert counts == [(32, 64), (2, 8), (2, 8), (2, 64), (1, 8)]


def test_a_whole_prompt_is_one_call(monkeypatch):
    monkeypatch.setattr(_problem, "source_of", lambda device, seed: _tensors.NumPy(seed))
    for sequences, calls in (([(100, 100)], 1), ([(4, 100)], 64)):
        problem = Problem(LAYER, sequences, is_paged=True, device="cuda")
        assert problem.calls == calls


def test_pages_are_shared_by_no_two_sequences():
    problem = Problem(LAYER, [(1, 100), (1, 7), (1, 48)], is_paged=True)
    rows = np.concatenate([problem.rows(0, b, np.arange(n)) for b, n in enumerate(problem.lengths)])
    assert len(set(rows.tolist())) == 155 and rows.max() < len(problem.k) == 176


def test_what_lies_one_after_another():
    with pytest.raises(Refused):
        Problem(LAYER, [(1, 100), (1, 7)], is_paged=True).contiguous(0)
    with pytest.raises(Refused):
        Problem(LAYER, [(100, 100)]).pages(0)
    k, _ = Problem(LAYER, [(1, 32), (1, 32)], is_paged=True).contiguous(0)
    assert k.shape == (2, 32, 2, 16)


def test_inputs_come_again():
    one, again, other = (Problem(LAYER, [(64, 64)], seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.k, again.k) and not np.array_equal(one.k, other.k)


def test_query_tokens_that_agree():
    problem = Problem(LAYER, [(8, 64)] * 50, is_paged=True, agreement=0.9)
    q = problem.q.reshape(50, 8, -1)
    assert np.corrcoef(q[:, 0].flatten(), q[:, 7].flatten())[0, 1] == pytest.approx(0.9, abs=0.02)
    assert problem.q.var() == pytest.approx(1, abs=0.05)


def test_operations():
    """3 tokens: 1 + 2 + 3 pairs. 2 after 40: 41 + 42 pairs of the index branch, twice topk kv_blocks of attention."""
    prompt, chunk = Problem(LAYER, [(3, 3)]), Problem(LAYER, [(2, 62)])
    assert prompt.work("select", "tflops") == 6 * 2 * 2 * 16
    assert prompt.work("dense", "tflops") == prompt.work("attend", "tflops") == 6 * 4 * 4 * 16
    assert chunk.work("select", "tflops") == (61 + 62) * 2 * 2 * 16
    assert chunk.work("attend", "tflops") == 2 * 48 * 4 * 4 * 16
    assert chunk.work("layer", "tflops") == chunk.work("select", "tflops") + chunk.work("attend", "tflops")


def test_bytes_of_a_decode_step():
    """fp32. Of 40 keys every kv_block is chosen, so none is scored."""
    problem = Problem(LAYER, [(1, 40), (1, 100)], is_paged=True)
    assert problem.work("select", "gb_per_s") == 100 * 16 * 4
    assert problem.work("attend", "gb_per_s") == (40 + 48) * 2 * 2 * 16 * 4
    assert problem.work("dense", "gb_per_s") == 140 * 2 * 2 * 16 * 4


def test_lengths_of_a_ragged_batch():
    lengths = log_uniform(64, K, 1024 * K)
    assert lengths == log_uniform(64, K, 1024 * K) and min(lengths) >= K and max(lengths) <= 1024 * K
    assert np.median(lengths) < np.mean(lengths) / 2
