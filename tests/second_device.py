"""Compression on a second device, from the library and from the command line.

The device is the CPU under another name, made with torch's support for backends in Python. One operation cannot mix its
tensors with tensors of the CPU, and it has a separate random generator. `test_devices.py` runs this file in a separate
process, because a backend cannot be removed from a process.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import test_cli
import test_gans
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from sparsegan.cli import main
from sparsegan.compress import (
    CompressionConfig,
    Compressor,
    DistillationLoss,
    GeneratedBatches,
    RunConfig,
    SelfSupervisedLoss,
    gap,
)
from sparsegan.gans import Objective, dcgan, store
from sparsegan.metrics.distances import Evaluator, load_features
from sparsegan.nn.replace import sparse_layers
from sparsegan.pruning.allocation import allocate, sensitivity
from sparsegan.pruning.removal import remove_filters
from sparsegan.pruning.reorder import reorder_channels
from sparsegan.pruning.schedule import GradualPruning, OneShot
from sparsegan.randomness import CPU, run_state, seeded, set_run_state

NAME = "second"


class EitherGenerator(torch.Generator):
    """A random generator that accepts either device."""

    def __new__(cls, device: Any = None) -> EitherGenerator:
        return super().__new__(cls)


NUMBERS = EitherGenerator().manual_seed(7)
DRAWING = ("rand", "normal", "uniform", "bernoulli", "dropout")


class Backend(backend_registration._DummyBackendModule):
    """The module that torch installs as `torch.second`."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return NUMBERS.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        NUMBERS.set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        NUMBERS.manual_seed(seed)

    def synchronize(self, device: Any = None) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
torch.Generator = EitherGenerator  # type: ignore[misc]
torch.accelerator.synchronize = lambda device=None: None
DEVICE = torch.device(NAME, 0)


class There(Tensor):
    """A tensor on the second device. `here` is the CPU tensor that holds its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, here: Tensor) -> There:
        about = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        there = Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **about)
        there.here = here
        return there

    def __init__(self, here: Tensor) -> None:
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # as if the file were read with map_location="cpu"

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: There) -> None:
        Tensor.data.__set__(self, other)
        self.here = other.here

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, dict(kwargs or {}))


def here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that has an argument on the second device."""
    name, aten = str(func), torch.ops.aten
    if func is aten._to_copy.default:
        target = torch.device(kwargs.pop("device", None) or args[0].device)
        kwargs = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "layout")}
        copied = func(here(args[0]), **kwargs) if kwargs else here(args[0]).clone()
        return There(copied) if target == DEVICE else copied
    if func is aten.copy_.default:
        here(args[0]).copy_(here(args[1]))
        return args[0]
    tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if any(one.dim() > 0 and not isinstance(one, There) for one in tensors) and "index" not in name:
        raise RuntimeError(f"{name}: tensors are on {NAME} and on cpu")
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    plain_args, plain_kwargs = pytree.tree_map(here, (args, kwargs))
    before = torch.get_rng_state()
    if drawing := any(word in name for word in DRAWING):
        torch.set_rng_state(NUMBERS.get_state())
    output = func(*plain_args, **plain_kwargs)
    if drawing:
        NUMBERS.set_state(torch.get_rng_state())
        torch.set_rng_state(before)
    known = {id(one.here): one for one in tensors if isinstance(one, There)}
    return pytree.tree_map_only(Tensor, lambda one: known[id(one)] if id(one) in known else There(one), output)


LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")


