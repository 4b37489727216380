"""Calls of an engine: arguments and results of any structure, steps that run in torch, and random numbers."""

from __future__ import annotations

import copy
import pickle
import warnings
import weakref
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine import Engine
from sparsegan.engine.shapes import Shapes

Pair = namedtuple("Pair", "image weight")


def conv(channels: int = 3, out: int = 3) -> nn.Module:
    layer = sg.SparseConv2d(channels, out, 3, padding=1, sparsity=0.6)
    layer.backend = "sparse"  # "auto" would run such a small layer dense
    return layer


def image(n: int = 2, channels: int = 3, size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def silently(model: nn.Module, example: Any, **options: Any) -> Any:
    """Compiles the model; any warning is an error, so no convolution runs in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sg.optimize_for_inference(model.eval(), example, **options)


# ---------------------------------------------------------------------- arguments and results


class Nested(nn.Module):
    """A forward with lists, tuples, dicts, a named tuple, labels, flags and optional tensors, and nested outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = conv(), nn.Embedding(5, 3)

    def forward(
        self,
        first: Any,
        labels: Any = None,
        scale: float = 1.0,
        *more: Any,
        skip: Any = None,
        flag: bool = False,
        **rest: Any,
    ) -> Any:
        y = self.conv(first["image"]) + first["others"][0] * first["others"][1].weight
        if labels is not None:
            y = y + self.table(labels)[:, :, None, None]
        y = F.relu(y) * scale
        if skip is not None:
            y = y + skip
        if flag is True:
            y = -y
        for one in more:
            y = y + one
        tail = [y, {"half": y[:, :1], "what": ("text", scale, None)}]
        return (Pair(tail, y.mean((2, 3))), *sorted(rest)) if rest else tail


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "positional": ((), {}),
    "labels": ((torch.tensor([1, 4]),), {}),
    "an int": ((None, 2), {}),
    "a float": ((None, 2.0), {}),
    "a flag": ((None, 1), {"flag": True}),
    "a number for a flag": ((None, 1), {"flag": 1}),
    "an optional tensor": ((), {"skip": image(seed=3)}),
    "varargs": ((None, 1.5, image(seed=4), image(seed=5)), {}),
    "more keywords": ((), {"whatever": image(seed=4), "labels": torch.tensor([0, 1])}),
}


def first(n: int = 2) -> dict[str, Any]:
    return {"image": image(n, seed=1), "others": [image(n, seed=2), Pair(image(n), 0.5)]}


@pytest.mark.parametrize("example", CALLS)
def test_arguments_and_results_of_any_structure(example: str) -> None:
    model = Nested()
    args, kwargs = CALLS[example]
    engine = silently(model, (first(), *args), kwargs=kwargs, plans=20)
    assert not [one for one in engine.fallbacks if "conv" in one.name]
    with torch.no_grad():
        for other, (args, kwargs) in CALLS.items():
            ours, theirs = engine(first(), *args, **kwargs), model(first(), *args, **kwargs)
            assert torch.utils._pytree.tree_structure(ours) == torch.utils._pytree.tree_structure(theirs), other
            for one, wanted in zip(*map(torch.utils._pytree.tree_leaves, (ours, theirs)), strict=True):
                assert type(one) is type(wanted)
                same(one, wanted) if isinstance(one, Tensor) else None
        same(engine(first(3))[0], model(first(3))[0])
    assert len(engine._compiled) == len(CALLS) + 1  # first(3) adds a size; 1, 1.0 and True are different arguments


def test_equal_dict_keys_of_other_types_are_other_arguments() -> None:
    class ByKey(nn.Module):
        def forward(self, images: dict[Any, Tensor]) -> Tensor:
            ((key, x),) = images.items()
            return x * {bool: 2, int: 3, float: 5}[type(key)]

    engine, x = silently(ByKey(), ({1: image()},)), image()
    for key, scale in ((1, 3), (True, 2), (1.0, 5), (1, 3)):
        assert torch.equal(engine({key: x}), x * scale)


