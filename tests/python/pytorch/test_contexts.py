"""Random surroundings: whatever contexts of PyTorch lie around a layer, one in another, its numbers stay what they are."""

import contextlib
import functools
import random

import openmsa.torch
import pytest
import torch
from openmsa.torch import MSAAttention
from torch.utils.checkpoint import checkpoint

SHAPE = {"hidden_size": 48, "num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64}
BOUNDS = torch.tensor([0, 60, 61, 150], dtype=torch.int32)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class PassThrough(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "double": lambda: default_dtype(torch.float64),
    "half": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "functions": lambda: torch.overrides.BaseTorchFunctionMode(),
    "dispatch": PassThrough,
    "profiler": lambda: torch.autograd.profiler.profile(),
}
WITHOUT_GRADIENT = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
WRAPPERS = {
    "nothing": lambda call: call,
    "checkpoint": lambda call: functools.partial(checkpoint, call, use_reentrant=False),
    "reentrant checkpoint": lambda call: functools.partial(checkpoint, call, use_reentrant=True),
    "compiled": lambda call: torch.compile(call, backend="aot_eager"),
}


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    module = MSAAttention(**SHAPE, block_size=32, topk=2)
    module.warmup = True  # no selection, which autocast's rounding might turn
    return module


@pytest.mark.parametrize("seed", range(40))
def test_random_contexts(module, seed):
    torch._dynamo.reset()
    draw = random.Random(seed)
    x = torch.randn(150, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    wrapper = draw.choice(list(WRAPPERS))
    names = draw.sample(list(CONTEXTS), draw.randint(1, 4))
    if wrapper == "compiled":  # PyTorch's compiler does not trace under modes of its users
        names = [name for name in names if name not in ("functions", "dispatch", "meta", "anomaly", "saved on the CPU")]
    if "meta" in names:  # there save_on_cpu copies from nowhere, without us too
        names = [name for name in names if name != "saved on the CPU"]
    last = draw.choice([None, None, *WITHOUT_GRADIENT])
    expected_y, expected_kl = module(x, BOUNDS)
    (expected_y.square().mean() + expected_kl).backward()
    exact = {name: p.grad.clone() for name, p in module.named_parameters()} | {"x": x.grad.clone()}
    module.zero_grad()
    x.grad = None
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(CONTEXTS[name]())
        if last:
            stack.enter_context(WITHOUT_GRADIENT[last]())
        y, kl = WRAPPERS[wrapper](module)(x, BOUNDS)
    tolerance = 3e-2 if is_autocast(names) else 1e-5
    assert (y.float() - expected_y).norm() <= tolerance * expected_y.norm(), (names, last, wrapper)
    assert abs(kl - expected_kl) <= tolerance * expected_kl
    if last:
        return
    (y.float().square().mean() + kl).backward()
    for name, gradient in [*((name, p.grad) for name, p in module.named_parameters()), ("x", x.grad)]:
        assert (gradient - exact[name]).norm() <= 2 * tolerance * exact[name].norm(), (name, names, wrapper)
    module.zero_grad()


def is_autocast(names):
    """The innermost one counts."""
    switches = [name for name in names if name.startswith("autocast")]
    return bool(switches) and switches[-1] == "autocast"


@pytest.mark.parametrize("randomness", ["error", "different"])
def test_vmap(randomness):
    q, k = torch.randn(3, 20, 2, 64), torch.randn(3, 20, 2, 64)
    result = torch.func.vmap(openmsa.torch.dense_attention, randomness=randomness)(q, k, k)
    for one, expected in zip(result, (openmsa.torch.dense_attention(*rows) for rows in zip(q, k, k))):
        assert torch.equal(one, expected)


def test_functional_call_and_ensembles(module):
    other = {name: parameter * 0.5 for name, parameter in module.named_parameters()}
    x = torch.randn(50, 48)
    y, _ = torch.func.functional_call(module, other, (x,))
    assert not torch.allclose(y, module(x)[0])
