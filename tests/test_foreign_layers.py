"""Layers of users' models: masks, spectral norm and weight norm, and modules that cannot be pruned."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparsegan as sg
from sparsegan.compress import Compressor
from sparsegan.copying import bake, copy_model
from sparsegan.gans import Objective, dcgan
from sparsegan.pruning.schedule import GradualPruning


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def halved(conv: nn.Module) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", Half())
    return conv


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral norm, hook": lambda conv: nn.utils.spectral_norm(conv),
    "spectral norm": lambda conv: parametrizations.spectral_norm(conv),
    "weight norm, hook": lambda conv: nn.utils.weight_norm(conv),
    "weight norm": lambda conv: parametrizations.weight_norm(conv),
    "orthogonal": lambda conv: parametrizations.orthogonal(conv),
    "of one's own": halved,
    "mask": lambda conv: prune.l1_unstructured(conv, "weight", 0.4),
    "filters' mask": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=1),
    "mask twice": lambda conv: prune.random_unstructured(prune.l1_unstructured(conv, "weight", 0.3), "weight", 0.3),
    "mask of weight and bias": lambda conv: prune.l1_unstructured(
        prune.l1_unstructured(conv, "weight", 0.4), "bias", 0.5
    ),
}


@pytest.fixture(params=COMPUTED)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def network(kind: str) -> Any:
    """A network in the middle of training, after one forward and one backward pass."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its older functions
        make = COMPUTED[kind]
        net = nn.Sequential(
            make(nn.Conv2d(3, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            make(nn.ConvTranspose2d(8, 8, 4, 2, 1)),
            nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        ).double()
    net(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().mean().backward()
    return net


def given() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def evaluated(net: nn.Module) -> Tensor:
    copied = bake(copy_model(net)).eval()
    with torch.no_grad():
        return copied(given())


def quietly(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def test_a_copy_computes_the_same_and_shares_no_memory(kind: str) -> None:
    net = network(kind)
    before = {name: one.detach().clone() for name, one in net.state_dict().items()}
    copied = copy_model(net)
    for training in (False, True, True):
        ours, theirs = (model.train(training)(given()) for model in (copied, net))
        assert torch.equal(ours, theirs)  # in training the power iteration continues from equal vectors
    net.load_state_dict(before)
    held = {one.data_ptr() for one in net.state_dict().values()}
    assert not held & {one.data_ptr() for one in copied.state_dict().values()}
    optimizer = torch.optim.SGD(copied.parameters(), 0.1)
    copied(given()).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
    assert len(optimizer.param_groups[0]["params"]) == len(list(net.parameters()))


def test_baking_computes_as_in_evaluation(kind: str) -> None:
    net = network(kind)
    plain = bake(copy_model(net))
    assert plain.training
    assert type(plain[0]) is nn.Conv2d
    assert type(plain[3]) is nn.ConvTranspose2d
    assert not any(module._forward_pre_hooks for module in plain.modules())
    assert all(one.requires_grad for one in plain.parameters())
    torch.testing.assert_close(plain.eval()(given()), net.eval()(given()), rtol=1e-12, atol=1e-12)


def test_sparsify_takes_the_weight_of_evaluation(kind: str) -> None:
    net = network(kind)
    wanted = evaluated(net)
    vectors = {name: one.clone() for name, one in net.named_buffers() if name.endswith(("_u", "_v"))}
    masks = [getattr(net[index], "weight_mask", None) for index in (0, 3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sg.sparsify(net)
    said = [
        str(one.message) for one in caught if "folded" in str(one.message) or "plain from now on" in str(one.message)
    ]
    folded = "mask" not in kind or "bias" in kind
    assert len(said) == folded
    if folded:
        assert all(name in said[0] for name in ("0:", "3:"))
    torch.testing.assert_close(net.eval()(given()), wanted, rtol=1e-9, atol=1e-9)
    for index, mask in zip((0, 3), masks, strict=True):
        assert not net[index]._forward_pre_hooks
        if mask is not None:
            assert torch.equal(net[index].mask(), mask.bool())
    assert len(vectors) in (0, 4)

    again = network(kind)
    quietly(sg.sparsify, again, 0.8)
    assert [round(layer.sparsity, 1) for _, layer in sg.sparse_layers(again)] == [0.8] * 3


def test_the_mask_is_the_support_where_kept_weights_are_zero() -> None:
    conv = nn.Conv2d(2, 4, 3)
    mask = torch.rand(conv.weight.shape) < 0.5
    prune.custom_from_mask(conv, "weight", mask)
    with torch.no_grad():
        conv.weight_orig.zero_()
    layer = sg.sparsify(nn.Sequential(conv))[0]
    assert torch.equal(layer.mask(), mask)
    whole = mask.view(2, 2, 2, 3, 3).any(1, keepdim=True).expand(2, 2, 2, 3, 3).reshape(mask.shape)
    assert torch.equal(sg.SparseConv2d.from_dense(conv, granularity="vector:2").mask(), whole)


def test_many_masked_layers_share_nothing() -> None:
    net = nn.Sequential(*[nn.Conv2d(4, 4, 3) for _ in range(9)])
    for conv in net:
        prune.l1_unstructured(conv, "weight", 0.5)
    sg.sparsify(net, 0.5)
    assert len(list(sg.sparse_layers(net))) == 9


@pytest.mark.parametrize("make", [lambda conv: conv, COMPUTED["mask"], COMPUTED["weight norm"]])
def test_a_weight_that_is_shared_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    first, second = make(nn.Conv2d(4, 4, 3)), make(nn.Conv2d(4, 4, 3))
    for name in ("weight", "weight_orig"):
        if name in first._parameters:
            second._parameters[name] = first._parameters[name]
    if parametrize.is_parametrized(first):
        second.parametrizations.weight.original1 = first.parametrizations.weight.original1
    net = nn.Sequential(first, second)
    with pytest.raises(ValueError, match="1 and 0 share one weight"):
        sg.sparsify(net, 0.5)
    assert net[0] is first


def test_engine_files_export_and_reordering_take_such_models(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    wanted = evaluated(net)
    state = {name: one.clone() for name, one in net.state_dict().items()}
    engine = sg.optimize_for_inference(net, given())
    torch.testing.assert_close(engine(given()), wanted, rtol=1e-6, atol=1e-6)
    assert "runs in torch" not in "".join(step.why for step in engine.steps() if "conv" in step.backend)
    macs = sg.count_macs(net, given())
    assert macs.dense == 2 * (3 * 8 * 9 * 36 + 8 * 8 * 16 * 36 + 8 * 3 * 9 * 144)
    assert all(torch.equal(one, state[name]) for name, one in net.state_dict().items())

    single = copy_model(net).float()
    sg.export_onnx(single, given().float(), tmp_path / "g.onnx")
    sg.save(net, tmp_path / "g.safetensors", values="float64")
    other = network(kind)
    with torch.no_grad():
        for one in other.parameters():
            one.mul_(1.5)
    sg.load(other, tmp_path / "g.safetensors")
    torch.testing.assert_close(evaluated(other), wanted, rtol=1e-12, atol=1e-12)
    reordered = sg.reorder_channels(single.eval(), given().float(), {"0": "vector:2", "*": "element"}, 0.5)
    torch.testing.assert_close(reordered.double()(given()), wanted, rtol=1e-3, atol=1e-4)


def test_compressing_with_a_discriminator_of_this_kind(kind: str) -> None:
    """Both networks are in the middle of training. The discriminator keeps its norm or mask and continues to learn."""
    generator, discriminator = network(kind).float(), network(kind).float()
    objective = Objective(
        lambda g, d, fake, batch: {"gen": -d(fake).mean()},
        lambda g, d, fake, batch: {"dis": F.relu(1 - d(batch)).mean() + F.relu(1 + d(fake)).mean()},
        lambda g, batch: g(batch)[..., ::2, ::2],
    )
    compressor = quietly(
        Compressor, generator, discriminator, objective, GradualPruning(steps=4, target=0.8, every=1), quiet=True
    )
    judge = compressor.task.discriminator
    assert judge.state_dict().keys() == discriminator.state_dict().keys()
    before = copy.deepcopy(judge.state_dict())
    result = compressor.fit([torch.randn(2, 3, 6, 6)])
    assert all(round(layer.sparsity, 1) == 0.8 for _, layer in sg.sparse_layers(result.generator))
    moved = [name for name, one in judge.state_dict().items() if not torch.equal(one, before[name])]
    assert any(name.startswith("0.") for name in moved)
    if "mask" in kind:
        assert torch.equal(judge.state_dict()["0.weight_mask"], before["0.weight_mask"])


# ---------------------------------------------------------------------- nothing to prune


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel)


class Modulated(nn.Module):
    """A convolution as in style-based generators: the weight has a leading dimension for the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[0])


class Own(nn.Conv2d):
    pass


class OwnSignal(nn.Conv1d):
    pass


class Constant(nn.Module):
    """The constant input of style-based generators. Its shape is that of a weight, but no convolution uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.start.expand(len(x), -1, -1, -1)


UNPRUNABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "3-D": (lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ConvTranspose3d(4, 3, 3)), "0 is a Conv3d; .*1 is a ConvTr"),
    "own 1-D": (lambda: nn.Sequential(OwnSignal(3, 4, 3)), r"0 is a .*OwnSignal, not torch\.nn's own layer"),
    "functional": (lambda: nn.Sequential(nn.ReLU(), Functional()), r"1 holds kernel of shape \(4, 3, 3, 3\)"),
    "modulated": (
        lambda: nn.Sequential(nn.ReLU(), Modulated()),
        r"1 holds weight of shape \(4, 3, 3, 3\).*can be pruned as sparsegan\.ModulatedConv",
    ),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), "is scripted; prune it before"),
    "scripted inside": (lambda: nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))), "0 is scripted"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "0 is a LazyConv2d that has seen no input; call the model"),
    "own class": (lambda: nn.Sequential(Own(3, 4, 3)), r"0 is a .*Own, not torch\.nn's own layer"),
    "own class, normed": (
        lambda: nn.Sequential(parametrizations.weight_norm(Own(3, 4, 3))),
        r"0 is a .*, not torch\.nn's own layer",
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), Constant()), "has no convolution; "),
    "empty": (nn.Sequential, "Sequential has no convolution"),
}