def made_by(op: Any) -> Any:
    def make(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> There:
        return There(op(*args, device="cpu", **kwargs))

    return make


def copied_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    here(target).copy_(here(source))
    return target


for overload in ("empty.memory_format", "empty_strided"):
    packet, _, kind = overload.partition(".")
    LIBRARY.impl(overload, made_by(getattr(getattr(torch.ops.aten, packet), kind or "default")))
LIBRARY.impl("_copy_from", copied_from)


# Tests


def on_second(name: str) -> store.Gan:
    gan = test_gans.tiny(name)
    gan.generator.to(DEVICE)
    gan.discriminator.to(DEVICE)
    return gan


def test_the_device_is_separate_from_the_cpu() -> None:
    kept = torch.get_rng_state()
    x = torch.rand(3, device=DEVICE)
    assert torch.equal(torch.get_rng_state(), kept)
    with pytest.raises(RuntimeError, match="tensors are on second and on cpu"):
        x + torch.ones(3)
    assert torch.equal(x.cpu() + 1, (x + 1).cpu())


PARTS = {"accumulate": 2, "contrast": True, "ema": 0.9, "original_images": "real", "prune_discriminator": True}
MORE: list[dict[str, Any]] = [
    {"loss": SelfSupervisedLoss(features=0.5, denominator="running"), "allocation": "global"},
    {"loss": DistillationLoss(own=1.0, intermediate=1.0), "granularity": "filter"},
]
#: The convolutions of StyleGAN2's discriminator are classes of its own, which pruning leaves dense.
UNPRUNED = {"stylegan2": PARTS | {"prune_discriminator": False}}
CASES = [*((name, UNPRUNED.get(name, PARTS)) for name in test_gans.TINY), *(("stargan", options) for options in MORE)]


@pytest.mark.filterwarnings("ignore:no scale of the last layer")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_gan_is_compressed_there(name: str, options: dict[str, Any]) -> None:
    gan = on_second(name)
    schedule, config = GradualPruning(3, 0.4, every=1), CompressionConfig(**options)
    compressor = Compressor(
        gan.generator, gan.discriminator, gan.objective, schedule, config, run=RunConfig(quiet=True)
    )
    result = compressor.fit(list(test_gans.batches(name, 2)))
    assert {one.device for one in (*result.generator.parameters(), *result.generator.buffers())} == {DEVICE}
    assert result.history[-1]["sparsity"] == 0.4


class Noisy(nn.Module):
    """Adds noise to the input of a generator."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.nz = inner, inner.nz

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.randn_like(x))


def generate(generator: Any, real: Tensor) -> Tensor:
    return generator(torch.randn(len(real), generator.nz, 1, 1, device=real.device))


def generate_from_draws(generator: Any, real: Tensor, draws: Any) -> Tensor:
    return generator(draws("noise", lambda: torch.randn(len(real), generator.nz, 1, 1, device=real.device)))


def mixed_terms(generator: nn.Module, judge: nn.Module, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    mix = torch.rand(len(real), 1, 1, 1, device=real.device)
    return {"dis": judge(mix * real + (1 - mix) * fake).mean()}


USERS = {"without draws": generate, "with draws": generate_from_draws}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["dcgan", "stargan", *USERS])
def test_both_generators_see_the_same_numbers_there(name: str, accumulate: int) -> None:
    """A compressed generator that keeps all weights gets the scores of the original, and the loss is 0."""
    gan = on_second("dcgan" if name in USERS else name)
    generator, objective = gan.generator, gan.objective
    for weight in (*generator.parameters(), *gan.discriminator.parameters()):
        weight.data = weight.data * (5 if weight.dim() == 4 else 1)  # so that images and scores depend on the noise
    if name in USERS:  # the network draws in its forward; mixed_terms draws without `draws`
        generator, objective = Noisy(generator), Objective(dcgan.generator_terms, mixed_terms, USERS[name])
    config = CompressionConfig(stored_statistics=True, accumulate=accumulate)
    compressor = Compressor(generator, gan.discriminator, objective, OneShot(1, 0.0), config, run=RunConfig(quiet=True))
    (figures,) = compressor.fit(list(test_gans.batches("dcgan" if name in USERS else name, 1))).history
    pairs = [(figures[key], figures[key.replace("_compressed", "_original")]) for key in figures if "_comp" in key]
    assert len(pairs) == (2 if name == "stargan" else 1)  # dis, gp
    for ours, theirs in (*pairs, (figures["gen"], figures["gen_original"])):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert figures["loss"] < 1e-3


def test_seeded_seeds_every_device_and_restores_every_generator() -> None:
    numbers = []
    for seed in (3, 3, 4):
        before = NUMBERS.get_state(), torch.get_rng_state()
        with seeded(seed):
            numbers.append(torch.cat([torch.rand(2, device=DEVICE).cpu(), torch.rand(2)]))
        assert torch.equal(NUMBERS.get_state(), before[0])
        assert torch.equal(torch.get_rng_state(), before[1])
        torch.rand(2, device=DEVICE), torch.rand(2)
    assert torch.equal(numbers[0], numbers[1])
    assert (numbers[0] != numbers[2]).all()


def test_a_checkpoint_holds_the_random_state_of_the_runs_device() -> None:
    state = run_state(DEVICE)
    assert "device" not in run_state(CPU)
    expected = torch.rand(3, device=DEVICE), torch.rand(3), random.random()
    set_run_state(state, DEVICE, seed=9)
    assert torch.equal(torch.rand(3, device=DEVICE).cpu(), expected[0].cpu())
    assert torch.equal(torch.rand(3), expected[1])
    assert random.random() == expected[2]
    with pytest.warns(UserWarning, match="was on a device of type second and goes on on cpu"):
        set_run_state(state, CPU, seed=9)
    with pytest.warns(UserWarning, match="was on a device of type cpu and goes on on second:0"):
        set_run_state(run_state(CPU), DEVICE, seed=9)
    assert torch.equal(torch.rand(3, device=DEVICE).cpu(), torch.rand(3, generator=EitherGenerator().manual_seed(9)))


@pytest.mark.parametrize("name", ["dcgan", "cyclegan"])
def test_a_run_resumed_there_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    found = []
    for stop in (None, 12):
        gan, folder = on_second(name), tmp_path / str(stop)
        run = RunConfig(folder, resume=True, checkpoint_every=4, quiet=True)
        for at in (stop, None):
            args = gan.generator, gan.discriminator, gan.objective, GradualPruning(16, 0.6, every=1)
            compressor = Compressor(*args, CompressionConfig(regrow=0.3, ema=0.9), run=run)
            forward = compressor.task.step

            def step(number: int, batch: Any, at: int | None = at, forward: Any = forward) -> dict[str, float]:
                if number == at:
                    raise KeyboardInterrupt
                return forward(number, batch)

            compressor.task.step = step  # type: ignore[method-assign]
            torch.randn(3, device=DEVICE)  # earlier draws must not change the run
            try:
                result = compressor.fit(list(test_gans.batches(name, 3)))
            except KeyboardInterrupt:
                assert at == stop
        found.append((result.history, [layer.values.cpu() for _, layer in sparse_layers(result.generator)]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1], strict=True))


def test_sensitivity_and_generated_batches_repeat_there() -> None:
    found, batches = [], list(test_gans.batches("stargan", 2))
    for _ in range(2):
        gan = on_second("stargan")
        measure = gap(gan.generator, gan.discriminator, gan.objective, batches)
        found.append(sensitivity(gan.generator, measure, 0.5, levels=(0.5,)))
        torch.manual_seed(5)
        kept = NUMBERS.get_state()
        own = list(GeneratedBatches(gan.generator.eval(), gan.objective, batches))
        found.append([one.cpu() for images, labels in own for one in (images, labels)])
        assert torch.equal(NUMBERS.get_state(), kept)
        torch.randn(3, device=DEVICE)
    assert found[0] == found[2]
    assert all(torch.equal(*pair) for pair in zip(found[1], found[3], strict=True))


def test_channels_are_cut_and_put_in_order_there() -> None:
    """Removal of zero filters, reordering of channels and allocation of sparsity give the results of the CPU."""
    found: list[list[Any]] = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
        ).eval()
        with torch.no_grad():
            model[0].weight[:4] = 0
            model[1].bias[:4] = torch.tensor([1.0, 0.0, 0.5, 0.0])
        model.to(device)
        x = torch.ones(1, 3, 8, 8).to(device)
        small, ordered = remove_filters(model, x), reorder_channels(model, x, "vector:4", 0.5)
        assert small[0].out_channels < 16
        shares = [allocate(model, 0.5, allocation=how) for how in ("global", "global-normalized")]
        found.append([small(x).cpu(), ordered(x).cpu(), *shares])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("task", ["stargan", "pix2pix"])
def test_commands_run_there(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "torchmetrics", "PIL"):
        pytest.importorskip(package)
    source, dense, small = tmp_path / "data", tmp_path / "dense", tmp_path / "small"
    test_cli.write_data(task, source)
    there, features = ["--device", NAME], ["--features", "test_cli:features"]
    common = ["--data", str(source), "--size", "32", "--batch", "2", "--steps", "2", *there, "--quiet", "--out"]
    assert main(["train", task, "--width", "2", *test_cli.TASKS[task], *common, str(dense)]) == 0
    assert main(["compress", str(dense), "--sparsity", "0.8", *features, *common, str(small)]) == 0
    capsys.readouterr()
    given = [str(small), "--data", str(source), *features, "--quiet", "--json"]
    scores = []
    for device in (NAME, "cpu"):
        assert main(["evaluate", *given, "--device", device]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    if task == "pix2pix":  # stargan draws target domains, and each device draws other ones
        assert scores[0]["output"]["fid"] == pytest.approx(scores[1]["output"]["fid"], rel=1e-2, abs=1e-4)
    assert main(["profile", str(small), "--batch", "1", *there]) == 0
    captured = capsys.readouterr()
    assert captured.err == "running on second:0; --device cpu runs on the CPU\n"
    assert "second:0; medians" in captured.out
    assert main(["generate", str(small), "--images", str(source), *there]) == 1
    assert "an engine needs one device, a CPU or an NVIDIA GPU" in capsys.readouterr().err


def test_distances_there_are_those_of_the_cpu() -> None:
    pytest.importorskip("torchmetrics")
    classifier = Path(__file__).parents[1] / "checkpoints" / "digit-classifier" / "classifier.safetensors"
    gan, real, found = test_gans.tiny("dcgan"), torch.rand(8, 1, 64, 64) * 2 - 1, []
    for device in (torch.device("cpu"), DEVICE):
        features = load_features(classifier, device)
        gan.generator.eval().to(device)
        evaluator = Evaluator(real, features, features.network)
        found.append(evaluator.distances(lambda n: gan.generator(dcgan.noise(gan.generator, n)), 8, seeds=(0,)).fid)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
