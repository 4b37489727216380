"""Tools of torch and protocols of Python on sparse layers: each works, or raises an error that says why not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import sparsegan as sg
from sparsegan.geometry import Geometry


def model(sparsity: float = 0.8) -> nn.Sequential:
    return nn.Sequential(
        sg.SparseConv2d(4, 8, 3, padding=1, sparsity=sparsity),
        nn.ReLU(),
        sg.SparseConvTranspose2d(8, 4, 4, 2, 1, sparsity=sparsity, granularity="input:4"),
        sg.SparseConv2d(4, 6, 3, padding=1, padding_mode="reflect", sparsity=sparsity, granularity="vector:2"),
    )


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


X = torch.randn(2, 4, 8, 8)


class Sizes(nn.Module):
    """A transposed convolution with a given output size, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = sg.SparseConvTranspose2d(4, 4, 3, stride=2, sparsity=0.7)
        self.twice = sg.SparseConv2d(4, 4, 3, padding=1, sparsity=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.up(x, [18, 18])))


@pytest.mark.parametrize("make", [model, Sizes])
def test_symbolic_trace_keeps_sparse_layers_as_leaves(make: Callable[[], nn.Module]) -> None:
    whole = make()
    graph = fx.symbolic_trace(whole)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    sparse = [name for name, module in whole.named_modules() if hasattr(module, "values")]
    assert set(sparse) <= set(called)
    assert not [node for node in graph.graph.nodes if node.op in ("call_function", "call_method", "get_attr")]
    close(graph(X), whole(X))
    close(copy.deepcopy(graph)(X), whole(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("sparsity", [0.2, 0.9])
def test_jit_trace_serves_other_sizes(sparsity: float) -> None:
    whole = model(sparsity)
    with pytest.warns(UserWarning, match=r"torch.jit.trace records sparse layers as torch's own dense"):
        traced = torch.jit.trace(whole, (X,))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for shape in ((2, 4, 8, 8), (5, 4, 8, 8), (1, 4, 12, 10)):
        x = torch.randn(shape)
        close(traced(x), whole(x))
        close(loaded(x), whole(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [model, Sizes, lambda: model()[0]])
def test_jit_script_says_what_to_do(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile SparseConv.* sparsegan.densify\(model\)"):
        torch.jit.script(make())


@pytest.mark.parametrize("backend", ["sparse", "dense"])
def test_functional_transforms(backend: str) -> None:
    whole = model()
    for layer in (whole[0], whole[2], whole[3]):
        layer.backend = backend
    parameters = dict(whole.named_parameters())
    close(functional_call(whole, {name: 2 * p for name, p in parameters.items()}, (X,)), _doubled(whole)(X))

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(whole, parameters, (x,)).square().sum()

    with pytest.warns(UserWarning, match=r"torch.func \(vmap, grad, jvp, ...\) runs sparse layers as torch's own"):
        gradients = grad(loss)(parameters, X)
    expected = dict(zip(parameters, torch.autograd.grad(loss(parameters, X), list(parameters.values())), strict=True))
    each = vmap(grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))(parameters, X)
    for name, one in expected.items():
        torch.testing.assert_close(gradients[name], one, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(each[name].sum(0), one, rtol=1e-4, atol=1e-4)
    batches = torch.randn(3, 2, 4, 8, 8)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            close(vmap(whole)(batches), torch.stack([whole(x) for x in batches]))
    small = X[:1, :, :3, :3]
    close(jacrev(whole)(small), torch.autograd.functional.jacobian(whole, small))
    direction = torch.randn_like(small)
    _, slope = jvp(whole, (small,), (direction,))
    close(slope, torch.autograd.functional.jvp(whole, small, direction)[1])
    # Each member of the ensemble has another support.
    members = [model() for _ in range(3)]
    stacked = vmap(lambda p, b, x: functional_call(whole, (p, b), (x,)), in_dims=(0, 0, None))
    close(stacked(*stack_module_state(members), X), torch.stack([member(X) for member in members]))


def _doubled(whole: nn.Module) -> nn.Module:
    twin = copy.deepcopy(whole)
    for parameter in twin.parameters():
        parameter.data.mul_(2)
    return twin


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_compile_and_export_where_eager_runs_dense(sparsity: float) -> None:
    """On a CPU no sparse kernel takes float16. Thus "auto" runs dense, and so do compiled and exported programs."""
    torch.compiler.reset()
    whole, x = model(sparsity).half(), X.half()
    expected = whole(x)
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=2e-2, atol=2e-2)
    compiled(x).sum().backward()
    assert whole[0].values.grad.dtype == torch.float16
    program = torch.export.export(whole.eval(), (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=2e-2, atol=2e-2)
    whole[0].backend = "sparse"
    with pytest.raises(RuntimeError, match="dtype must be float32, float64 or bfloat16 on a CPU"):
        whole(x)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu(padding_mode: str, dtype: torch.dtype) -> None:
    layer = sg.SparseConv2d(4, 6, 3, padding=1, sparsity=0.8, padding_mode=padding_mode).to(dtype)
    y = layer(X.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer.to_dense()(X.to(dtype)), rtol=2e-2, atol=2e-2)
    y.sum().backward()
    assert bool(layer.values.grad.isfinite().all())


def _saved(whole: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    known = [nn.Sequential, nn.ReLU, sg.SparseConv2d, sg.SparseConvTranspose2d, Geometry, getattr, set]
    with torch.serialization.safe_globals(known):
        return torch.load(file, weights_only=True)


PROTOCOLS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda whole: pickle.loads(pickle.dumps(whole)),
    "torch.save": _saved,
    "share_memory": lambda whole: copy.deepcopy(whole).share_memory(),
    "to": lambda whole: copy.deepcopy(whole).double().float(),
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize("warm", [True, False])
def test_protocols(protocol: Callable[[nn.Module], nn.Module], warm: bool) -> None:
    whole = model()
    whole[0].backend = "dense"
    if warm:
        whole(X)
        with torch.no_grad():
            whole(X)
    again = protocol(whole)
    with torch.no_grad():
        close(again(X), whole(X))
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in whole.named_parameters()]
    vector = nn.utils.parameters_to_vector(again.parameters())
    assert vector.numel() == sum(parameter.numel() for parameter in whole.parameters())
    nn.utils.vector_to_parameters(2 * vector, again.parameters())
    with torch.no_grad():
        close(again(X), sg.densify(copy.deepcopy(again))(X))


def test_attributes_of_a_dense_layer() -> None:
    with pytest.raises(AttributeError, match=r"no dense `weight`; .* layer.dense_weight\(\) or layer.to_dense\(\)"):
        _ = model()[0].weight
    assert not hasattr(model()[0], "weight")


def test_compile_after_an_engine_was_made() -> None:
    """torch.fx, with which an engine is made, leaves nothing behind that torch.compile refuses."""
    layer = sg.SparseConv2d(4, 4, 3, padding=1, sparsity=0.5)
    sg.optimize_for_inference(nn.Sequential(copy.deepcopy(layer)), X)
    torch._dynamo.reset()
    close(torch.compile(layer, fullgraph=True, backend="aot_eager")(X), layer(X))
