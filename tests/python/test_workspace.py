"""Workspace: one piece per device and stream, or thread, for all plans and operations; never what belongs to a graph."""

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import openmsa
import pytest
from openmsa import _workspace
from openmsa._layout import capacity
from openmsa._plan import cached_plan
from support import pick, random_layer

OPTIONS = {"block_size": 32, "topk": 3}


@pytest.fixture(autouse=True)
def nothing_kept():
    openmsa.free_workspace()
    yield
    openmsa.free_workspace()


def workspace_of(total_q, operation="msa_attention", **options):
    """Bytes that a plan for so many queries asks for."""
    shape = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_seqlen_k": 4096}
    return openmsa.Plan(**shape | OPTIONS | options, max_total_q=total_q).workspace_bytes(operation)


def test_prompts_of_any_length_share_the_memory_of_the_longest():
    cached_plan.cache_clear()
    for length in range(2000, 2400, 20):
        openmsa.msa_attention(**random_layer([length], [length]), **OPTIONS)
    assert 0 < openmsa.workspace_bytes() <= 1.125 * workspace_of(2380)
    assert cached_plan.cache_info().misses <= 4, "plans do not depend on the exact length"


def test_operations_and_plans_share_it():
    layer = random_layer([300], [300])
    openmsa.msa_attention(**layer, **OPTIONS)
    before = openmsa.workspace_bytes()
    openmsa.select_blocks(**pick(layer, "index_q", "index_k"), **OPTIONS)
    openmsa.msa_attention(**random_layer([20], [20]), **OPTIONS)
    assert openmsa.workspace_bytes() == before


def test_reserved_before_the_first_call():
    layer = random_layer([300], [300])
    shape = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_seqlen_k": 4096}
    plan = openmsa.Plan(**shape | OPTIONS, max_total_q=300)
    reserved = plan.reserve(layer["q"], "append_kv", "msa_attention")
    assert openmsa.workspace_bytes() == reserved == plan.workspace_bytes("msa_attention")
    openmsa.msa_attention(**layer, plan=plan)
    assert openmsa.workspace_bytes() == reserved
    with pytest.raises(ValueError, match="backend: expected one for arrays on cuda, where like is, got cpu"):
        plan.reserve(SimpleNamespace(dtype="float32", shape=(0,), __dlpack_device__=lambda: (2, 0)), "msa_attention")


def test_freed_and_made_again():
    layer = random_layer([300], [300])
    expected = openmsa.msa_attention(**layer, **OPTIONS)
    assert openmsa.workspace_bytes() > 0
    openmsa.free_workspace()
    assert openmsa.workspace_bytes() == 0
    np.testing.assert_array_equal(openmsa.msa_attention(**layer, **OPTIONS), expected)


def test_threads_have_their_own_and_take_it_along():
    layer = random_layer([300], [300])
    expected = openmsa.msa_attention(**layer, **OPTIONS)
    one = openmsa.workspace_bytes()
    barrier = threading.Barrier(3)

    def call():
        result = openmsa.msa_attention(**layer, **OPTIONS)
        barrier.wait()
        return result

    with ThreadPoolExecutor(3) as pool:
        for result in [future.result() for future in [pool.submit(call) for _ in range(3)]]:
            np.testing.assert_array_equal(result, expected)
        assert openmsa.workspace_bytes() == 4 * one
    gc.collect()
    assert openmsa.workspace_bytes() == one


def test_freed_beside_running_calls():
    layer = random_layer([300], [300])
    expected = openmsa.msa_attention(**layer, **OPTIONS)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(openmsa.msa_attention, **layer, **OPTIONS) for _ in range(20)]
        while not all(future.done() for future in futures):
            openmsa.free_workspace()
        for future in futures:
            np.testing.assert_array_equal(future.result(), expected)


@pytest.mark.parametrize("extent", [*range(1, 70), 1000, 4097, 100_001, 2**31 - 1])
def test_capacities(extent):
    rounded = capacity(extent)
    assert extent <= rounded <= max(extent * 1.125, extent) and rounded == capacity(rounded)
    assert extent > 16 or rounded == extent


class Gpu:
    """A library whose arrays lie on a GPU, as far as workspace goes."""

    def __init__(self):
        self.allocated, self.is_graph_pool, self.is_capturing = [], False, False

    def device(self, array):
        return "cuda", 0

    def is_in_graph_pool(self, array):
        return self.is_graph_pool

    def is_captured(self, array):
        return self.is_capturing

    def memory(self, num_bytes, like):
        owner = np.empty(num_bytes, np.uint8)
        self.allocated.append(num_bytes)
        return owner, owner.ctypes.data


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(_workspace, "_of_streams", {})
    monkeypatch.setattr(_workspace, "_of_graphs", [])
    return Gpu()


def take(gpu, num_bytes, stream):
    with _workspace.workspace(num_bytes, gpu, None, stream) as address:
        return address


def test_one_piece_per_stream(gpu):
    first = take(gpu, 1000, 1)
    assert take(gpu, 500, 1) == first and take(gpu, 500, 2) != first
    assert gpu.allocated == [1000, 500] and openmsa.workspace_bytes() == 1500
    take(gpu, 2000, 1)
    assert openmsa.workspace_bytes() == 2500


def test_memory_of_graphs_is_not_kept(gpu):
    """In a graph's pool, or for an operator, whose compiler may run it in one."""
    gpu.is_graph_pool = True
    take(gpu, 1000, 1)
    gpu.is_graph_pool = False
    with _workspace.workspace_per_call():
        take(gpu, 1000, 1)
        take(gpu, 1000, 1)
    assert gpu.allocated == [1000] * 3 and openmsa.workspace_bytes() == 0


