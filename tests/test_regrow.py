"""Regrowth: the gradient of absent weights, the exchange of weights by this gradient, and compressions with both."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_gans
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import assert_exact
from hypothesis import given
from hypothesis import strategies as st
from test_compress import QUIET, SMALL, images, small_gan
from test_nn import convolutions
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.compress import CompressionConfig, Compressor, RunConfig
from sparsegan.compress import step as step_module
from sparsegan.data import Batches
from sparsegan.gans import Objective, dcgan
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.regrow import dense_gradients, regrow
from sparsegan.pruning.schedule import GradualPruning, OneShot
from sparsegan.pruning.surgery import sparsify


def gradients_of(net: nn.Module, x: Tensor, backward: Callable[[Tensor, Tensor], None]) -> list[Tensor]:
    """The output and the gradients of input and parameters after `backward(x, y)`."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    backward(x, y)
    assert x.grad is not None
    return [y.detach().clone(), x.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
        assert torch.equal(one.signbit(), other.signbit())


# The gradient of absent weights


@given(convolutions(), st.sampled_from(["sparse", "dense"]), st.sampled_from([1.0, 0.2]), st.booleans())
def test_dense_gradients_are_those_of_the_dense_layer_and_change_nothing_else(
    problem: tuple[nn.Module, Tensor, str], backend: str, slope: float, batched: bool
) -> None:
    dense, x, _ = problem
    x = x if batched else x[0]
    layer = sparsify(nn.Sequential(copy.deepcopy(dense)), 0.6)
    layer[0].backend, layer[0].negative_slope = backend, slope
    twin = layer[0].to_dense()
    gy = torch.randn(layer(x).shape, dtype=x.dtype)

    def backward(x: Tensor, y: Tensor) -> None:
        y.backward(gy)

    plain = gradients_of(layer, x, backward)
    with dense_gradients(layer) as gradients:
        assert_same_bits(gradients_of(layer, x, backward), plain)
        gradients_of(layer, 2 * x, backward)  # gradients of several backward passes add up
    for factor in (1, 2):
        nn.functional.leaky_relu(twin(factor * x), slope).backward(gy)
    assert list(gradients) == ["0"]
    assert_exact(gradients["0"], twin.weight.grad)
    kept = gradients["0"].clone()
    gradients_of(layer, x, backward)  # outside the context nothing is added
    assert torch.equal(gradients["0"], kept)
    assert not layer[0]._forward_hooks


def network(**how: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect", **how),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2, **how),
        nn.Softplus(),
        nn.Conv2d(4, 1, 3, **how),
    )


def test_second_derivatives_count_and_gradients_of_autograd_grad_do_not() -> None:
    """With a penalty on the input gradient, absent weights get all gradients that `values.grad` would get."""
    net = sparsify(network(dtype=torch.float64), 0.5)
    twin = sg.densify(copy.deepcopy(net))
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)

    def penalty(x: Tensor, y: Tensor) -> None:
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (y.mean() + slope.square().sum()).backward()

    for layer in (net[0], net[2], net[4]):
        layer.backend = "sparse"
    with dense_gradients(net) as gradients:
        gradients_of(net, x, penalty)
    gradients_of(twin, x, penalty)
    for name, gradient in gradients.items():
        assert_exact(gradient, twin.get_submodule(name).weight.grad)


def test_autocast_and_an_activation_in_place() -> None:
    net, x = sparsify(network(), 0.5), torch.randn(3, 2, 6, 6)

    def backward(x: Tensor, y: Tensor) -> None:
        y.float().square().sum().backward()

    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients_of(net, x, backward)
        with dense_gradients(net) as gradients:
            assert_same_bits(gradients_of(net, x, backward), plain)
    for name, layer in sparse_layers(net):
        found, wanted = gradients[name].flatten()[layer.positions()], layer.values.grad
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


# The exchange


def plain_exchange(kept: dict[int, float], slope: list[float], share: float) -> tuple[set[int], set[int]]:
    """RigL in plain Python: positions that stay and new positions, from kept {position: value} and all gradients."""
    count = round(share * len(kept))
    by_size = sorted(kept, key=lambda at: (-abs(kept[at]), at))
    stays, dropped = by_size[: len(kept) - count], by_size[len(kept) - count :]
    absent = sorted(set(range(len(slope))) - set(kept), key=lambda at: (-abs(slope[at]), at))
    back = sorted(dropped, key=lambda at: (-abs(slope[at]), at))
    new = absent[:count]
    return {*stays, *back[: count - len(new)]}, set(new)