@pytest.mark.parametrize("name", UNPRUNABLE)
def test_nothing_to_prune_is_an_error(name: str) -> None:
    make, words = UNPRUNABLE[name]
    model = make()
    for prune_it in (
        lambda: sg.sparsify(model, 0.5),
        lambda: sg.sparsify(model),
        lambda: sg.pruning.allocation.allocate(model, 0.5),
        lambda: Compressor(model, nn.Conv2d(3, 1, 3), dcgan.objective, GradualPruning(steps=2)),
    ):
        with pytest.raises(ValueError, match=words):
            prune_it()
    with pytest.raises(ValueError, match="no sparse layer to shrink"):
        sg.shrink(model, 0.5)


@pytest.mark.parametrize("name", [name for name in UNPRUNABLE if name not in ("linear", "empty", "scripted")])
def test_one_warning_names_the_layers_that_stay_dense(name: str) -> None:
    make, words = UNPRUNABLE[name]
    model = nn.Sequential(nn.Conv2d(3, 3, 3), make(), Constant())
    with pytest.warns(UserWarning, match="stay dense") as said:
        sg.sparsify(copy.deepcopy(model) if "lazy" not in name else model, 0.5)
    assert len(said) == 1
    assert all(f"1.{part} " in str(said[0].message) for part in words.split(" ", 1)[0])
    other = nn.Sequential(nn.Conv2d(3, 3, 3), make(), Constant())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sg.sparse_layers(sg.sparsify(other, 0.5, exclude="1*")))) == 1  # excluded: no warning


def test_a_sparse_model_is_pruned_further() -> None:
    model = sg.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3)), 0.5)
    assert sg.sparsify(model, 0.9)[0].sparsity == pytest.approx(0.9, abs=0.01)
    with pytest.raises(ValueError, match="exclude has"):
        sg.sparsify(model, 0.9, exclude="nobody")