def test_arguments_that_do_not_fit() -> None:
    engine = silently(Nested(), (first(),))
    for args, kwargs, words in (
        ((), {}, "missing a required argument: 'first'"),
        ((first(), object()), {}, "an argument holds a object; tensors, numbers, strings and None"),
        ((first(), None, {1, 2}), {}, "an argument holds a set"),
    ):
        with pytest.raises(TypeError, match=words):
            engine(*args, **kwargs)
    with pytest.raises(TypeError, match=r"input 0 has dtype torch\.float64; the example has dtype torch\.float32"):
        engine({"image": image().double(), "others": first()["others"]})
    with pytest.raises(TypeError, match="missing 1 required"):
        sg.optimize_for_inference(Nested(), ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_layouts_and_sizes(dtype: torch.dtype) -> None:
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), nn.Tanh()).eval().to(dtype)
    for _, layer in sg.sparse_layers(model):
        layer.backend = "auto"  # a CPU has no sparse kernel for float16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = sg.optimize_for_inference(model, image().to(dtype))
    bound = {torch.float64: 1e-9}.get(dtype, 0.05)
    whole = image(4, size=12).to(dtype)
    for x in (whole, whole[::2, :, ::2, 1:7], whole.to(memory_format=torch.channels_last), whole[:1]):
        with torch.no_grad():
            torch.testing.assert_close(engine(x.requires_grad_(x.is_leaf)), model(x), rtol=bound, atol=bound)
    bare = nn.Sequential(conv(), nn.ReLU()).eval()
    engine = silently(bare, image())
    for x in (image()[0], image()[:0]):
        with torch.no_grad():
            same(engine(x), bare(x))


def test_outputs_are_compared_on_more_than_an_example_of_zeros() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.detach().numpy()[:, 0].sum()) if type(x) is Tensor else x * 0.0

    with pytest.raises(ValueError, match="differ from the model's"):
        sg.optimize_for_inference(Constant(), torch.zeros(1, 3, 4, 4))


def test_an_infinite_input_hides_no_difference() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * (2.0 if type(x) is Tensor else 1.0) * mask.exp()

    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:] = -torch.inf
    with pytest.raises(ValueError, match="differ from the model's"):
        sg.optimize_for_inference(Masked(), (torch.randn(1, 3, 4, 4), mask))


# ---------------------------------------------------------------------- steps that run in torch


