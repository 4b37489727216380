"""Exported files compute the outputs of the model in other runtimes, also at other sizes than the example's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import sparsegan as sg
from sparsegan.atomic_files import write_json
from sparsegan.cli import main
from sparsegan.engine.export import export_onnx
from sparsegan.gans import GANS, cyclegan, store

onnxruntime = pytest.importorskip("onnxruntime")

SIZES = {
    "dcgan": {"nz": 8, "width": 4},
    "pix2pix": {"downs": 5},
    "cyclegan": {"blocks": 1},
    "stargan": {"blocks": 1},
    "srgan": {"blocks": 1},
    "esrgan": {"blocks": 1},
    "stylegan2": {"image_size": 16, "style_dim": 8, "mapping": 1},
    "hifigan": {"width": 8, "rates": "2-4", "kernels": "4-8", "discriminator_width": 4},
}


def small(name: str) -> store.Gan:
    """A small reference GAN with a sparse generator, whose batch norms have seen one batch."""
    network = {**GANS[name].network, "width": 4, **SIZES[name]}
    gan = store.build({"network": {"gan": name, **network}})
    generator = sg.sparsify(gan.generator, 0.7)
    with torch.no_grad():
        generator(*store.example(gan, 4, 32))
    generator.eval()
    return gan


@pytest.mark.parametrize("name", GANS)
def test_every_generator_runs_in_onnx_runtime_at_any_batch_and_size(name: str, tmp_path: Path) -> None:
    gan, file = small(name), tmp_path / "g.onnx"
    report = export_onnx(gan.generator, store.example(gan, 1, 32), file)
    assert report.difference is not None
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count, size in ((1, 32), (3, 96)):  # the export did not try size 96
        inputs = store.example(gan, count, size, seed=count)
        with torch.no_grad():
            wanted = gan.generator(*inputs)
        made = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})
        for theirs, ours in zip(made, wanted.values() if isinstance(wanted, dict) else [wanted], strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=1e-4)
    assert list(sg.sparse_layers(gan.generator))  # the model is still sparse
    assert [i.name for i in session.get_inputs()] == list(report.inputs)


def test_an_engine_is_exported_as_its_model(tmp_path: Path) -> None:
    gan, file = small("dcgan"), tmp_path / "g.onnx"
    example = store.example(gan, 3, 32)
    engine = sg.optimize_for_inference(gan.generator, example)
    report = export_onnx(engine, example, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {name: x.numpy() for name, x in zip(report.inputs, example, strict=True)})
    torch.testing.assert_close(torch.from_numpy(made), engine(*example), rtol=0, atol=1e-4)
    by_batch = sg.optimize_for_inference(gan.generator, example, statistics="batch")
    with pytest.raises(ValueError, match="the engine has statistics='batch'"):
        export_onnx(by_batch, example, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


class Frozen(nn.Module):
    """A forward that a trace records wrongly, because it branches on the batch size."""

    def forward(self, images: Tensor) -> Tensor:
        return images.tanh() if images.shape[0] == 1 else images.sin()


def test_a_file_with_wrong_outputs_is_not_written(tmp_path: Path) -> None:
    file, x = tmp_path / "frozen.onnx", torch.rand(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match=r"differs from torch by .* on inputs \[2, 2, 4, 4\]; nothing was written"):
        export_onnx(Frozen(), x, file)
    with pytest.raises(ValueError, match=r"the model's weight has dtype torch\.bfloat16; float32 is accepted"):
        export_onnx(nn.Conv2d(2, 2, 1).bfloat16(), x, file)
    with pytest.raises(ValueError, match=r"example has a tensor of dtype torch\.float64"):
        export_onnx(Frozen(), x.double(), file)
    assert not file.exists()
    fixed = export_onnx(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(32, 3)), x, file)
    assert fixed.inputs == {"input": ("batch", 2, 4, 4)}  # the model accepts only 4x4


def test_without_onnx_runtime_the_report_says_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsegan.engine.export.find_spec", lambda name: None)
    with pytest.warns(torch.jit.TracerWarning):  # without a check, only the tracer warns
        report = export_onnx(Frozen(), torch.rand(1, 2, 4, 4), tmp_path / "frozen.onnx")
    assert report.difference is None
    assert "not checked: onnxruntime is not installed" in str(report)


def test_the_command_exports_a_compressed_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gan, folder, file = small("cyclegan"), tmp_path / "small", tmp_path / "b_to_a.onnx"
    sg.save(gan.generator, folder / "generator.safetensors")
    write_json(folder / "config.json", {**gan.config, "compressed": True, "size": 32})
    assert main(["export", str(folder), "--onnx", str(file), "--direction", "b_to_a"]) == 0
    printed = capsys.readouterr().out
    assert "images [batch, 3, height, width] -> output" in printed
    assert "ONNX Runtime agrees with torch" in printed
    assert main(["export", str(folder), "--onnx", str(tmp_path / "both.onnx")]) == 0
    assert "-> a_to_b, b_to_a" in capsys.readouterr().out
    x = torch.rand(2, 3, 32, 36)
    with torch.no_grad():
        wanted = gan.generator.b_to_a(x)
    (made,) = onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(made), wanted, rtol=0, atol=1e-4)


# torch.export takes the sparse model unchanged, because the ops have fake implementations.


class Padded(nn.Sequential):
    """A small network like the ends of a ResNet generator: all padding modes, halved and doubled resolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(8),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
            nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1),
        )


