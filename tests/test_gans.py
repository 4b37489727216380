"""The reference GANs: names and shapes of public checkpoints, and loss terms against their equations."""

from __future__ import annotations

import pytest
import torch

from sparsegan.gans import dcgan, store


def test_dcgan_has_the_names_and_shapes_of_the_public_example() -> None:
    # From PyTorch's examples/dcgan/main.py with nz=100, ngf=ndf=64, nc=3.
    generator = {
        f"main.{3 * i}.weight": shape
        for i, shape in enumerate(
            [(100, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
        )
    }
    for i, width in enumerate([512, 256, 128, 64]):
        for name in ("weight", "bias", "running_mean", "running_var"):
            generator[f"main.{3 * i + 1}.{name}"] = (width,)
        generator[f"main.{3 * i + 1}.num_batches_tracked"] = ()
    discriminator = {
        f"main.{i}.weight": shape
        for i, shape in zip(
            (0, 2, 5, 8, 11),
            [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)],
            strict=True,
        )
    }
    for i, width in zip((3, 6, 9), [128, 256, 512], strict=True):
        for name in ("weight", "bias", "running_mean", "running_var"):
            discriminator[f"main.{i}.{name}"] = (width,)
        discriminator[f"main.{i}.num_batches_tracked"] = ()
    nets = dcgan.Generator(100, 64, 3), dcgan.Discriminator(3, 64)
    for net, expected in zip(nets, (generator, discriminator), strict=True):
        assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == expected
    images = nets[0](torch.randn(2, 100, 1, 1))
    assert images.shape == (2, 3, 64, 64)
    assert images.abs().max() <= 1
    assert nets[1](images).shape == (2,)
    with pytest.raises(ValueError, match="ngf is 0; it must be at least 1"):
        dcgan.Generator(ngf=0)


def test_dcgan_terms_are_the_documented_equations() -> None:
    torch.manual_seed(0)
    generator, discriminator = dcgan.Generator(8, 2, 1).double(), dcgan.Discriminator(1, 2).double()
    real = torch.rand(5, 1, 64, 64, dtype=torch.float64)
    fake = dcgan.objective.generate(generator, real)
    on_real, on_fake = discriminator(real), discriminator(fake)
    gen = dcgan.objective.generator_terms(generator, discriminator, fake, real)
    dis = dcgan.objective.discriminator_terms(generator, discriminator, fake, real)
    torch.testing.assert_close(gen, {"gen": -on_fake.log().mean()})
    torch.testing.assert_close(dis, {"dis": -on_real.log().mean() - (1 - on_fake).log().mean()})


def test_a_stored_gan_comes_back(tmp_path) -> None:
    config = {"network": {"gan": "dcgan", "nz": 8, "width": 2, "channels": 1}}
    gan = store.build(config)
    (tmp_path / "config.json").write_text('{"network": {"gan": "dcgan", "nz": 8, "width": 2, "channels": 1}}')
    with pytest.raises(FileNotFoundError, match=r"generator.safetensors is missing"):
        store.load(tmp_path)
    for half, tolerance in ((False, 0.0), (True, 1e-3)):
        store.save(tmp_path, gan.generator, gan.discriminator, half)
        again = store.load(tmp_path)
        for one, other in ((gan.generator, again.generator), (gan.discriminator, again.discriminator)):
            for name, tensor in one.state_dict().items():
                torch.testing.assert_close(other.state_dict()[name], tensor, rtol=tolerance, atol=tolerance / 100)
    with pytest.raises(ValueError, match='its "gan" must be "dcgan"'):
        store.build({"network": {"gan": "wgan"}})