class Untraceable(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() > -1e9 else x


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.head, self.inner, self.tail = conv(), inner, conv()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tail(self.inner(self.head(x).relu(), **kwargs))


def test_wrappers_are_removed() -> None:
    model = Around(nn.Tanh()).eval()
    wanted = model(image()).detach()
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        engine = silently(wrapped, image())
        assert [step.backend for step in engine.steps()].count("sparse") == 2
        assert not engine.fallbacks
        same(engine(image()), wanted)


def test_forwarded_keywords_do_not_prevent_compiling() -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
            return x + shift

    model = Around(Shifted()).eval()
    engine = silently(model, image(), kwargs={"shift": 2.0})
    with torch.no_grad():
        same(engine(image(), shift=2.0), model(image(), shift=2.0))
        same(engine(image(), shift=-1.0), model(image(), shift=-1.0))
    assert not engine.fallbacks


def test_a_module_that_cannot_be_traced_is_one_step() -> None:
    """The other steps stay native. There is a warning only if the module contains a convolution."""
    engine = silently(Around(Untraceable(nn.Tanh())), image())
    assert [one.name for one in engine.fallbacks] == ["inner"]
    assert [step.backend for step in engine.steps()].count("sparse") == 2
    nested = Around(nn.Sequential(nn.Identity(), Untraceable(conv()))).eval()
    with pytest.warns(UserWarning, match=r"inner\.1 \(torch\.fx cannot trace it") as said:
        engine = sg.optimize_for_inference(nested, image())
    assert len(said) == 1
    for size in (6, 9):
        with torch.no_grad():
            same(engine(image(size=size)), nested(image(size=size)))


def test_a_model_that_runs_in_torch_warns_once_and_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Untraceable(conv()).eval()
    with pytest.warns(UserWarning, match=r"the whole Untraceable \(torch\.fx cannot trace") as said:
        engine = sg.optimize_for_inference(model, image())
    assert len(said) == 1
    assert len(engine.fallbacks) == 1
    monkeypatch.setattr(Shapes, "trace", lambda *_: pytest.fail("traced again"))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        same(engine(image(3)), model(image(3)))


@pytest.mark.parametrize("where", ["", "head", "inner"])
def test_hooks_run_at_every_call(where: str) -> None:
    model = Around(nn.Sequential(conv(), nn.ReLU())).eval()
    seen: list[int] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        seen.append(len(output))
        return output * 2

    model.get_submodule(where).register_forward_hook(hook)
    with torch.no_grad():
        wanted = model(image(3))
    with pytest.warns(UserWarning, match=f"{where or 'the whole Around'} "):
        engine = sg.optimize_for_inference(model, image())
    same(engine(image(3)), wanted)
    seen.clear()
    same(engine(image(3)), wanted)
    assert seen == [3]


def test_other_steps_in_torch_are_listed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.mish(self.norm(self.conv(x)))

    engine = silently(Odd(), image())
    assert [(one.name, one.why) for one in engine.fallbacks] == [
        ("mish", "mish runs in torch"),
    ]


def test_functional_convolutions_whose_weight_depends_on_the_size() -> None:
    """Both sizes call F.conv2d once, so the nodes have the same name. The weights must not be confused."""

    class BySize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.small, self.large = conv(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.large if x.shape[2] > 6 else self.small
            return F.conv2d(self.head(x), chosen.weight, chosen.bias)

    model = BySize().eval()
    engine = silently(model, image())
    with torch.no_grad():
        for size in (6, 9, 6):
            same(engine(image(size=size)), model(image(size=size)))


FORWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "a loop over chunks": lambda x: torch.cat([part * n for n, part in enumerate(x.chunk(3, 1))], 1),
    "a list of a split": lambda x: torch.cat(list(x.split([1, 2], 1))[::-1], 1),
    "starred parts": lambda x: torch.stack([*x.unbind(1)], 1),
    "rows of a tensor": lambda x: torch.stack([image * n for n, image in enumerate(x)]),
    "the number of images": lambda x: x * len(x) if x.numel() > 1 and x.is_floating_point() else x,
    "a field of a result": lambda x: x + x.max(1, keepdim=True).values - torch.min(x, 1, keepdim=True).values,
    "a transposed view": lambda x: x.mT.contiguous().mT * 2,
}


@pytest.mark.parametrize("name", FORWARDS)
def test_forwards_that_ask_for_structure_are_traced(name: str) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FORWARDS[name](x)

    model = Around(Inner()).eval()
    engine = silently(model, image())
    with torch.no_grad():
        for x in (image(), image(3, size=9)):
            same(engine(x), model(x))
    assert "inner" not in [one.name for one in engine.fallbacks]
    assert engine._shapes.why_not is None


def test_forwards_that_ask_for_values_say_so() -> None:
    class Inner(nn.Module):
        def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.forward = forward  # type: ignore[method-assign]

    for forward, why in (
        (lambda x: x * 2 if x.sum() > 0 else x, "a branch depends on the values of gt"),
        (lambda x: x * float(x.mean()), "the forward makes a Python number of the values of mean"),
    ):
        model = Around(Inner(forward)).eval()
        engine = silently(model, image())
        (one,) = engine.fallbacks
        assert (one.name, one.why) == ("inner", f"torch.fx cannot trace it: {why}")
        with torch.no_grad():
            same(engine(image(seed=7)), model(image(seed=7)))


class Watched(nn.Module):
    """A step in torch that notes how many of the tensors that such steps returned are still in memory."""

    def __init__(self, made: list[Any], alive: list[int]) -> None:
        super().__init__()
        self.made, self.alive = made, alive

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 if bool(x.isfinite().all()) else x  # a branch on values runs in torch
        self.alive.append(sum(one() is not None for one in self.made))
        self.made.append(weakref.ref(y))
        return y


def test_tensors_of_torch_are_dropped_after_their_last_reader() -> None:
    made: list[Any] = []
    alive: list[int] = []
    model = nn.Sequential(*[Watched(made, alive) for _ in range(6)], nn.SiLU()).eval()
    engine, x = silently(model, image()), image()
    watching = [one for one in engine.model.modules() if isinstance(one, Watched)]  # copies of the lists
    for one in watching:
        one.made, one.alive = made, alive
    made.clear()
    alive.clear()
    found = engine(x)
    assert alive == [0, 1, 1, 1, 1, 1]
    same(found, model(x))
    assert engine.memory()["outside"] == 2 * x.nbytes

    class Late(nn.Module):
        """The first tensor is read last, and one tensor is read by nobody."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = F.silu(x)
            second = F.silu(F.silu(F.silu(first)))
            F.gelu(second)
            return F.silu(torch.maximum(second, first)), second

    model = Late().eval()
    engine = silently(model, image())
    same(engine(image()), model(image()))
    assert engine.memory()["outside"] == 3 * x.nbytes


def test_subclasses_and_shared_modules() -> None:
    class Scaled(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    shared = conv()
    model = nn.Sequential(shared, Scaled(), shared, nn.Identity(), shared).eval()
    engine = silently(model, image())
    with torch.no_grad():
        same(engine(image(3)), model(image(3)))


# ---------------------------------------------------------------------- random numbers


class Noisy(nn.Module):
    """A forward that draws random numbers in the way that `how` names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = conv(), conv(), how
        self.dropout = nn.Dropout2d(0.5)
        self.register_buffer("noise", torch.zeros(1, 1, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        n, _, h, w = y.shape
        if self.how == "randn":
            y = y + torch.randn(n, 1, h, w)
        elif self.how == "randn on its device":
            y = y + torch.randn(n, 1, h, w, device=x.device)
        elif self.how == "randn_like":
            y = y + torch.randn_like(y) * 0.5
        elif self.how == "new_empty":
            y = y + y.new_empty(n, 1, h, w).normal_()
        elif self.how == "empty":
            y = y + torch.empty(n, 1, h, w).uniform_(-1, 1)
        elif self.how == "a buffer":
            self.noise.normal_()
            y = y + self.noise[..., :h, :w]
        elif self.how == "dropout":
            y = F.dropout(y, 0.5, training=True)
        elif self.how == "bernoulli":
            y = y * torch.bernoulli(torch.full((n, 1, h, w), 0.5))
        elif self.how == "a module":
            y = self.dropout.train()(y)
        elif self.how == "numbers alone":
            y = y + torch.randint(0, 9, (n, 1, 1, 1)) * torch.rand(1)
        return self.second(y)


HOWS = [
    *("randn", "randn on its device", "randn_like", "new_empty", "empty", "a buffer", "dropout", "bernoulli"),
    *("a module", "numbers alone"),
]


@pytest.mark.parametrize("how", HOWS)
def test_random_forwards(how: str) -> None:
    """From one seed the engine draws the numbers of the model. Each call draws new numbers. Compiling draws none."""
    model = Noisy(how).eval()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = sg.optimize_for_inference(model, image())
    assert torch.equal(torch.get_rng_state(), state)
    if how not in ("a buffer", "bernoulli", "a module"):
        assert [step.backend for step in engine.steps()].count("sparse") == 2, engine.steps()
    for size in (6, 5):  # the second size is compiled between draws
        x = image(size=size)
        torch.manual_seed(7)
        ours = [engine(x), engine(x)]
        torch.manual_seed(7)
        with torch.no_grad():
            for one in ours:
                same(one, model(x))
        assert not torch.allclose(*ours)


# ---------------------------------------------------------------------- statistics


def instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, instance_norm])
def test_statistics_of_the_batch(norm: Any) -> None:
    model = nn.Sequential(conv(3, 4), norm(4), nn.ReLU(), nn.Dropout(0.5), conv(4, 3), norm(3))
    for module in (model[1], model[5]):
        module.running_mean.normal_()
        nn.init.normal_(module.weight)
    state = copy.deepcopy(model.state_dict())
    engine = silently(copy.deepcopy(model).train(), image(), statistics="batch")
    reference = copy.deepcopy(model).train()
    reference[3].eval()
    with torch.no_grad():
        for n in (1, 2, 3):
            same(engine(image(n)), reference(image(n)))
            assert not torch.allclose(engine(image(n)), model.eval()(image(n)), atol=1e-2)
    ours = engine.model.state_dict()
    assert all(torch.equal(ours[name], one) for name, one in state.items())
    single = [step.backend for step in engine.steps(image(1))]
    assert "torch" not in single  # the statistics of one image are computed natively

    for statistics, words in (("Batch", "statistics is 'Batch'"), ("", "statistics is ''")):
        with pytest.raises(ValueError, match=words):
            sg.optimize_for_inference(model, image(), statistics=statistics)


def test_a_model_in_training_mode_warns() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(3), nn.Dropout(0.0), nn.Dropout(0.3), nn.InstanceNorm2d(3)).train()
    with pytest.warns(UserWarning, match=r"training mode, and 1 \(BatchNorm2d\), 3 \(Dropout\) compute") as said:
        engine = sg.optimize_for_inference(model, image())
    assert len(said) == 1
    assert model.training
    with torch.no_grad():
        same(engine(image()), copy.deepcopy(model).eval()(image()))
    silently(model.train(), image(), statistics="stored")
    silently(nn.Sequential(conv(), nn.ReLU()).train(), image())