def sparse(model: nn.Module) -> nn.Module:
    """The model pruned, in evaluation, with the sparse backend in all layers."""
    for _name, layer in sg.sparse_layers(sg.sparsify(model, 0.8)):
        layer.backend = "sparse"
    return model.eval()


BATCH, HEIGHT, WIDTH = Dim("batch", min=1, max=64), 2 * Dim("rows", min=8, max=64), 2 * Dim("columns", min=8, max=64)
EXPORTED = {
    "dcgan": (lambda: sg.gans.dcgan.Generator(8, 4, 1), [(2, 8, 1, 1), (5, 8, 1, 1)], {0: BATCH}),
    "resnet": (Padded, [(2, 3, 16, 20), (3, 3, 34, 22)], {0: BATCH, 2: HEIGHT, 3: WIDTH}),
    "cyclegan": (lambda: cyclegan.ResnetGenerator(3, 3, 4, 1), [(1, 3, 32, 32), (1, 3, 32, 32)], None),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_torch_export_gives_the_outputs_of_the_model(name: str, tmp_path: Path) -> None:
    build, shapes, free = EXPORTED[name]
    model = sparse(build())
    example, other = map(torch.randn, shapes)
    with torch.no_grad():
        model(example)  # makes the plans, which become constants of the graph
        program = torch.export.export(model, (example,), dynamic_shapes=None if free is None else (free,))
        calls = [node.target for node in program.graph.nodes]
        assert torch.ops.sparsegan.plan.default not in calls
        assert calls.count(torch.ops.sparsegan.sparse_conv.default) == len(list(sg.sparse_layers(model)))
        torch.export.save(program, tmp_path / "g.pt2")
        loaded = torch.export.load(tmp_path / "g.pt2").module()
        for x in (example, other):
            torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_aotinductor_gives_the_outputs_of_the_model(tmp_path: Path) -> None:
    model = sparse(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Tanh()))
    example, other = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        model(example)
        program = torch.export.export(model, (example,), dynamic_shapes=({0: BATCH},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "g.pt2"))
        compiled = torch._inductor.aoti_load_package(package)
        for x in (example, other):
            torch.testing.assert_close(compiled(x), model(x))


def test_arguments_of_every_kind(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(3, 4, 3, padding=1), nn.Embedding(5, 4)

        def forward(
            self, x: dict[str, Any], labels: Any = None, scale: float = 1.0, skip: Any = None
        ) -> dict[str, Any]:
            y = self.conv(x["image"] + x["more"][0]) * scale
            y = y if labels is None else y + self.table(labels)[:, :, None, None]
            return {"image": y if skip is None else y + skip, "mean": y.mean((2, 3))}

    def image(channels: int = 3) -> Any:
        return torch.randn(2, channels, 6, 6)

    model = sg.sparsify(Nested(), 0.5)
    x = {"image": image(), "more": [image()]}
    done = sg.export_onnx(
        model, (x, torch.tensor([1, 3])), tmp_path / "g.onnx", kwargs={"scale": 2.0, "skip": image(4)}
    )
    assert list(done.inputs) == ["x_image", "x_more_0", "labels", "skip"]
    assert done.outputs == ("image", "mean")
    assert done.difference is not None
    sg.export_onnx(model, (x,), tmp_path / "other.onnx")
    for example, words in (((x, {1, 2}), "an argument holds a set"), ((x, object()), "an argument holds a object")):
        with pytest.raises(TypeError, match=words):
            sg.export_onnx(model, example, tmp_path / "no.onnx")
    with pytest.raises(ValueError, match=r"a tensor of dtype torch\.float64"):
        sg.export_onnx(model, ({"image": image().double(), "more": [image()]},), tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()
