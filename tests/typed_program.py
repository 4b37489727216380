"""A user's program, read only by mypy. An ``assert_type`` fails where a return type is Any or another type."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import sparsegan as sg
from sparsegan import kernels
from sparsegan.compress.compressor import Result
from sparsegan.engine import Engine, GpuEngine
from sparsegan.engine.cpu import Fallback, StepTime
from sparsegan.engine.export import OnnxExport
from sparsegan.gans import Objective
from sparsegan.nn.layer import SparseConv
from sparsegan.ops.vector_plan import compile_plan
from sparsegan.profiling.layers import ProfileReport
from sparsegan.profiling.macs import MacsReport
from sparsegan.pruning.schedule import GradualPruning


class Generator(nn.Module):
    """A user's generator."""


class OwnLayer(sg.SparseConv2d):
    """A user's subclass, which `from_dense` must return."""


def layers(conv: nn.Conv2d, transposed: nn.ConvTranspose2d, either: SparseConv) -> None:
    layer = sg.SparseConv2d.from_dense(conv, sparsity=0.9, granularity="vector:4")
    assert_type(layer, sg.SparseConv2d)
    assert_type(layer.to_dense(), nn.Conv2d)
    assert_type(OwnLayer.from_dense(conv), OwnLayer)
    assert_type(sg.SparseConvTranspose2d.from_dense(transposed), sg.SparseConvTranspose2d)
    assert_type(sg.SparseConvTranspose2d(4, 4, 3).to_dense(), nn.ConvTranspose2d)
    assert_type(either.to_dense(), nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d)
    assert_type(layer.values, nn.Parameter)
    assert_type(layer.support, Tensor)
    assert_type(layer.mask(), Tensor)
    assert_type(layer.sparsity, float)
    assert_type(layer.nnz, int)
    assert_type(layer.forward(torch.zeros(1, 4, 8, 8)), Tensor)


def signals(conv: nn.Conv1d, transposed: nn.ConvTranspose1d, path: Path) -> None:
    assert_type(sg.SparseConv1d.from_dense(conv, 0.9).to_dense(), nn.Conv1d)
    assert_type(sg.SparseConvTranspose1d(4, 4, 16, stride=8).to_dense(), nn.ConvTranspose1d)
    assert_type(sg.sparsify(conv, 0.9), sg.SparseConv1d)
    assert_type(sg.sparsify(transposed, 0.9), sg.SparseConvTranspose1d)
    assert_type(sg.densify(sg.SparseConv1d(4, 4, 3)), nn.Conv1d)
    assert_type(sg.densify(sg.SparseConvTranspose1d(4, 4, 3)), nn.ConvTranspose1d)
    assert_type(sg.load(conv, path), nn.Conv1d | sg.SparseConv1d)
    assert_type(sg.load(transposed, path), nn.ConvTranspose1d | sg.SparseConvTranspose1d)


def models(model: Generator, conv: nn.Conv2d, transposed: nn.ConvTranspose2d, example: Tensor, path: Path) -> None:
    assert_type(sg.sparsify(model, sparsity={"*": 0.9}), Generator)
    assert_type(sg.sparsify(conv, 0.9), sg.SparseConv2d)
    assert_type(sg.sparsify(transposed, 0.9), sg.SparseConvTranspose2d)
    assert_type(sg.sparse_layers(model), Iterator[tuple[str, SparseConv]])
    assert_type(sg.densify(model), Generator)
    assert_type(sg.densify(sg.SparseConv2d(4, 4, 3)), nn.Conv2d)
    assert_type(sg.densify(sg.SparseConvTranspose2d(4, 4, 3)), nn.ConvTranspose2d)
    assert_type(sg.load(model, path), Generator)
    assert_type(sg.load(conv, path), nn.Conv2d | sg.SparseConv2d)
    assert_type(sg.load(transposed, path), nn.ConvTranspose2d | sg.SparseConvTranspose2d)
    assert_type(sg.checkpoint.file_report(path), dict[str, float])
    assert_type(sg.remove_filters(model, example), Generator)
    assert_type(sg.reorder_channels(model, example, "vector:4", 0.9), Generator)
    assert_type(sg.count_macs(model, example), MacsReport)
    assert_type(sg.count_macs(model, example).executed, int)
    assert_type(sg.training_bytes(model), dict[str, int])
    assert_type(sg.profile(model, example), ProfileReport)
    assert_type(sg.tune(model, example), ProfileReport)
    assert_type(sg.export_onnx(model, example, path), OnnxExport)
    assert_type(sg.pruning.allocation.allocate(model, 0.9), dict[str, float])
    assert_type(sg.Average(model).model, nn.Module)
    assert_type(sg.gans.srgan.Generator(width=16, blocks=2), sg.gans.srgan.Generator)


def engines(model: Generator, example: Tensor) -> None:
    engine = sg.optimize_for_inference(model, example)
    assert_type(engine, Engine | GpuEngine)
    if isinstance(engine, sg.Engine):
        assert_type(engine.fallbacks, list[Fallback])
        assert_type(engine.profile(), list[StepTime])
        assert_type(engine.eval(), Engine)


def compression(generator: Generator, discriminator: nn.Module, objective: Objective, batches: list[Tensor]) -> None:
    config = sg.CompressionConfig(generator_lr=1e-3, granularity={"head": "filter", "*": "element"}, ema=0.999)
    assert_type(sg.CompressionConfig.from_dict(config.to_dict()), sg.CompressionConfig)
    schedule, run = GradualPruning(steps=100, target=0.9), sg.RunConfig("runs/mine", resume=True)
    compressor = sg.Compressor(generator, discriminator, objective, schedule, config, run=run)
    assert_type(compressor.fit(batches), Result)


def ops(layer: sg.SparseConv2d, x: Tensor) -> None:
    taps = (layer.support, None, None, layer.geometry.numbers())
    assert_type(sg.ops.sparse_conv(x, layer.values, layer.bias, *taps, adjoint=False, output_size=[4, 6, 6]), Tensor)
    assert_type(sg.ops.wgrad(x, x, *taps, adjoint=False), Tensor)
    assert_type(kernels.why_not(layer.geometry, torch.float16, torch.device("cuda")), str | None)
    assert_type(compile_plan(layer.support, layer.geometry), Tensor)


def mistakes(model: Generator) -> None:
    """Calls that mypy must reject. It reports an ignore comment as unused where it accepts the call."""
    sg.sparsify(model, sparsity="90 %")  # type: ignore[call-overload]
    sg.CompressionConfig(discriminator_mode="on")  # type: ignore[arg-type]
    sg.load(model, 3)  # type: ignore[call-overload]
    sg.optimise_for_inference(model)  # type: ignore[attr-defined]
    sg.save(model)  # type: ignore[call-arg]