# ---------------------------------------------------------------------- protocols of Python and torch


def test_copies_and_pickles_compile_again(tmp_path: Path) -> None:
    model = Nested()
    engine = silently(model, (first(),), kwargs={"flag": True})
    torch.save(engine, tmp_path / "engine.pt")
    others = [copy.copy(engine), copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))]
    others.append(torch.load(tmp_path / "engine.pt", weights_only=False))
    for other in others:
        assert isinstance(other, Engine)
        same(other(first(3))[0], engine(first(3))[0])


def test_module_methods_that_an_engine_lacks() -> None:
    engine = silently(nn.Sequential(conv()), image())
    assert engine.eval() is engine.train(False) is engine.to("cpu") is engine.to(torch.float32) is engine
    for call, words in (
        (lambda: engine.train(), "an engine only infers"),
        (lambda: engine.to("meta"), "cannot go to meta"),
        (lambda: engine.to(torch.float16), r"cannot go to torch\.float16"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
    for name in ("parameters", "state_dict", "half", "cuda", "requires_grad_", "named_modules"):
        with pytest.raises(AttributeError, match=r"is no torch\.nn\.Module.*`engine\.model`"):
            getattr(engine, name)
    with pytest.raises(AttributeError, match="Engine has no attribute 'nothing'"):
        _ = engine.nothing


@pytest.mark.parametrize("how", ["in place", "anew"])
def test_a_forward_that_changes_a_buffer_runs_in_torch(how: str) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if how == "in place":
                self.calls += 1
            else:
                self.calls = self.calls + 1
            return self.conv(x) * self.calls

    model = Counting().eval()
    with pytest.warns(UserWarning, match=r"the whole Counting \(its forward changes calls\)"):
        engine = sg.optimize_for_inference(model, image())
    assert model.calls == 0
    with torch.no_grad():
        for n in (1, 2, 3):
            same(engine(image(n)), model(image(n)))


def test_outputs_of_every_dtype() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return y, y > 0, y.argmax(1), torch.complex(y, y)

    model = Many().eval()
    engine = silently(model, image())
    with torch.no_grad():
        for one, wanted in zip(engine(image(3)), model(image(3)), strict=True):
            same(one, wanted)


@dataclass
class Outputs:
    image: Tensor
    features: Tensor


def test_a_dataclass_is_refused_until_it_is_registered() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(), conv()

        def forward(self, x: Tensor) -> Outputs:
            y = self.first(x).relu()
            return Outputs(self.second(y), y)

    model = Model().eval()
    with pytest.raises(TypeError, match=r"puts out a Outputs, a dataclass .*register_dataclass"):
        sg.optimize_for_inference(model, image())
    torch.utils._pytree.register_dataclass(Outputs)
    engine = silently(model, image())
    ours = engine(image(3))
    engine(image(3, seed=5))  # a later call must not change `ours`
    with torch.no_grad():
        wanted = model(image(3))
    assert isinstance(ours, Outputs)
    same(ours.image, wanted.image)
    same(ours.features, wanted.features)
