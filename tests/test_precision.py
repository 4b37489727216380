"""Short precisions of the engine: which layers take them, how near the results are, and what is said and refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsegan as sg
from sparsegan.engine import panels
from sparsegan.engine.precision import decibels, shortened
from sparsegan.engine.steps import SparseConvStep
from sparsegan.ops.precisions import PRECISIONS, Precision


class Dense(nn.Module):
    """A dense block: three convolutions that read ever more channels of one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 3, padding=1) for i in range(3))
        self.last = nn.Conv2d(40, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for conv in self.convs:
            parts.append(F.leaky_relu(conv(torch.cat(parts, 1)), 0.2))
        return self.last(torch.cat(parts, 1)) * 0.2 + x


class Net(nn.Module):
    """All kinds of work around a convolution: norms, paddings, strides, a shuffle, a dense block, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 16, 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(16, affine=True),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, 2, 1, groups=2),
            nn.BatchNorm2d(24),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(24, 16, 4, 2, 1),
            nn.PReLU(16),
            Dense(),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.PixelShuffle(2),
            nn.Conv2d(4, 4, 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


def net(granularity: str = "input:4", sparsity: float = 0.7, build: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    sparse = sg.sparsify(model, sparsity, granularity=granularity)
    for module in sparse.modules():
        if hasattr(module, "backend"):
            module.backend = "sparse"
    return sparse


def quiet(*args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sg.optimize_for_inference(*args, **options)


@pytest.fixture
def every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """All precisions count as native, so that the engine runs them on any machine. The kernels emulate them."""
    monkeypatch.setattr(Precision, "native", True)


@pytest.mark.parametrize(("precision", "least"), [("int16", 45.0), ("bf16", 40.0), ("int8", 25.0)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("every_precision")
def test_results_are_near_those_of_float32(isa: str, precision: str, least: float, threads: int) -> None:
    model, x = net(), torch.randn(2, 4, 20, 24)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        engine = quiet(model, x, precision={"*": precision})
        assert set(engine.precisions.chosen.values()) == {precision}
        assert len(engine.precisions.chosen) == 9
        assert engine.precisions.decibels >= least
        for size in ((20, 24), (33, 18)):  # the second one is compiled later
            x = torch.randn(1, 4, *size)
            assert decibels(model(x), engine(x)) >= least - 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("every_precision")
def test_a_dense_block_shares_a_rounded_panel(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "MOST_GROWTH", 10.0)
    model, x = net(build=lambda: nn.Sequential(Dense(), Dense())), torch.randn(1, 16, 24, 24)  # type: ignore[arg-type]
    engine = quiet(model, x, precision="int16")
    steps = [one for one in engine.steps() if isinstance(one, SparseConvStep) and one.panel is not None]
    assert len(steps) >= 6
    assert any(one.packed for one in steps)
    assert decibels(model(x), engine(x)) > 50


@pytest.mark.usefixtures("every_precision")
def test_signals() -> None:
    model = nn.Sequential(
        nn.Conv1d(8, 16, 7, dilation=2, padding=6), nn.LeakyReLU(0.1), nn.ConvTranspose1d(16, 8, 4, 2)
    )
    sparse = sg.sparsify(model.eval(), 0.5, granularity="input:2")
    for module in sparse.modules():
        if hasattr(module, "backend"):
            module.backend = "sparse"
    x = torch.randn(3, 8, 100)
    assert decibels(sparse(x), quiet(sparse, x, precision="int16")(x)) > 45


def test_a_machine_without_the_instructions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Precision, "native", property(lambda self: self.name == "int16"))
    x = torch.randn(1, 4, 16, 16)
    with pytest.warns(UserWarning, match=r"9 of 9 sparse layers.*int16, not int8: this machine has no instructions"):
        engine = sg.optimize_for_inference(net(), x, precision={"*": "int8"})
    assert set(engine.precisions.chosen.values()) == {"int16"}
    assert "int16, not int8" in str(engine)
    monkeypatch.setattr(Precision, "native", False)
    with pytest.warns(UserWarning, match="float32, not int16"):
        engine = sg.optimize_for_inference(net(), x, precision="int16")
    assert not engine.precisions.chosen
    assert torch.equal(engine(x), quiet(net(), x)(x))


@pytest.mark.usefixtures("every_precision")
def test_layers_that_cannot_be_short_are_named() -> None:
    x = torch.randn(1, 4, 16, 16)
    with pytest.warns(UserWarning, match=r"9 of 9 sparse layers.*1 x 1 channels, and int16 takes input:2"):
        engine = sg.optimize_for_inference(net("element"), x, precision="int16")
    assert not engine.precisions.chosen
    with pytest.warns(UserWarning, match="int16, not int8: its units are input:2"):
        engine = sg.optimize_for_inference(net("input:2"), x, precision={"layers.3": "int8", "*": "float32"})
    assert engine.precisions.chosen == {"layers.3": "int16"}
    with pytest.warns(UserWarning, match=r"int8 leaves the first and the last .*layers.0, layers.11"):
        engine = sg.optimize_for_inference(net(), x, precision="int8")
    assert len(engine.precisions.chosen) == 7


def test_a_model_that_runs_dense_says_so() -> None:
    model = net()
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "dense"
    with pytest.warns(UserWarning, match="no convolution runs on the sparse kernels"):
        sg.optimize_for_inference(model, torch.randn(1, 4, 16, 16), precision="int16")


@pytest.mark.usefixtures("every_precision")
def test_tiles_of_an_image() -> None:
    model = net(build=lambda: nn.Sequential(Dense(), Dense()))  # type: ignore[arg-type]
    engine = quiet(model, torch.randn(1, 16, 24, 24), precision="int16")
    x = torch.randn(1, 16, 70, 50)
    assert decibels(engine(x), engine(x, tile=40)) > 50


@pytest.mark.usefixtures("every_precision")
def test_auto_keeps_the_bound() -> None:
    model, x = net(), torch.randn(1, 4, 16, 16)
    batches = [torch.randn(1, 4, 16, 16) for _ in range(2)]
    all_int8 = quiet(model, x, precision={"*": "int8"}, calibration=batches).precisions.decibels
    kinds = []
    for bound in (all_int8 - 1, all_int8 + 1, 200.0):
        engine = quiet(model, x, precision="auto", calibration=batches, least_db=bound)
        assert engine.precisions.decibels >= bound
        kinds.append(sorted(engine.precisions.chosen.values()))
    assert kinds[0] == ["int8"] * 9
    assert 0 < kinds[1].count("int8") < 9
    assert kinds[2] == []


@pytest.mark.usefixtures("every_precision")
def test_copies_and_pickles_keep_ranges() -> None:
    model, x = net(), torch.randn(1, 4, 16, 16)
    engine = quiet(model, x, precision="int16", calibration=[3 * torch.randn(1, 4, 16, 16)])
    other = torch.randn(2, 4, 20, 20)
    for same in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert torch.equal(same(other), engine(other))


@pytest.mark.usefixtures("every_precision")
def test_inputs_beyond_the_calibration_are_limited() -> None:
    layer = sg.sparsify(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)), 0.5, granularity="input:4").eval()
    layer[0].backend = "sparse"
    x = torch.ones(1, 4, 4, 4)
    engine = quiet(layer, x, precision="int16")
    torch.testing.assert_close(engine(1.9 * x), layer(1.9 * x), rtol=1e-3, atol=1e-4)
    assert torch.equal(engine(50 * x), engine(1e6 * x))
    torch.testing.assert_close(engine(50 * x), layer(2 * x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("count", [1, 50, 4000])
def test_sums_cannot_overflow(precision: Precision, count: int) -> None:
    torch.manual_seed(count)
    values = torch.randn(count, 4).sign() * torch.rand(count, 4).clamp(min=0.9)
    short = shortened(values, torch.empty(0), torch.zeros(count, dtype=torch.int64), 1, precision, 3.0)
    assert short is not None
    if precision.most:
        total = int(short.values.long().abs().sum())
        assert total * (precision.most + 2 * precision.offset) < 2**31
        assert short.sum_scale is not None
        back = short.values.double().view(-1, 4) * float(short.sum_scale) * short.to_integer
        assert float((back - values).abs().max()) <= 0.51 / float(short.values.abs().max())


@pytest.mark.usefixtures("every_precision")
def test_weights_that_would_have_no_levels_stay_wide() -> None:
    layer = nn.Sequential(nn.Conv2d(80_000, 1, 1, bias=False)).eval()
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
    sparse = sg.sparsify(layer, 0.0, granularity="input:2")
    sparse[0].backend = "sparse"
    x = torch.randn(1, 80_000, 1, 2)
    with pytest.warns(UserWarning, match="its outputs have too many weights for int16"):
        engine = sg.optimize_for_inference(sparse, x, precision="int16")
    assert not engine.precisions.chosen
    assert torch.equal(engine(x), quiet(sparse, x)(x))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("precision is 'int4'; it must be one of", {"precision": "int4"}),
        ("precision has no pattern that matches", {"precision": {"nothing": "int16"}}),
        ("needs least_db", {"precision": "auto"}),
        ("no other precision takes it", {"precision": "int16", "least_db": 40.0}),
        ("only a short precision is calibrated", {"calibration": [torch.zeros(1, 4, 16, 16)]}),
        ("calibration: the inputs of layer layers.0 are not finite",
         {"precision": "int16", "calibration": [torch.full((1, 4, 16, 16), torch.nan)]}),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(net(), torch.randn(1, 4, 16, 16), **options)


def test_a_model_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model in float32"):
        quiet(net().double(), torch.randn(1, 4, 16, 16, dtype=torch.float64), precision="int16")
