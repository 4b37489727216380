"""The likeness of generators to an original: figures against float64 references, verdicts on planted generators."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsegan.gans import Objective
from sparsegan.gans.objective import View
from sparsegan.metrics.likeness import CLOSE, FAR, PARTLY, Likeness, OriginalImages, edge_energy, worst

BATCHES = [torch.zeros(16, 3, 32, 32) for _ in range(4)]


class Planted(nn.Module):
    """Smooth colour images from noise [N, 3, 4, 4], changed by `change`."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        super().__init__()
        self.change, self.scale = change, nn.Parameter(torch.tensor(0.8))

    def forward(self, noise: Tensor) -> Tensor:
        images = F.interpolate(noise, (32, 32), mode="bilinear", align_corners=False) + 0.3 * noise.repeat(1, 1, 8, 8)
        return self.change(torch.tanh(self.scale * images))


objective = Objective(
    lambda *given: {}, lambda *given: {}, lambda generator, batch: generator(torch.randn(len(batch), 3, 4, 4))
)


def blurred(kernel: int) -> Callable[[Tensor], Tensor]:
    return lambda images: F.avg_pool2d(images, kernel, 1, kernel // 2, count_include_pad=False)


def likeness(change: Callable[[Tensor], Tensor]) -> Likeness:
    found = OriginalImages(Planted(), objective, BATCHES, seed=5).compare(Planted(change))
    assert list(found) == ["images"]
    return found["images"]


def noisy(size: float) -> Callable[[Tensor], Tensor]:
    return lambda images: images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda images: images, CLOSE),
        (noisy(0.02), CLOSE),
        (blurred(5), PARTLY),
        (blurred(15), FAR),  # the right colours at the right places, without an edge
        (noisy(0.5), FAR),
        (lambda images: images.mean(0, keepdim=True).expand_as(images), FAR),
        (lambda images: torch.zeros_like(images), FAR),
        (lambda images: torch.rand_like(images) * 2 - 1, FAR),
        (lambda images: images.flip(0), FAR),  # good images, of other inputs
        (lambda images: -images, FAR),
    ],
)
def test_planted_generators_get_their_verdicts(change: Callable[[Tensor], Tensor], verdict: str) -> None:
    found = likeness(change)
    assert found.verdict == verdict, found


def test_the_figures_are_the_written_ones() -> None:
    before = torch.get_rng_state()
    found = likeness(blurred(3))
    assert torch.equal(torch.get_rng_state(), before)
    images = []
    for index, batch in enumerate(BATCHES):
        torch.manual_seed(5 + index)
        images.append(Planted()(torch.randn(len(batch), 3, 4, 4)).detach().double())
    theirs = torch.cat(images)
    ours = blurred(3)(theirs)
    assert found.psnr == pytest.approx(10 * math.log10(4 / (ours - theirs).square().mean().item()), abs=1e-4)
    assert found.difference == pytest.approx((ours - theirs).abs().mean().item(), rel=1e-5)
    assert found.mean_image == pytest.approx(10 * math.log10(4 / (theirs - theirs.mean(0)).square().mean()), abs=1e-4)
    energies = []
    for one in (ours, theirs):
        padded = F.pad(one, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 2:] - padded[..., :-2]
        down = padded[..., 2:, :] - padded[..., :-2, :]
        across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        energies.append((across.square() + down.square()).sum().item())
        assert edge_energy(one) == pytest.approx(energies[-1], rel=1e-12)
    assert found.edges == pytest.approx(energies[0] / energies[1], rel=1e-5)
    assert found.edges < 1


def test_no_generator_that_ignores_its_input_is_above_the_mean_image() -> None:
    def best(images: Tensor) -> Tensor:
        return mean.expand_as(images)

    torch.manual_seed(0)
    with torch.no_grad():
        made = [Planted()(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(5 + i))) for i in range(4)]
    mean = torch.cat(made).mean(0)
    found = likeness(best)
    assert found.psnr == pytest.approx(found.mean_image, abs=1e-4)
    assert likeness(lambda images: (mean + 0.01).expand_as(images)).psnr < found.mean_image


def test_the_worst_kind_decides_and_mistakes_are_named() -> None:
    close, partly, far = (Likeness(psnr, 0.1, 1.0, 10.0) for psnr in (25.0, 20.0, 14.0))
    assert [one.verdict for one in (close, partly, far)] == [CLOSE, PARTLY, FAR]
    assert worst({"a": close, "b": far, "c": partly}) == ("b", far)
    assert Likeness(40.0, 0.1, 0.2, 10.0).verdict == Likeness(40.0, 0.1, 4.5, 10.0).verdict == FAR
    assert Likeness(40.0, 0.1, 0.7, 10.0).verdict == Likeness(40.0, 0.1, 1.0, 33.0).verdict == PARTLY
    assert Likeness(float("nan"), 0.1, 1.0, 10.0).verdict == FAR
    with pytest.raises(ValueError, match="figures is empty"):
        worst({})
    with pytest.raises(ValueError, match="batches is empty"):
        OriginalImages(Planted(), objective, [])
    with pytest.raises(ValueError, match=r"the generator makes images .*, the original .*; both must agree"):
        likeness(lambda images: images[:, :1])
    with pytest.raises(ValueError, match="images of the kind 'images' hold values that are not finite"):
        likeness(lambda images: images / 0)


def test_a_batch_may_lack_a_kind_of_image() -> None:
    """StarGAN's views are the domains that images of the batch came to."""

    def views(fake: Tensor, batch: Tensor) -> dict[str, View]:
        kinds = {"dark": batch[:, 0, 0, 0] < 0, "light": batch[:, 0, 0, 0] >= 0}
        return {name: View(None, fake[rows]) for name, rows in kinds.items()}

    def generate(generator: nn.Module, batch: Tensor) -> Tensor:
        return generator(batch)

    objective = Objective(lambda *_: {}, lambda *_: {}, generate, views=views)
    batches = [torch.full((2, 1, 16, 16), -0.5), torch.rand(3, 1, 16, 16)]
    original = OriginalImages(nn.Identity(), objective, batches)
    assert original.count == 3
    assert {name: one.psnr > 50 for name, one in original.compare(nn.Identity()).items()} == {
        "dark": True,
        "light": True,
    }