def test_gradients_of_float16_layers_are_summed_in_float32() -> None:
    """The gradient of a weight, summed over all pixels, is above 65504, the largest number of float16."""
    layer, x, found = sparsify(nn.Conv2d(2, 3, 3, padding=1), 0.5), torch.rand(2, 2, 64, 64) + 1, []
    for enabled in (True, False):
        with dense_gradients(layer) as gradients, torch.autocast("cpu", torch.float16, enabled=enabled):
            layer(x).float().mul(100).sum().backward()
        found.append(gradients[""])
    assert found[0].abs().max() > 65504
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0)


@given(st.sampled_from([0.0, 0.05, 0.5, 0.9]), st.sampled_from([0.0, 0.1, 0.5, 0.99]), st.booleans(), st.data())
def test_an_exchange_against_plain_python(sparsity: float, share: float, adam: bool, data: st.DataObject) -> None:
    """Values and gradients have many ties. Kept weights keep their optimizer state. New ones begin with zeros."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layer = sg.SparseConvTranspose2d(4, 3, 3, sparsity=sparsity)
    optimizer = (
        torch.optim.Adam(layer.parameters(), fused=True)
        if adam
        else torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    )
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
        optimizer.step()
    parameter, nnz = layer.values, layer.nnz
    parameter.data = torch.randint(1, 4, (nnz,)) * torch.sign(torch.randn(nnz))
    gradient = torch.randint(-3, 4, layer.weight_shape).float()
    before = {name: t for name, t in optimizer.state[parameter].items() if t.shape == (nnz,)}
    before |= {"value": parameter.detach().clone(), "grad": parameter.grad.clone()}
    positions = layer.positions().tolist()
    kept = dict(zip(positions, parameter.tolist(), strict=True))
    stays, new = plain_exchange(kept, gradient.flatten().tolist(), share)

    regrow(layer, {"": gradient}, share, optimizer)
    assert layer.values is parameter
    assert layer.nnz == nnz == len(stays | new)
    assert layer.positions().tolist() == sorted(stays | new)
    after = {name: t for name, t in optimizer.state[parameter].items() if t.shape == (nnz,)}
    after |= {"value": parameter.detach(), "grad": parameter.grad}
    assert before.keys() == after.keys()
    assert len(before) == (4 if adam else 3)
    for name, old in before.items():
        had = dict(zip(positions, old.tolist(), strict=True))
        assert after[name].tolist() == [had[at] if at in stays else 0.0 for at in sorted(stays | new)], name
    optimizer.step()
    layer(torch.randn(2, 4, 5, 5)).sum().backward()


def test_refusals_leave_the_network_alone(tmp_path: Path) -> None:
    net = sparsify(network(), 0.5, {"2": "kernel", "*": "element"})
    with pytest.raises(ValueError, match=r"2: granularity is 'kernel'.* must be 'element'"), dense_gradients(net):
        pass
    net = sparsify(network(), 0.5)
    state = copy.deepcopy(net.state_dict())
    gradients = {name: torch.randn(layer.weight_shape) for name, layer in sparse_layers(net)}
    wrong, missing = {**gradients, "4": torch.zeros(3)}, {name: gradients[name] for name in ("0", "2")}
    unordered = {**gradients, "4": gradients["4"] * math.nan}
    for given_gradients, share, words in (
        (gradients, 1.0, r"share is 1\.0; it must be at least 0 and below 1"),
        (wrong, 0.5, r"4: gradients has shape \(3,\) for it; it must have shape \(1, 4, 3, 3\)"),
        (missing, 0.5, "4: gradients has nothing for it"),
        (unordered, 0.5, "4: its gradient contains NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            regrow(net, given_gradients, share)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    for options, words in (
        ({"regrow": 1.0}, r"regrow is 1\.0; it must be at least 0 and below 1"),
        ({"regrow": -0.1}, r"regrow is -0\.1"),
        ({"regrow": 0.1, "granularity": {"main.3": "2:4", "*": "element"}}, r"main\.3: granularity is '2:4'"),
        ({"regrow": 0.1, "granularity": "vector:4", "exclude": ("main.12",)}, r"main\.0: granularity is 'vector:4'"),
        ({"regrow": 0.1, "granularity": "input:2", "exclude": ("main.0",)}, r"main\.3: granularity is 'input:2'"),
    ):
        with pytest.raises(ValueError, match=words):
            Compressor(
                *small_gan(width=4),
                dcgan.objective,
                OneShot(1, 0.5),
                CompressionConfig(**options),
                run=RunConfig(tmp_path / "a"),
            )
    assert not (tmp_path / "a").exists()


# Compression


@pytest.mark.parametrize(
    ("options", "due"), [({}, [0, 10, 20]), ({"accumulate": 2, "generator_every": 3}, [0, 12, 21])]
)
def test_exchanges_have_the_documented_times_and_sizes_and_the_gradients_of_their_step(
    options: dict[str, int], due: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def discriminator_terms(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """The discriminator's backward pass also reaches the generator, outside the generator's step."""
        terms = dcgan.discriminator_terms(generator, judge, fake, real)
        return terms | {"more": generator(torch.ones(2, 8, 1, 1, dtype=real.dtype)).mean()}

    def watched(net: nn.Module, gradients: dict[str, Tensor], share: float, optimizer: torch.optim.Optimizer) -> None:
        before = {name: layer.support.clone() for name, layer in sparse_layers(net)}
        for name, layer in sparse_layers(net):
            assert_exact(gradients[name].flatten()[layer.positions()], layer.values.grad)
            assert int((gradients[name] != 0).sum()) > layer.nnz  # absent weights have gradients
        regrow(net, gradients, share, optimizer)
        for name, layer in sparse_layers(net):
            new = ~torch.isin(layer.support, before[name])
            assert int(new.sum()) == min(round(share * layer.nnz), layer.mask().numel() - layer.nnz)
            assert not layer.values[new].any()
        calls.append((steps.index(None), share))

    monkeypatch.setattr(step_module, "regrow", watched)
    objective = Objective(dcgan.generator_terms, discriminator_terms, dcgan.generate)
    schedule = GradualPruning(40, 0.8, initial=0.4, every=4)
    config = CompressionConfig(regrow=0.3, **options, **SMALL)
    ours = Compressor(*small_gan(torch.float64), objective, schedule, config, run=QUIET)
    steps: list[Any] = []
    inner = ours.task.step

    def step(number: int, batch: Tensor) -> dict[str, float]:
        steps.append(None)  # None marks the running step
        steps[-1] = inner(number, batch)
        return steps[-1]

    ours.task.step = step  # type: ignore[method-assign]
    result = ours.fit(Batches(images(torch.float64), 4))
    assert [at for at, _ in calls] == due
    assert [share for _, share in calls] == pytest.approx([0.15 * (1 + math.cos(math.pi * at / 30)) for at in due])
    for _, layer in sparse_layers(result.generator):
        assert layer.sparsity == pytest.approx(0.8, abs=1 / 32)


def test_a_resumed_run_with_regrowth_continues_bit_for_bit(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def made(folder: str, share: float = 0.3, resume: bool = False) -> Compressor:
        schedule, config = GradualPruning(32, initial=0.5, every=3), CompressionConfig(regrow=share, seed=2, **SMALL)
        run = RunConfig(tmp_path / folder, resume, checkpoint_every=4, quiet=True)
        return Compressor(*small_gan(width=4), dcgan.objective, schedule, config, run=run)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loader = Batches(images(), 4)
        whole, without = made("a").fit(loader), made("off", 0.0).fit(loader)
        stopped = made("b")
        inner = stopped.task.step

        def step(number: int, batch: Tensor) -> dict[str, float]:
            if number == 15:
                raise Stopped
            return inner(number, batch)

        stopped.task.step = step  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            stopped.fit(loader)
        resumed = made("b", resume=True).fit(loader)
    finally:
        torch.set_num_threads(threads)
    assert resumed.history == whole.history
    ours, theirs = whole.generator.state_dict(), resumed.generator.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    for (name, layer), (_, other) in zip(sparse_layers(whole.generator), sparse_layers(without.generator), strict=True):
        assert layer.nnz == other.nnz
        assert layer.nnz < 10 or not torch.equal(layer.support, other.support), name
    for share in (0.2, 0.0):
        with pytest.raises(ValueError, match=r"cannot be resumed with other settings: regrow was 0\.3"):
            made("b", share, resume=True)
    with pytest.raises(ValueError, match=r"cannot be resumed with other settings: regrow was None and is 0\.3"):
        made("off", resume=True)


def compress(share: float) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    gan = test_gans.tiny("dcgan", torch.float64)
    schedule = OneShot(4, 0.7)
    config = CompressionConfig(generator_lr=1e-3, regrow=share)
    compressor = Compressor(gan.generator, gan.discriminator, gan.objective, schedule, config, run=QUIET)
    result = compressor.fit(list(test_gans.batches("dcgan", 3, torch.float64)))
    return result.history, dict(result.generator.state_dict())


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(compress(0.3), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_exchange_the_weights_that_one_exchanges(tmp_path: Path) -> None:
    history, alone = compress(0.3)
    _, without = compress(0.0)
    mp.start_processes(process, args=(tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        figures, state = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        for one, other in zip(figures, history, strict=True):
            assert one == pytest.approx(other, rel=1e-8, abs=1e-10)
        for key, value in alone.items():
            torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(alone[key], without[key]) for key in alone if key.endswith("support"))
