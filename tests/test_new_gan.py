"""GANs that the package does not know: with one `Reference` each, every command works for them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsegan.cli
from sparsegan.cli import main
from sparsegan.data import IMAGES
from sparsegan.gans import GANS, Objective, Reference, Training, View, store
from sparsegan.gans.reference import Way

TRAINING = Training(data="nowhere", size=16, batch=2, steps=2, lr=1e-3, discriminator_lr=1e-3)


class Judge(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(3, width, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 4))


class FromNoise(nn.Module):
    """Makes images [N, 3, 16, 16] from noise [N, 2, 4, 4] and a shift per channel [N, 3], all float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(2, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1)
        )

    def forward(self, noise: Tensor, shift: Tensor) -> Tensor:
        return torch.tanh(self.grow(noise) + shift[:, :, None, None])


class Repainter(nn.Module):
    """Makes images [N, 3, H, W] from images of the same size and a brightness [N, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.paint = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 3, 3, 1, 1))

    def forward(self, images: Tensor, brightness: Tensor) -> Tensor:
        return torch.tanh(self.paint(images) + brightness[:, :, None, None])


def noise(network: Mapping[str, Any], count: int, size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 2, size // 4, size // 4), torch.randn(count, 3)


def repainted(brightness: float, images: Tensor) -> tuple[Tensor, Tensor]:
    return images, torch.full((len(images), 1), brightness)


def objective_of(generate: Callable[[nn.Module, Tensor], Tensor]) -> Objective:
    return Objective(
        lambda g, d, fake, images: {"gen": -d(fake).mean()},
        lambda g, d, fake, images: {"dis": d(fake).mean() - d(images).clamp(max=1).mean()},
        generate,
        own=lambda fake, images: fake,
        views=lambda fake, images: {"made": View(None, fake, images)},
    )


def reference(name: str, generator: type[nn.Module], generate: Callable[..., Tensor], **more: Any) -> Reference:
    return Reference(
        name=name,
        text="invented",
        build=lambda *, width: (generator(width), Judge(width)),
        objective=lambda network: objective_of(generate),
        generator_sizes=lambda state: [{"width": next((len(t) for key, t in state.items() if "0.bias" in key), 1)}],
        discriminator_sizes=lambda state: {},
        network={"width": 4},
        training=TRAINING,
        **more,
    )


INVENTED = {
    "seeds": reference(
        "seeds",
        FromNoise,
        lambda generator, images: generator(*noise({}, len(images), 16)),
        example=noise,
        from_noise=True,
        samples=replace(IMAGES, mirrored=True),
        size=16,
    ),
    "repaint": reference(
        "repaint",
        Repainter,
        lambda generator, images: generator(*repainted(0.0, images)),
        example=lambda network, count, size: repainted(0.0, torch.rand(count, 3, size, size) * 2 - 1),
        ways=lambda generator, config: {
            name: Way(generator, partial(repainted, value)) for name, value in (("dark", -0.5), ("light", 0.5))
        },
        choice="domains",
        samples=IMAGES,
    ),
}


def features() -> Callable[[Tensor], Tensor]:
    return lambda images: images.mean((2, 3))


@pytest.mark.parametrize("name", INVENTED)
def test_a_reference_is_all_that_the_commands_need(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("matplotlib", "torchmetrics", "onnxruntime"):
        pytest.importorskip(package)
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setitem(GANS, name, INVENTED[name])
    source, dense, small, made = (tmp_path / part for part in ("data", "dense", "small", "made"))
    for split in ("train", "test"):
        (source / split).mkdir(parents=True)
        for index in range(4):
            pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
            image.fromarray(pixels).save(source / split / f"{index}.png")

    assert main(["train", name, "--data", str(source), "--quiet", "--out", str(dense)]) == 0
    scored = ["--features", "test_new_gan:features", "--quiet"]
    command = ["compress", str(dense), "--sparsity", "0.5", "--steps", "2", *scored]
    assert main([*command, "--out", str(small)]) == 0
    assert "FID (test_new_gan:features" in (small / "report.html").read_text()
    bare = tmp_path / "generator.pth"
    torch.save(store.load(dense).generator.state_dict(), bare)
    alone = ["compress", "--generator", str(bare), "--task", name, "--data", str(source), "--size", "16"]
    assert main([*alone, "--warm-up", "1", "--data-free", "--steps", "2", *scored, "--out", str(tmp_path / "own")]) == 0

    if INVENTED[name].from_noise:
        assert main(["generate", str(small), "--count", "3", "--batch", "2", "--out", str(made / "grid.png")]) == 0
        assert main(["train", name, "--data", str(source), "--size", "32", "--out", str(tmp_path / "large")]) == 1
        assert f"it must be 16 for {name}" in capsys.readouterr().err
    else:
        inputs = ["--images", str(source / "test"), "--quiet", "--out", str(made)]
        assert main(["generate", str(small), "--domains", "1", *inputs]) == 0
        assert sorted(path.name for path in made.iterdir()) == ["light"]
        assert main(["generate", str(small), "--direction", "dark", *inputs]) == 1
        assert "--direction is given; this GAN has no direction" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["evaluate", str(small), "--samples", "6", "--seeds", "0", "--json", *scored]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["fid"] >= 0 if INVENTED[name].from_noise else scores["made"]["images"] == 4

    assert main(["export", str(small), "--onnx", str(tmp_path / "generator.onnx")]) == 0
    assert "ONNX Runtime agrees with torch" in capsys.readouterr().out
    assert main(["profile", str(small), "--batch", "2"]) == 0
    assert "sparse" in capsys.readouterr().out


def test_no_code_outside_gans_compares_with_a_gans_name() -> None:
    asked = []
    for path in Path(sparsegan.cli.__file__).parents[1].rglob("*.py"):
        if path.parent.name != "gans":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    names = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} & GANS.keys()
                    asked += [f"{path}:{node.lineno} compares with {name!r}" for name in names]
    assert not asked