def given_memory(plan, extra=64):
    return np.full(plan.workspace_bytes("msa_attention") + extra, 0xFF, np.uint8)


def plan_of(layer_tokens):
    shape = {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64, "max_seqlen_k": 4096}
    return openmsa.Plan(**shape | OPTIONS, max_total_q=layer_tokens)


def test_given_memory_serves_every_plan_and_nothing_is_kept():
    layer, short = random_layer([300], [300]), random_layer([20], [20])
    plan = plan_of(300)
    expected = [openmsa.msa_attention(**layer, plan=plan), openmsa.msa_attention(**short, **OPTIONS)]
    openmsa.free_workspace()
    memory = given_memory(plan)
    with openmsa.Workspace(memory):
        results = [openmsa.msa_attention(**layer, plan=plan), openmsa.msa_attention(**short, **OPTIONS)]
        openmsa.select_blocks(**pick(layer, "index_q", "index_k"), **OPTIONS)
    for result, wanted in zip(results, expected):
        np.testing.assert_array_equal(result, wanted)
    assert openmsa.workspace_bytes() == 0 and np.any(memory != 0xFF)
    openmsa.msa_attention(**short, **OPTIONS)
    assert openmsa.workspace_bytes() > 0, "behind it calls have their own again"


def test_given_memory_of_any_address():
    plan, layer = plan_of(300), random_layer([300], [300])
    for offset in (0, 1, 63):
        with openmsa.Workspace(given_memory(plan, 128)[offset:]):
            openmsa.msa_attention(**layer, plan=plan)


def test_given_memory_that_is_too_small():
    plan, layer = plan_of(300), random_layer([300], [300])
    needed = plan.workspace_bytes("msa_attention")
    memory = np.empty(needed + 64, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :][: needed - 1]
    message = f"workspace: expected at least {needed} bytes, got {needed - 1}"
    with openmsa.Workspace(memory), pytest.raises(ValueError, match=message):
        openmsa.msa_attention(**layer, plan=plan)
    with openmsa.Workspace(memory), pytest.raises(ValueError, match=message):
        plan.reserve(layer["q"], "msa_attention")
    with openmsa.Workspace(np.empty(0, np.uint8)), pytest.raises(ValueError, match="bytes, got 0"):
        openmsa.msa_attention(**layer, **OPTIONS)
    openmsa.msa_attention(**layer, plan=plan)  # what was refused left nothing behind


@pytest.mark.parametrize(
    "memory, message",
    [
        (np.empty(100, np.float32), r"memory: expected \[bytes\] of dtype uint8, got \[100\] of float32"),
        (np.empty((10, 10), np.uint8), r"memory: expected \[bytes\] of dtype uint8, got \[10, 10\] of uint8"),
        (np.empty(100, np.uint8)[::2], "memory: expected a contiguous array that can be written, got ndarray"),
        (np.frombuffer(b"read only", np.uint8), "memory: expected a contiguous array that can be written"),
    ],
)
def test_memory_that_is_none(memory, message):
    with pytest.raises(ValueError, match=message):
        openmsa.Workspace(memory)
    with pytest.raises(TypeError, match="memory: expected an array"):
        openmsa.Workspace(100)


def test_the_innermost_memory_counts_for_its_thread_and_device(gpu):
    outer, inner = (openmsa.Workspace(np.empty(1000, np.uint8)) for _ in range(2))
    for workspace in (outer, inner):
        workspace.device = ("cuda", 0)
    with outer:
        with inner:
            assert take(gpu, 500, 1) == inner.address(500)
            with _workspace.workspace_per_call():
                assert take(gpu, 500, 1) == inner.address(500)
        assert take(gpu, 500, 2) == outer.address(500)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(take, gpu, 500, 1).result() != outer.address(500)
        openmsa.msa_attention(**random_layer([20], [20]), **OPTIONS)  # on the CPU
    assert gpu.allocated == [500] and openmsa.workspace_bytes() > 500


def test_a_tensor_of_the_call_in_given_memory():
    plan, layer = plan_of(300), random_layer([300], [300])
    memory = given_memory(plan, 64 + layer["q"].nbytes)
    q = memory[: layer["q"].nbytes].view(np.float32).reshape(layer["q"].shape)
    with openmsa.Workspace(memory), pytest.raises(ValueError, match="q: expected memory outside the workspace"):
        openmsa.msa_attention(**layer | {"q": q}, plan=plan)


def test_what_a_graph_without_a_pool_reads_outlives_growth(gpu):
    take(gpu, 1000, 1)
    gpu.is_capturing = True
    take(gpu, 1000, 1)
    gpu.is_capturing = False
    take(gpu, 2000, 1)
    assert [memory[2] for memory in _workspace._of_graphs] == [1000]


def test_plans_are_copied_and_pickled():
    plan = openmsa.Plan(
        num_heads_q=4,
        num_heads_kv=2,
        head_dim=64,
        index_dim=64,
        max_total_q=9,
        max_seqlen_k=99,
        topk=3,
        softmax_scale=0.5,
    )
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert repr(other) == repr(plan)
        layer = random_layer([9], [9])
        np.testing.assert_array_equal(
            openmsa.msa_attention(**layer, plan=other), openmsa.msa_attention(**layer, plan=plan)
        )
