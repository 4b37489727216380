"""HiFi-GAN: networks against plain twins in float64, public files, spectrograms, sounds, one file from end to end."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from sparsegan import data
from sparsegan.cli import main
from sparsegan.data import registry, sentences, tones
from sparsegan.data.wav import read_wav, to_wav, write_wav
from sparsegan.gans import hifigan, store
from sparsegan.spectrograms import RESOLUTIONS, Mel, picture, stft_distance

State = dict[str, Tensor]
TINY = {"width": 8, "bands": 6, "rates": "4-2", "kernels": "8-4", "block_kernels": "3-5", "dilations": "1-3-5"}
MEL = {"rate": 8000, "n_fft": 32, "window": 24, "high": 3000}
CONVS = (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d)


# The twins are written from the paper's public code. They read a state_dict and no module.


def leaky(x: Tensor, slope: float = 0.1) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def generator_twin(state: State, x: Tensor, block: str, rates: list[int], blocks: int, rows: list[list[int]]) -> Tensor:
    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = (weight.shape[2] * dilation - dilation) // 2
        return F.conv1d(x, weight, state[f"{name}.bias"], padding=padding, dilation=dilation)

    x = conv("conv_pre", x)
    for level, rate in enumerate(rates):
        weight = state[f"ups.{level}.weight"]
        x = F.conv_transpose1d(leaky(x), weight, state[f"ups.{level}.bias"], rate, (weight.shape[2] - rate) // 2)
        total = torch.zeros_like(x)
        for index in range(blocks):
            y, name = x, f"resblocks.{level * blocks + index}"
            for step, dilation in enumerate(rows[index]):
                if block == "1":
                    inner = conv(f"{name}.convs1.{step}", leaky(y), dilation)
                    y = conv(f"{name}.convs2.{step}", leaky(inner)) + y
                else:
                    y = conv(f"{name}.convs.{step}", leaky(y), dilation) + y
            total = total + y
        x = total / blocks
    return torch.tanh(conv("conv_post", leaky(x, 0.01)))


def judge_twin(state: State, sound: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    scores, features = [], []

    def judged(name: str, x: Tensor, run: Callable[..., Tensor], hows: list[dict[str, Any]]) -> None:
        found = []
        for index, how in enumerate(hows):
            layer = f"{name}.convs.{index}" if index + 1 < len(hows) else f"{name}.conv_post"
            weight = state.get(f"{layer}.weight")
            if weight is None:
                weight, u, v = (state[f"{layer}.weight_{part}"] for part in ("orig", "u", "v"))
                weight = weight / (u @ weight.flatten(1) @ v)
            x = run(x, weight, state[f"{layer}.bias"], **how)
            x = leaky(x) if index + 1 < len(hows) else x
            found.append(x)
        scores.append(x.flatten(1))
        features.append(found)

    for index, period in enumerate((2, 3, 5, 7, 11)):
        n, _, length = sound.shape
        whole = F.pad(sound, (0, (period - length % period) % period), "reflect").view(n, 1, -1, period)
        hows = [{"stride": (3, 1), "padding": (2, 0)}] * 4 + [{"padding": (2, 0)}, {"padding": (1, 0)}]
        judged(f"mpd.discriminators.{index}", whole, F.conv2d, hows)
    for index in range(3):
        if index:
            sound = F.avg_pool1d(sound, 4, 2, padding=2)
        sizes = [(1, 1, 7), (2, 4, 20), (2, 16, 20), (4, 16, 20), (4, 16, 20), (1, 16, 20), (1, 1, 2), (1, 1, 1)]
        hows = [{"stride": s, "groups": g, "padding": p} for s, g, p in sizes]
        judged(f"msd.discriminators.{index}", sound, F.conv1d, hows)
    return scores, features


def drawn(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return network.double().eval()


@pytest.mark.parametrize(
    ("block", "rates", "kernels", "block_kernels", "rows"),
    [
        ("1", [8, 8, 2, 2], [16, 16, 4, 4], [3, 7, 11], [[1, 3, 5]] * 3),
        ("2", [8, 8, 4], [16, 16, 8], [3, 5, 7], [[1, 2], [2, 6], [3, 12]]),
        ("1", [5, 3], [11, 3], [3], [[1, 2]]),
        ("2", [2], [4], [5, 3], [[1], [4]]),
    ],
)
def test_the_generator_is_its_twin(
    block: str, rates: list[int], kernels: list[int], block_kernels: list[int], rows: list[list[int]]
) -> None:
    torch.manual_seed(0)
    texts = ["-".join(map(str, row)) for row in (rates, kernels, block_kernels)]
    net = drawn(hifigan.Generator(20, 5, block, *texts, "/".join("-".join(map(str, row)) for row in rows)))
    mel = torch.randn(2, 5, 7, dtype=torch.float64)
    made = net(mel)
    assert made.shape == (2, 1, 7 * int(np.prod(rates)))
    torch.testing.assert_close(made, generator_twin(net.state_dict(), mel, block, rates, len(rows), rows))


def test_the_discriminator_is_its_twin() -> None:
    torch.manual_seed(0)
    judge = drawn(hifigan.Discriminator(4))
    sound = torch.randn(2, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(judge(sound), judge_twin(judge.state_dict(), sound))


@pytest.mark.parametrize(("name", "millions"), [("V1", 13.92), ("V2", 0.92), ("V3", 1.46)])
def test_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        generator, judge = hifigan.build(**hifigan.SIZES[name])
    assert int(sum(p.numel() for p in generator.parameters()) / 1e4) / 100 == millions
    levels, convs, kinds = (3, 2, ["convs"]) if name == "V3" else (4, 3, ["convs1", "convs2"])
    names = {"conv_pre", "conv_post", *(f"ups.{index}" for index in range(levels))}
    blocks = range(3 * levels)
    names |= {f"resblocks.{index}.{kind}.{conv}" for index in blocks for kind in kinds for conv in range(convs)}
    assert {key.rpartition(".")[0] for key in generator.state_dict()} == names
    shapes = {key: tuple(tensor.shape) for key, tensor in judge.state_dict().items()}
    assert shapes["mpd.discriminators.4.convs.3.weight"] == (1024, 512, 5, 1)
    assert shapes["msd.discriminators.0.convs.4.weight_orig"] == (1024, 32, 41)
    assert shapes["msd.discriminators.2.conv_post.weight"] == (1, 1024, 3)


# Files


def normed(network: nn.Module, how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The network with a weight norm, away from its initial state, on each layer without a spectral norm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's older function, whose files are the public ones
        for module in network.modules():
            if isinstance(module, CONVS) and not hasattr(module, "weight_orig"):
                how(module)
    for name, parameter in network.named_parameters():
        if name.endswith(("_g", "original0")):
            nn.init.uniform_(parameter, 0.2, 0.6)
    return network.eval()


@pytest.mark.parametrize("how", [weight_norm, parametrizations.weight_norm])
def test_weight_norms_of_public_files_are_folded(how: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator, judge = (normed(network, how) for network in hifigan.build(**TINY, discriminator_width=4))
    optimizer = {"state": {}, "param_groups": [{"lr": 2e-4}]}
    torch.save({"generator": generator.state_dict()}, tmp_path / "g_02500000")
    parts = {name: getattr(judge, name).state_dict() for name in ("mpd", "msd")}
    torch.save({**parts, "optim_g": optimizer, "optim_d": optimizer, "steps": 7, "epoch": 1}, tmp_path / "do_02500000")
    gan, trained = store.load_public(tmp_path / "g_02500000", tmp_path / "do_02500000")
    assert trained
    assert gan.config["network"] == {"gan": "hifigan", "block": "1", "discriminator_width": 4, **TINY}
    mel, sound = torch.randn(2, 6, 9), torch.randn(2, 1, 500)
    torch.testing.assert_close(gan.generator(mel), generator(mel))
    torch.testing.assert_close(gan.discriminator(sound), judge(sound))
    file = torch.load(tmp_path / "do_02500000")
    del file["msd"]["discriminators.1.conv_post.bias"]
    with pytest.raises(ValueError, match=r"msd\.discriminators\.1\.conv_post\.bias is missing"):
        store.load_public(tmp_path / "g_02500000", file)


@pytest.mark.parametrize("name", hifigan.SIZES)
def test_the_published_generators_are_recognised(name: str) -> None:
    state = hifigan.Generator(**{**hifigan.SIZES[name], "width": 16}).state_dict()
    known = {"rates": "8-8-2-2", "kernels": "16-16-4-4", "block_kernels": "3-7-11", "block": "1", "dilations": "1-3-5"}
    network = store.load_public(state, discriminator_width=4)[0].config["network"]
    assert network == {
        "gan": "hifigan",
        "bands": 80,
        **known,
        **hifigan.SIZES[name],
        "width": 16,
        "discriminator_width": 4,
    }


def test_sizes_that_shapes_do_not_show_come_from_the_public_configuration(tmp_path: Path) -> None:
    sizes = {**TINY, "rates": "6-2", "dilations": "1-2/2-6", "block": "2", "rate": 16000, "n_fft": 64, "window": 48}
    made = hifigan.build(**sizes, low=20, high=None, discriminator_width=4)[0].eval()
    torch.save({"generator": made.state_dict()}, tmp_path / "generator")
    public = {"upsample_rates": [6, 2], "upsample_kernel_sizes": [8, 4], "upsample_initial_channel": 8, "num_mels": 6}
    public |= {"resblock": "2", "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 2], [2, 6]]}
    public |= {"n_fft": 64, "hop_size": 12, "win_size": 48, "sampling_rate": 16000, "fmin": 20, "fmax": None}
    public |= {"batch_size": 16, "adam_b1": 0.8}
    (tmp_path / "config.json").write_text(json.dumps(public))
    gan = store.load_public(tmp_path / "generator", discriminator_width=4)[0]
    assert gan.config["network"] == {"gan": "hifigan", **sizes, "low": 20, "high": None, "discriminator_width": 4}
    mel = torch.randn(1, 6, 5)
    torch.testing.assert_close(gan.generator(mel), made(mel))
    for change, why in (
        ({"hop_size": 256}, "hop_size 256; it must be the product"),
        ({"upsample_rates": [6, "x"]}, "list"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(public | change))
        with pytest.raises(ValueError, match=why):
            store.load_public(tmp_path / "generator")
    for other in ("[]", "{", '{"model": "of something else"}'):
        (tmp_path / "config.json").write_text(other)
        assert store.load_public(tmp_path / "generator", discriminator_width=4)[0].config["network"]["rates"] == "4-2"


def test_bad_sizes_are_named() -> None:
    for sizes, why in (
        ({"rates": "4,2"}, "rates is '4,2'; it must be integers of at least 1, joined by '-'"),
        ({"rates": "4"}, "each rate needs a kernel"),
        ({"kernels": "7-4"}, "each rate needs a kernel that is larger by an even number"),
        ({"block_kernels": "3-4"}, "the kernels must be odd"),
        ({"dilations": "1/2/3"}, "one list of dilations for each or one for all"),
        ({"width": 3}, "width is 3; with 2 rates it must be at least 4"),
        ({"block": "3"}, "block is '3'; it must be one of 1, 2"),
        ({"n_fft": 4}, "n_fft is 4; it must be at least hop, 8"),
        ({"high": 20000}, "high is 20000"),
        ({"discriminator_width": 6}, "multiple of 4"),
    ):
        with pytest.raises(ValueError, match=re.escape(why)):
            hifigan.build(**{**TINY, **sizes})


# Spectrograms


def mel_twin(sound: np.ndarray, mel: Mel) -> np.ndarray:
    """The mel spectrogram of a sound [T], by a sum for each frame and frequency."""
    left = (mel.n_fft - mel.hop) // 2
    padded = np.pad(sound, (left, mel.n_fft - mel.hop - left), mode="reflect")
    window = np.zeros(mel.n_fft)
    first = (mel.n_fft - mel.window) // 2
    window[first : first + mel.window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(mel.window) / mel.window)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(mel.n_fft // 2 + 1), np.arange(mel.n_fft)) / mel.n_fft)
    frames = [padded[at : at + mel.n_fft] * window for at in range(0, len(padded) - mel.n_fft + 1, mel.hop)]
    strength = np.sqrt(np.abs(turns @ np.stack(frames, 1)) ** 2 + 1e-9)

    def to_mel(hertz: float) -> float:
        return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    def to_hertz(mels: float) -> float:
        return 200 * mels / 3 if mels < 15 else 1000 * 6.4 ** ((mels - 15) / 27)

    step = (to_mel(mel.top) - to_mel(mel.low)) / (mel.bands + 1)
    edges = [to_hertz(to_mel(mel.low) + step * index) for index in range(mel.bands + 2)]
    bands = np.zeros((mel.bands, mel.n_fft // 2 + 1))
    for band in range(mel.bands):
        low, middle, high = edges[band : band + 3]
        for index in range(mel.n_fft // 2 + 1):
            hertz = index * mel.rate / mel.n_fft
            if low < hertz < high:
                height = (hertz - low) / (middle - low) if hertz < middle else (high - hertz) / (high - middle)
                bands[band, index] = height * 2 / (high - low)
    return np.log(np.maximum(bands @ strength, 1e-5))


@pytest.mark.parametrize(
    "mel",
    [Mel(), Mel(high=None), Mel(8000, 64, 20, 50, 12, 100, 3500), Mel(16000, 63, 30, 63, 9, 0, None)],
    ids=["input", "loss", "small", "odd"],
)
def test_mel_spectrograms_are_their_sums(mel: Mel) -> None:
    sound = torch.randn(2, 1, mel.hop * 5 + 3, dtype=torch.float64).cumsum(2) / 30
    found = mel(sound)
    assert found.shape == (2, mel.bands, 5)
    for one, wanted in zip(found, sound, strict=True):
        np.testing.assert_allclose(one.numpy(), mel_twin(wanted[0].numpy(), mel), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mel(sound.float()), found.float(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=rf"needs {mel.least}"):
        mel(sound[..., : mel.least - 1])
    assert mel(sound[..., : mel.least]).isfinite().all()
    with pytest.raises(ValueError, match=r"it must be \[N, 1, T\]"):
        mel(sound[:, 0])


def test_stft_distances_are_their_sums() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(2, 3, 1, 2000, dtype=torch.float64)
    wanted = []
    for x, y in zip(real[:, 0], fake[:, 0], strict=True):
        parts = []
        for n_fft, hop, window in RESOLUTIONS:
            hann = torch.hann_window(window, dtype=torch.float64)
            r, f = (torch.stft(s, n_fft, hop, window, hann, pad_mode="constant", return_complex=True) for s in (x, y))
            r, f = ((s.abs() ** 2 + 1e-7).sqrt() for s in (r, f))
            parts.append(torch.linalg.norm(r - f) / torch.linalg.norm(r) + (r / f).log().abs().mean())
        wanted.append(sum(parts) / 3)
    torch.testing.assert_close(stft_distance(fake, real), torch.stack(wanted))
    assert stft_distance(real, real).abs().max() == 0


def test_a_picture_has_low_frequencies_below_and_loud_ones_white() -> None:
    rate = 22050
    tone = torch.sin(2 * torch.pi * 300 * torch.arange(rate, dtype=torch.float32) / rate).view(1, 1, -1)
    image = picture(Mel(high=None)(tone))
    assert image.shape == (1, 1, 80, rate // 256)
    assert image.abs().max() <= 1
    assert 80 - 15 < image[0, 0, :, 40].argmax() < 80 - 3  # 300 Hz is 4.5 mels of 58, counted from below


# Terms


def test_the_terms_are_their_equations() -> None:
    torch.manual_seed(0)
    generator, judge = (drawn(one) for one in hifigan.build(**TINY, **MEL, discriminator_width=4))
    mel = Mel(8000, 32, 8, 24, 6, 0, 3000)
    objective = hifigan.reference.objective({**TINY, **MEL})
    sound = torch.randn(2, 1, 403, dtype=torch.float64)
    fake = objective.generate(generator, sound)
    torch.testing.assert_close(fake, generator(mel(sound)))
    real = sound[..., :400]
    (scores, found), (others, wanted) = judge(fake), judge(real)
    full = Mel(8000, 32, 8, 24, 6, 0, None)
    pairs = [pair for ours, theirs in zip(found, wanted, strict=True) for pair in zip(ours, theirs, strict=True)]
    terms = {
        "gen": sum(((score - 1) ** 2).mean() for score in scores),
        "features": sum((ours - theirs).abs().mean() for ours, theirs in pairs),
        "mel": (full(real) - full(fake)).abs().mean(),
    }
    arguments = generator, judge, fake, sound
    torch.testing.assert_close(objective.generator_terms(*arguments), terms)
    dis = sum(((other - 1) ** 2).mean() + (score**2).mean() for score, other in zip(scores, others, strict=True))
    torch.testing.assert_close(objective.discriminator_terms(*arguments), {"dis": dis})
    assert [objective.weight(term) for term in terms] == [1, 2, 45]
    assert objective.measures is not None
    measures = objective.measures(fake, sound)
    torch.testing.assert_close(measures["mel L1"].mean(), terms["mel"])
    torch.testing.assert_close(measures["multi-resolution STFT"], stft_distance(fake, real))


# WAV files


def wav_bytes(
    content: bytes, kind: int, bits: int, channels: int = 1, rate: int = 22050, extensible: bool = False
) -> bytes:
    frame = channels * bits // 8
    tag = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * frame, frame, bits)
    if extensible:
        tag += struct.pack("<HHIH14s", 22, bits, 0, kind, bytes.fromhex("000000001000800000aa00389b71"))
    # An unknown part of odd length stands before the samples, and is padded.
    parts = b"".join(
        n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in ((b"fmt ", tag), (b"LIST", b"abc"))
    )
    parts += b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


@pytest.mark.parametrize(("kind", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
@pytest.mark.parametrize("extensible", [False, True])
def test_wav_files_of_every_format(kind: int, bits: int, extensible: bool, tmp_path: Path) -> None:
    values = np.array([[-1, -1], [0, 0], [0.5, 0.25], [-0.25, 0.75]])
    if kind == 3:
        content = values.astype(f"<f{bits // 8}").tobytes()
    else:
        whole = (values * 2 ** (bits - 1)).astype(np.int64) + (128 if bits == 8 else 0)
        content = b"".join(int(v).to_bytes(bits // 8, "little", signed=bits > 8) for v in whole.ravel())
    file = tmp_path / "a.wav"
    file.write_bytes(wav_bytes(content, kind, bits, 2, 16000, extensible))
    sound, rate = read_wav(file)
    assert rate == 16000
    assert torch.equal(sound, torch.tensor([[-1, 0, 0.375, 0.25]]))


def test_written_sounds_are_read_again(tmp_path: Path) -> None:
    sound = torch.linspace(-1.5, 1.5, 999)
    write_wav(tmp_path / "a.wav", sound, 8000)
    read, rate = read_wav(tmp_path / "a.wav")
    assert rate == 8000
    torch.testing.assert_close(read[0], sound.clamp(-1, 1), rtol=0, atol=1.6 / 32768)
    for bad, why in ((torch.zeros(2, 5), "it must be"), (torch.tensor([0.0, torch.nan]), "not finite")):
        with pytest.raises(ValueError, match=why):
            to_wav(bad, 8000)


def test_damaged_wav_files_are_refused_by_name(tmp_path: Path) -> None:
    good, file = wav_bytes(struct.pack("<4h", 1, 2, 3, 4), 1, 16), tmp_path / "a.wav"
    for content, why in (
        (b"", "does not begin with RIFF"),
        (b"RIFX" + good[4:], "does not begin with RIFF"),
        (good[:-1], "announces 8 bytes of samples and has 7"),
        (wav_bytes(b"", 1, 16), "holds no samples"),
        (wav_bytes(b"\0" * 7, 1, 16), "no whole number of 2 bytes"),
        (wav_bytes(b"\0" * 8, 2, 4), "format 2 with 4 bits; integers"),
        (wav_bytes(b"\0" * 8, 1, 16, rate=0), "contradicts itself"),
        (good.replace(b"fmt ", b"fnt "), "come before their format"),
        (wav_bytes(struct.pack("<2f", 0.0, float("inf")), 3, 32), "not finite"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(why)) as caught:
            read_wav(file)
        assert "a.wav" in str(caught.value)
    for place in range(len(good)):  # any other damage gives an error or samples, and nothing else
        for value in (0, 1, 255):
            file.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                sound, rate = read_wav(file)
            except ValueError:
                continue
            else:
                assert sound.isfinite().all()
                assert rate > 0
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_wav(tmp_path)


# Sounds as samples


def test_windows_of_sounds(tmp_path: Path) -> None:
    lengths = {"train/a": 100, "train/deep/b": 30, "train/c": 7, "test/d": 25}
    for name, length in lengths.items():
        sound = torch.arange(1, length + 1) / 32768
        write_wav(tmp_path / f"{name}.wav", sound * 32768 / 32767, 8000)
    (tmp_path / "train" / "notes.txt").write_text("left out")
    loaded = data.load("sounds", tmp_path, 10)
    assert (loaded.channels, loaded.rate) == (1, 8000)  # type: ignore[attr-defined]
    assert [name for name in loaded.names if "deep" in name] == [f"train/deep/b.wav from {at}" for at in (0, 10, 20)]
    windows = (torch.cat(list(loaded.in_order(4))) * 32768).round()[:, 0]
    assert len(windows) == 10 + 3 + 1
    assert set(windows[:10].flatten().tolist()) == set(range(1, 101))  # no sample of a sound is left out
    assert windows[10].tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]  # train/c, shorter than a window
    firsts = set()
    torch.manual_seed(0)
    for batch in (batch for _ in range(80) for batch in loaded.batches(14)):
        rows = (batch[:, 0] * 32768).round()
        full = rows[rows[:, -1] > 0]
        assert torch.equal(full[:, 1:] - full[:, :-1], torch.ones(len(full), 9))  # each window is a part of a sound
        firsts |= set(rows[:, 0].tolist())
    assert firsts >= set(range(1, 80))
    assert len(data.load("sounds", tmp_path, 10, "test")) == 3
    on_disk = data.load("sounds", tmp_path, 10, limit=0)
    assert not on_disk.in_memory
    assert torch.equal(torch.cat(list(on_disk.in_order(5))), torch.cat(list(loaded.in_order(5))))
    write_wav(tmp_path / "train" / "e.wav", torch.zeros(5), 16000)
    with pytest.raises(ValueError, match=r"e.wav has 16000 Hz and .*a.wav has 8000 Hz; all sounds need one rate"):
        data.load("sounds", tmp_path, 10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.wav files"):
        data.load("sounds", tmp_path / "empty", 10)


def test_synthetic_sounds_are_finite_and_their_own() -> None:
    parts = {
        split: torch.cat(list(data.load("sounds", "tones", 2048, split).in_order(64))) for split in ("train", "test")
    }
    for sounds in parts.values():
        assert sounds.isfinite().all()
        assert 0.01 < sounds.square().mean().sqrt() < 0.3
        assert (sounds.abs() <= 1).all()
    assert not torch.equal(parts["train"], parts["test"])
    assert torch.equal(tones.sounds(2, 3000, seed=5), tones.sounds(2, 3000, seed=5))
    with pytest.raises(ValueError, match="tones are sounds; this GAN learns from pairs"):
        data.load("pairs", "tones", 64)


def test_speech_is_made_by_espeak_from_texts_of_two_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script takes the place of eSpeak NG: it writes its last argument as the samples of a sound."""
    texts = {split: sentences.sentences(split) for split in sentences.COUNTS}
    assert {split: len(set(found)) for split, found in texts.items()} == sentences.COUNTS == {"train": 600, "test": 60}
    assert not set(texts["train"]) & set(texts["test"])
    monkeypatch.setattr(sentences, "COUNTS", {"train": 5, "test": 3})
    program = tmp_path / "root" / "usr" / "bin" / "espeak-ng"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/usr/bin/env python3\nimport sys, wave\n"
        "with wave.open(sys.argv[sys.argv.index('-w') + 1], 'wb') as file:\n"
        "    file.setparams((1, 2, 22050, 0, 'NONE', ''))\n"
        "    text = sys.argv[-1].encode()\n    file.writeframes(text + b'\\0' * (len(text) % 2))\n"
    )
    program.chmod(0o755)
    facts = registry.prepare("speech", tmp_path / "speech", given=tmp_path / "root")
    assert facts["counts"] == {"train": 5, "test": 3}
    listed = (tmp_path / "speech" / "train.txt").read_text().splitlines()
    for line in listed:
        name, voice, text = line.split("\t")
        assert voice in registry.VOICES
        content = (tmp_path / "speech" / "train" / name).read_bytes()
        assert content.rstrip(b"\0").endswith(text.encode())
    assert [line.split("\t")[2] for line in listed] == sentences.sentences("train")
    program.write_text("#!/bin/sh\necho no voice >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"did not speak .* no voice"):
        registry.prepare("speech", tmp_path / "again", given=tmp_path / "root")
    assert not (tmp_path / "again").exists()


# From one file to sounds


def test_one_public_file_is_compressed_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "PIL"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    generator = normed(hifigan.build(**{**hifigan.SIZES["V3"], "width": 16})[0], weight_norm)
    file, source, small, made = (tmp_path / name for name in ("g.pth", "data", "small", "made"))
    torch.save({"generator": generator.state_dict()}, file)
    for split, count in (("train", 12), ("test", 2)):
        for index, sound in enumerate(tones.sounds(count, 5000 + 700 * count, seed=count)):
            write_wav(source / split / f"{index}.wav", sound, 22050)
    command = ["compress", "--generator", str(file), "--size", "2048", "--steps", "2", "--batch", "2"]
    assert main([*command, "--data-free", "--out", str(tmp_path / "synthetic")]) == 0
    assert "the input sounds are synthetic (tones)" in capsys.readouterr().err
    given = [*command, "--data", str(source), "--sparsity", "0.5", "--quiet"]
    assert main([*given, "--validate", "1", "--out", str(small)]) == 0
    result = json.loads((small / "result.json").read_text())
    assert result["validation"]["score"].startswith("mel L1 (")
    assert result["generators"]["dense"]["scores"].keys() == {"mel L1", "multi-resolution STFT"}
    report = (small / "report.html").read_text()
    assert report.count("<audio controls") == 6
    assert report.count("data:audio/wav;base64,UklGR") == 6
    capsys.readouterr()

    assert main(["evaluate", str(small), "--data", str(source), "--size", "2048", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.pop("split") == "test"
    assert scores == pytest.approx(result["generators"]["compressed"]["scores"], rel=1e-3)

    inputs = tmp_path / "in"
    sound = tones.sounds(1, 9001, seed=9)[0]
    write_wav(inputs / "deep" / "a.wav", sound, 22050)
    mel = Mel()(read_wav(inputs / "deep" / "a.wav")[0][None])
    np.save(inputs / "b.npy", mel[0].numpy())
    assert main(["generate", str(small), "--sounds", str(inputs), "--tile", "30", "--out", str(made), "--quiet"]) == 0
    first, second = (read_wav(made / name)[0] for name in ("deep/a.wav", "b.wav"))
    assert first.shape == second.shape == (1, 35 * 256)
    assert torch.equal(first, second)
    for content, why in (
        (np.zeros((7, 5), np.float32), r"c.npy has 7 bands \[7, 5\]; the GAN needs \[80, T\]"),
        (np.zeros((80, 5), np.int64), "it must be floats"),
        (np.full((80, 5), np.nan, np.float32), "not finite"),
        (np.array([{"a": 1}], object), "is no array that can be read"),
    ):
        np.save(_fresh(inputs) / "c.npy", content, allow_pickle=True)
        assert main(["generate", str(small), "--sounds", str(inputs), "--out", str(made), "--quiet"]) == 1
        assert re.search(why, capsys.readouterr().err)
    write_wav(_fresh(inputs) / "a.wav", sound, 16000)
    for options, why in (
        (["generate", str(small), "--sounds", str(inputs)], "it has 16000 Hz; the GAN needs 22050 Hz"),
        (["generate", str(small), "--images", str(inputs)], "--images is given; hifigan makes sounds"),
        (["generate", str(small)], "--sounds is missing"),
        (["evaluate", str(small), "--data", str(inputs)], "has sounds of 16000 Hz; the GAN needs 22050 Hz"),
        (["evaluate", str(small), "--data", str(source), "--features", "efficientnet-lite0"], "it compares images"),
        ([*given, "--features", "efficientnet-lite0"], "it compares images"),
        ([*given, "--channels", "3"], "--channels is 3; sounds have 1 channel"),
    ):
        assert main([*options, "--quiet", "--out", str(tmp_path / "no")] if options[0] != "evaluate" else options) == 1
        assert why in capsys.readouterr().err


def _fresh(folder: Path) -> Path:
    for file in folder.rglob("*.*"):
        file.unlink()
    return folder


def test_a_vocoder_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    network = ["discriminator_width=4", "width=16", "rates=8-8-4"]
    command = ["train", "hifigan", "--data", "tones", "--size", "1024", "--steps", "2", "--batch", "2"]
    assert main([*command, "--network", *network, "--half", "--quiet", "--out", str(tmp_path)]) == 0
    gan = store.load(tmp_path)
    assert gan.generator(torch.randn(1, 80, 3)).shape == (1, 1, 768)
    assert (tmp_path / "generator.safetensors").stat().st_size < 2.5 * sum(
        p.numel() for p in gan.generator.parameters()
    )
