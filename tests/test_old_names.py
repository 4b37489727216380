"""Old names of the last version still work, warn with a DeprecationWarning, and give the same bits."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsegan as sg
from sparsegan import ops
from sparsegan.nn.dispatch import Choice
from sparsegan.ops.plan import compile_plan


@pytest.fixture
def layer() -> sg.SparseConv2d:
    made = sg.SparseConv2d(4, 8, 3, padding=1, sparsity=0.5, granularity="vector:4")
    made.backend = "sparse"
    return made


def arguments(layer: sg.SparseConv2d, x: Tensor) -> tuple[Any, ...]:
    plans = [compile_plan(layer.support, layer.geometry, adjoint) for adjoint in (False, True)]
    return (x, layer.values, layer.bias, layer.support, *plans, layer.geometry.numbers(), False, [8, *x.shape[2:]])


def test_kernel_is_backend(layer: sg.SparseConv2d) -> None:
    with pytest.warns(DeprecationWarning, match=r"SparseConv2d.kernel is SparseConv2d.backend now.*0\.2"):
        assert layer.kernel == "sparse"
    with pytest.warns(DeprecationWarning, match="kernel"):
        layer.kernel = "dense"
    assert layer.backend == "dense"
    with pytest.warns(DeprecationWarning, match=r"Choice\.kernel"):
        assert Choice("sparse", "why").kernel == "sparse"


def test_a_layer_pickled_by_the_last_version(layer: sg.SparseConv2d) -> None:
    written = layer.__getstate__()
    old = {name: value for name, value in written.items() if name not in ("backend", "_cache")}
    old |= {"kernel": "dense", "_derived": None}
    read = type(layer).__new__(type(layer))
    read.__setstate__(old)
    assert read.backend == "dense"
    assert "kernel" not in read.__dict__
    x = torch.randn(2, 4, 5, 5)
    for one in (read, copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        torch.testing.assert_close(one(x), layer(x), rtol=1e-4, atol=1e-5)


def test_gather_gives_the_bits_of_sparse_conv(layer: sg.SparseConv2d) -> None:
    given = arguments(layer, torch.randn(2, 4, 5, 5, requires_grad=True))

    def results(op: Any) -> tuple[Tensor, ...]:
        y = op(*given)
        return (y, *torch.autograd.grad(y.square().sum(), [given[0], layer.values]))

    new = results(torch.ops.sparsegan.sparse_conv)
    for old, name in ((torch.ops.sparsegan.gather, "sparsegan::gather is"), (ops.gather, "sparsegan.ops.gather is")):
        with pytest.warns(DeprecationWarning, match=name):
            assert all(torch.equal(one, other) for one, other in zip(results(old), new, strict=True))


def test_an_exported_program_of_the_last_version(layer: sg.SparseConv2d, tmp_path: Path) -> None:
    x = torch.randn(2, 4, 5, 5)
    program = torch.export.export(nn.Sequential(layer).eval(), (x,))
    calls = [node for node in program.graph.nodes if node.target is torch.ops.sparsegan.sparse_conv.default]
    assert len(calls) == 1
    calls[0].target = torch.ops.sparsegan.gather.default
    program.graph_module.recompile()
    torch.export.save(program, tmp_path / "old.pt2")
    read = torch.export.load(tmp_path / "old.pt2")
    assert "sparsegan.gather" in str(read.graph)
    with pytest.warns(DeprecationWarning, match="sparsegan::gather"):
        y = read.module()(x)
    assert torch.equal(y, layer(x))


def test_old_schemas_have_the_arguments_of_the_new_ones() -> None:
    names = {"gather": "sparse_conv", "gather_fused": "sparse_conv_fused"}
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("sparsegan.ops.vector_ops")
        names["vector_gather"] = "vector_sparse_conv"
    for old, new in names.items():
        one, other = (getattr(torch.ops.sparsegan, name).default._schema.arguments for name in (old, new))
        assert [(str(a.type), a.default_value) for a in one] == [
            (str(a.type), a.default_value) for a in other[: len(one)]
        ]
        assert all(a.has_default_value() for a in other[len(one) :])  # a call by the old name gives them no value


def test_an_engine_pickled_by_the_last_version_compiles_again() -> None:
    model, x = sg.sparsify(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5).eval(), torch.randn(1, 3, 6, 6)
    with pytest.warns(DeprecationWarning, match="sparsegan.engine.served"):
        served = importlib.import_module("sparsegan.engine.served")
    engine = served._compiled_again(model, ((x,), {}), 8, "stored")  # its pickles name this function
    torch.testing.assert_close(engine(x), model(x))


def test_profiles_pickled_by_the_last_version_can_be_printed() -> None:
    report = sg.profile(sg.sparsify(nn.Sequential(nn.Conv2d(3, 4, 3)), 0.5), torch.randn(1, 3, 6, 6), seconds=0.01)
    row = copy.copy(report.rows[0])
    old = {"kernel" if name == "backend" else name: value for name, value in vars(row).items()}
    read = type(row).__new__(type(row))
    read.__setstate__(old)
    assert read == row


@pytest.mark.parametrize(
    "use",
    [
        "layer.kernel",
        "layer.kernel = 'dense'",
        "sg.prune",
        "from sparsegan.allocation import shares",
        "import sparsegan.dispatch as dispatch; dispatch.KERNELS",
        "sg.Compressor(sg.gans.dcgan.Generator(4, 2), None, None, None, seed=3)",
        "sg.ops.gather()",
    ],
)
def test_the_warning_is_shown_at_the_line_of_the_program(use: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    made = "import torch, sparsegan as sg\nlayer = sg.SparseConv2d(4, 4, 3, sparsity=0.5)\n"
    program.write_text(
        f"{made}try:\n    {use}\nexcept (TypeError, ValueError, AttributeError, RuntimeError):\n    pass\n"
    )
    # Without an option, Python shows a DeprecationWarning only where it belongs to a line of __main__.
    shown = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True).stderr
    assert f"{program}:4: DeprecationWarning" in shown, shown
