"""kl_out of msa_attention: the KL loss of a training step computed in backward, beside a step that computes it in forward."""

import openmsa
import openmsa.torch
import pytest
import torch
from layers import OPTIONS, torch_layer
from openmsa.torch import MSAAttention
from support import pick
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

BOUNDS = ("cu_seqlens_q", "cu_seqlens_k")
NAMES = ("q", "k", "v", "index_q", "index_k")
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
SHAPE = {"hidden_size": 48, "num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64, "index_dim": 64}


@pytest.fixture
def layer(device):
    return torch_layer([130, 1, 40], [130, 200, 40], device=device, dtype=DTYPE[device])


@pytest.fixture
def kl_out(device):
    return torch.full((), -1.0, device=device)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return MSAAttention(**SHAPE, block_size=32, topk=2, kl_in_backward=True)


def inputs_of(layer, *names):
    return [layer[name].detach().requires_grad_() for name in names or NAMES]


def attend(inputs, layer, **options):
    where = pick(layer, *BOUNDS) if "cu_seqlens_q" in layer else {}
    return openmsa.torch.msa_attention(*inputs, **where, **OPTIONS, return_kl=True, return_lse=True, **options)


def loss_of(o, kl, lse):
    return o.float().square().mean() + 3 * kl + lse.square().mean()


def assert_same(result, expected):
    """Bitwise on the CPU; a GPU computes both gradients in one kernel, in another order."""
    if result.is_cuda:
        assert (result.double() - expected.double()).norm() <= 1e-2 * expected.double().norm()
    else:
        assert torch.equal(result, expected)


class Ran(TorchDispatchMode):
    """Names of openmsa's operators that ran, in backward too: in this thread, whatever the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __enter__(self):
        torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.autograd.set_multithreading_enabled(True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "openmsa":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_is_that_with_the_loss_in_forward(layer, kl_out, reduction, weights):
    options = {
        "kl_reduction": reduction,
        "kl_weights": torch.arange(171, device=kl_out.device) % 3 if weights else None,
    }
    mine, theirs = inputs_of(layer), inputs_of(layer)
    o, expected_kl, lse = attend(theirs, layer, **options)
    loss_of(o, expected_kl, lse).backward()
    mine_o, kl, mine_lse = attend(mine, layer, **options, kl_out=kl_out)
    assert kl.shape == () and kl.dtype == torch.float32 and kl == 0 and kl_out == -1, "not before backward"
    assert torch.equal(mine_o, o) and torch.equal(mine_lse, lse)
    loss_of(mine_o, kl, mine_lse).backward()
    assert_same(kl_out, expected_kl.detach())
    for ours, exact in zip(mine, theirs):
        assert_same(ours.grad, exact.grad)


def test_backward_computes_what_the_loss_used(layer, kl_out):
    gradients = lambda inputs: [x.grad is not None for x in inputs]  # noqa: E731
    for use, operator, reached in (
        (lambda o, kl, lse: o.float().sum(), "sparse_attention_backward", [True] * 3 + [False] * 2),
        (lambda o, kl, lse: lse.sum(), "sparse_attention_backward", [True] * 3 + [False] * 2),
        (lambda o, kl, lse: kl, "kl_loss", [False] * 3 + [True] * 2),
        (loss_of, "msa_attention_backward", [True] * 5),
    ):
        inputs, before = inputs_of(layer), kl_out.fill_(-1).clone()
        with Ran() as forward:
            results = attend(inputs, layer, kl_out=kl_out)
        assert "kl_loss" not in forward.names
        with Ran() as backward:
            use(*results).backward()
        assert backward.names == [operator] and gradients(inputs) == reached
        assert (kl_out == before) == (operator == "sparse_attention_backward")


def test_a_frozen_branch_costs_nothing(layer, kl_out):
    main, index = inputs_of(layer, "q", "k", "v"), inputs_of(layer, "index_q", "index_k")
    detached = [x.detach() for x in main]
    o, kl, lse = attend(detached + index, layer, kl_out=kl_out)
    assert not o.requires_grad and not lse.requires_grad and kl.requires_grad
    with Ran() as ran:
        kl.backward()
    assert ran.names == ["kl_loss"] and all(x.grad is not None for x in index) and kl_out > 0
    o, kl, lse = attend(main + [x.detach() for x in index], layer, kl_out=kl_out.fill_(-1))
    loss_of(o, kl, lse).backward()
    assert all(x.grad is not None for x in main) and kl_out > 0, "its loss is still told"


def test_two_micro_batches_before_their_backwards(layer, kl_out):
    """They share the tensor; each backward writes its own value."""
    mine, theirs = inputs_of(layer), inputs_of(layer)
    weights = [torch.arange(171, device=kl_out.device) % 2 == parity for parity in (0, 1)]
    losses = [loss_of(*attend(mine, layer, kl_weights=w, kl_out=kl_out)) for w in weights]
    expected = [attend(theirs, layer, kl_weights=w) for w in weights]
    for loss, parts in zip(losses, expected):
        loss.backward()
        loss_of(*parts).backward()
        assert_same(kl_out, parts[1].detach())
        kl_out.fill_(-1)
    for ours, exact in zip(mine, theirs):
        assert_same(ours.grad, exact.grad)


def test_without_gradients_nothing_is_computed(layer, kl_out):
    for warmup in (False, True):
        with torch.no_grad(), Ran() as ran:
            o, kl, lse = attend(inputs_of(layer), layer, kl_out=kl_out, warmup=warmup)
        assert kl == 0 and kl_out == -1 and "kl_loss" not in ran.names
        assert torch.equal(o, attend(inputs_of(layer), layer, warmup=warmup)[0])
    o, kl, lse = attend([x.detach() for x in inputs_of(layer)], layer, kl_out=kl_out)
    assert kl == 0 and not kl.requires_grad


def test_warmup_tells_the_loss_of_the_whole_history(layer, kl_out):
    mine, theirs = inputs_of(layer), inputs_of(layer)
    expected = attend(theirs, layer, warmup=True)
    loss_of(*expected).backward()
    results = attend(mine, layer, warmup=True, kl_out=kl_out)
    assert results[1] == 0
    loss_of(*results).backward()
    assert torch.equal(kl_out, expected[1].detach())
    for ours, exact in zip(mine, theirs):
        assert torch.equal(ours.grad, exact.grad)


@pytest.mark.parametrize("weights", [None, torch.arange(150) % 3])
def test_compiled(weights):
    """backward of the compiled graph writes into an input of forward."""
    layer = torch_layer([150], [150])

    def loss(kl_out, *inputs):
        return loss_of(*attend(inputs, {}, kl_weights=weights, kl_out=kl_out))

    eager, compiled = inputs_of(layer), inputs_of(layer)
    outs = torch.full((), -1.0), torch.full((), -1.0)
    loss(outs[0], *eager).backward()
    step = torch.compile(loss, fullgraph=True, backend="aot_eager")
    result = step(outs[1], *compiled)
    assert outs[1] == -1
    result.backward()
    assert torch.equal(*outs) and outs[0] > 0
    for a, b in zip(eager, compiled):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = torch_layer([150], [150])
    mine, theirs = inputs_of(layer), inputs_of(layer)
    kl_out, scale = torch.zeros(()), 65536.0 if dtype == torch.float16 else 1.0
    with torch.autocast("cpu", dtype):
        results, expected = attend(mine, layer, kl_out=kl_out), attend(theirs, layer)
    assert results[0].dtype == dtype and results[1].dtype == torch.float32
    for parts in (results, expected):
        (scale * loss_of(*parts)).backward()
    assert torch.equal(kl_out, expected[1].detach())
    for ours, exact in zip(mine, theirs):
        assert ours.grad.dtype == torch.float32 and ours.grad.isfinite().all() and torch.equal(ours.grad, exact.grad)


def test_opcheck(layer, kl_out):
    indices = openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], **pick(layer, *BOUNDS), **OPTIONS)
    operator, where = torch.ops.openmsa.sparse_attention_with_kl.default, layer | OPTIONS
    for weights, divisor in ((None, None), (torch.rand(171, device=kl_out.device), torch.full_like(kl_out, 3.0))):
        given = (*inputs_of(layer), indices, kl_out, weights, divisor)
        rest = [where.get(argument.name) for argument in operator._schema.arguments[len(given) :]]
        torch.library.opcheck(operator, (*given, *rest))


def test_a_nan_stays_in_its_branch():
    layer = torch_layer([100], [100])
    kl_out = torch.zeros(())
    inputs, clean = inputs_of(layer), inputs_of(layer)
    indices = openmsa.torch.select_blocks(layer["index_q"], layer["index_k"], **OPTIONS)
    kl_weights = torch.ones(100)
    for index_q in (inputs[3], clean[3]):
        spoiled = index_q is inputs[3]
        with torch.no_grad():
            index_q[5] = float("nan") if spoiled else 0
        arguments = (*(inputs if spoiled else clean), indices, kl_out, kl_weights)
        o, lse, kl = torch.ops.openmsa.sparse_attention_with_kl(*arguments, **OPTIONS)
        (o.sum() + kl).backward()
        assert kl_out.isnan() == spoiled
    for ours, exact in zip(inputs[:3], clean[:3]):
        assert torch.equal(ours.grad, exact.grad)


def test_second_derivatives_are_refused():
    inputs = inputs_of(torch_layer([100], [100]))
    o, kl, _ = attend(inputs, {}, kl_out=torch.zeros(()))
    for result, wanted in ((kl, inputs[3]), (o.sum() + kl, inputs[3]), (o.sum(), inputs[0])):
        (gradient,) = torch.autograd.grad(result, wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative|no autograd formula"):
            (gradient.square().sum() + wanted.sum()).backward()


def test_what_is_refused(layer, device):
    inputs = inputs_of(layer)
    for kl_out, kind, message in (
        (0.0, TypeError, "kl_out: expected a torch.Tensor, got float"),
        (torch.zeros(1, device=device), ValueError, r"kl_out: expected torch.float32 of shape \[\] on .* got .* \[1\]"),
        (torch.zeros((), device=device, dtype=torch.float64), ValueError, "kl_out: expected .* got torch.float64"),
        (torch.zeros((), device="meta"), ValueError, "kl_out: expected .* got torch.float32 .* on meta"),
        (torch.zeros((), device=device, requires_grad=True), ValueError, "kl_out: expected a tensor that needs no"),
    ):
        with pytest.raises(kind, match=message):
            attend(inputs, layer, kl_out=kl_out)
    with pytest.raises(ValueError, match="kl_out: expected return_kl=True beside it"):
        openmsa.torch.msa_attention(*inputs, **OPTIONS, kl_out=torch.zeros((), device=device))
    with pytest.raises(ValueError, match="kl_weights: expected shape"):
        attend(inputs, layer, kl_out=torch.zeros((), device=device), kl_weights=torch.ones(3, device=device))


# --------------------------------------------------------------------------------------------------------- the module


def gradients_of(module, step):
    module.zero_grad()
    step()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def in_forward(module):
    """A copy with the same weights that computes the loss in forward."""
    copy = MSAAttention(**SHAPE, **module.options)
    copy.load_state_dict(module.state_dict())
    copy.warmup = module.warmup
    return copy


@pytest.mark.parametrize("warmup", [False, True])
def test_module(module, warmup):
    module.warmup, x = warmup, torch.randn(150, 48)
    other = in_forward(module)
    kl_losses = []

    def step(layer):
        y, kl = layer(x)
        (y.square().mean() + kl).backward()
        kl_losses.append(kl.detach())

    result, expected = (gradients_of(layer, lambda layer=layer: step(layer)) for layer in (module, other))
    assert torch.equal(module.kl_value, kl_losses[1]) and kl_losses[0] == 0 and other.kl_value is None
    for name, gradient in expected.items():
        assert torch.equal(result[name], gradient), name
    assert "kl_value" not in module.state_dict()
    module.eval()
    assert module(x)[1] is None


def test_module_in_half_precision(module):
    """The value stays in fp32."""
    module = module.to(torch.bfloat16)
    y, kl = module(torch.randn(150, 48, dtype=torch.bfloat16))
    (y.float().square().mean() + kl).backward()
    assert module.kl_value.dtype == torch.float32 and module.kl_value > 0


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(module, use_reentrant, warmup):
    module.warmup, x = warmup, torch.randn(150, 48, requires_grad=True)

    def step(*, recomputes):
        module.kl_value.fill_(-1)
        y, kl = checkpoint(module, x, use_reentrant=use_reentrant) if recomputes else module(x)
        assert kl == 0
        (y.square().mean() + kl).backward()
        values.append(module.kl_value.clone())

    values = []
    expected, result = (gradients_of(module, lambda r=r: step(recomputes=r)) for r in (False, True))
    assert torch.equal(*values) and values[0] > 0
    for name, gradient in expected.items():
        assert torch.equal(result[name], gradient), name


def test_compiled_module(module):
    torch._dynamo.reset()
    x, values = torch.randn(100, 48), []
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def step(call):
        y, kl = call(x)
        (y.square().mean() + kl).backward()
        values.append(module.kl_value.clone())

    expected, result = (gradients_of(module, lambda call=call: step(call)) for call in (module, compiled))
    torch.testing.assert_close(*values)
    for name, gradient in expected.items():
        torch.testing.assert_close(result[name], gradient)


def test_grad_scaler(module):
    """fp16 under PyTorch's loss scale: no step is skipped, and the value is not scaled."""
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=65536.0), torch.optim.SGD(module.parameters(), 0.1)
    x, before = torch.randn(150, 48), module.indexer.q_proj.weight.detach().clone()
    with torch.autocast("cpu", torch.float16):
        expected = in_forward(module)(x)[1]
        y, kl = module(x)
        loss = y.float().square().mean() + kl
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0 and not torch.equal(module.indexer.q_proj.weight, before)
    assert torch.equal(module.kl_value, expected.detach())
