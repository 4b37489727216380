"""Signals by tiles of time and as streams give the result of the whole signal, or the model is refused."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiling import Calls
from torch import nn

import sparsegan as sg
from sparsegan.engine.tiles import streaming, tiling
from sparsegan.gans import hifigan


class Plain:
    """An engine that calls the model itself. `longest`: the longest input so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.double().eval().requires_grad_(False)
        self.tiles = tiling.Tiles(self.model)
        self.longest = 0

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        if keywords:
            return tiling.run(self, inputs, {}, **{"tile": None, "overlap": None, "approximate": False, **keywords})
        self.longest = max(self.longest, inputs[0].shape[2])
        return self.model(*inputs)


def vocoder() -> nn.Module:
    return hifigan.Generator(8, 3, "2", "4-3", "8-5", "3-5", "1-2/2")


def denoiser() -> nn.Module:
    """Halves the length twice and doubles it twice; signals must be multiples of 4."""
    down = nn.Sequential(nn.Conv1d(3, 6, 4, 2, 1), nn.ReLU(), nn.Conv1d(6, 6, 4, 2, 1), nn.LeakyReLU(0.2))
    up = nn.Sequential(nn.ConvTranspose1d(6, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose1d(6, 3, 4, 2, 1))
    return Calls(lambda self, x: x + self.up(self.down(x)), down=down, up=up)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vocoder": vocoder,
    "denoiser": denoiser,
    "unpadded": lambda: nn.Sequential(nn.Conv1d(3, 4, 7), nn.Tanh(), nn.ConvTranspose1d(4, 2, 4, 2)),
    "causal": lambda: Calls(lambda self, x: self.conv(F.pad(x, (6, 0))), conv=nn.Conv1d(3, 2, 3, dilation=3)),
    "looking ahead": lambda: Calls(lambda self, x: self.conv(F.pad(x, (0, 6))), conv=nn.Conv1d(3, 2, 3, dilation=3)),
    "reflecting": lambda: nn.Conv1d(3, 2, 5, padding=2, padding_mode="reflect"),
    "shortening": lambda: nn.Conv1d(3, 2, 5, stride=3, padding=1),
    "one to one": lambda: nn.Sequential(nn.Conv1d(3, 2, 1), nn.Tanh()),
}


@cache
def engine_of(name: str) -> Plain:
    torch.manual_seed(0)
    return Plain(MODELS[name]())


def length_of(name: str, length: int) -> int:
    return length - length % 4 if name == "denoiser" else length


@settings(max_examples=60)
@given(st.sampled_from(list(MODELS)), st.integers(30, 200), st.sampled_from((1, 3, 17, 200)), st.integers(0, 999))
def test_chunks_of_any_length_give_the_whole(name: str, length: int, most: int, seed: int) -> None:
    engine = engine_of(name)
    x = torch.randn(2, 3, length_of(name, length), dtype=torch.float64)
    draws, sizes = random.Random(seed), list[int]()
    while sum(sizes) < x.shape[2]:
        sizes.append(min(draws.randint(0, most), x.shape[2] - sum(sizes)))
    made = list(streaming.stream(engine, x.split(sizes, 2)))
    torch.testing.assert_close(torch.cat(made, 2), engine(x), rtol=1e-9, atol=1e-9)
    assert all(part.shape[2] for part in made)


@settings(max_examples=40)
@given(st.sampled_from(list(MODELS)), st.integers(60, 300), st.integers(40, 80))
def test_tiles_of_time_give_the_whole(name: str, length: int, tile: int) -> None:
    engine = engine_of(name)
    x = torch.randn(1, 3, length_of(name, length), dtype=torch.float64)
    whole = engine(x)
    engine.longest = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = engine(x, tile=tile)
    torch.testing.assert_close(made, whole, rtol=1e-9, atol=1e-9)
    if x.shape[2] > 2 * tile:
        assert engine.longest < x.shape[2]


@pytest.mark.parametrize("name", MODELS)
def test_results_come_as_soon_as_they_are_final(name: str) -> None:
    """Of each step of a stream, the next element would change if an input that has not come yet changed."""
    engine = engine_of(name)
    x = torch.randn(1, 3, 64, dtype=torch.float64)
    other = x.clone()
    other[..., 40:] += 1
    first, second = engine(x), engine(other)
    final = int((first != second).any(1)[0].nonzero().min())  # the first element that depends on later inputs
    come = torch.empty(0)
    chunks = iter((x[..., :17], x[..., 17:40], x[..., 40:]))
    seen = []
    for part in streaming.stream(engine, (seen.append(chunk) or chunk for chunk in chunks)):
        if len(seen) == 3:  # the last chunk has been asked for
            break
        come = torch.cat([come, part], 2) if len(come) else part
    assert final - 8 <= come.shape[2] <= final  # reflection and uneven strides cost a few elements
    torch.testing.assert_close(come, first[..., : come.shape[2]], rtol=1e-9, atol=1e-9)


def test_a_stream_keeps_no_more_than_it_needs() -> None:
    engine = engine_of("vocoder")
    x = torch.randn(1, 3, 4000, dtype=torch.float64)
    list(streaming.stream(engine, x[..., :200].split(5, 2)))  # measures the reach, on longer signals
    engine.longest = 0
    for _ in streaming.stream(engine, x.split(5, 2)):
        pass
    assert engine.longest < 60


def test_the_engine_of_a_sparse_vocoder() -> None:
    torch.manual_seed(0)
    generator = sg.sparsify(hifigan.Generator(16, 8, "1", "4-2", "8-4", "3-5").eval(), 0.8)
    engine = sg.optimize_for_inference(generator, torch.randn(1, 8, 20))
    assert not engine.fallbacks
    mel = torch.randn(2, 8, 150)
    with torch.no_grad():
        whole = generator(mel)
    torch.testing.assert_close(engine(mel), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine(mel, tile=64), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(list(engine.stream(mel.split(32, 2))), 2), whole, rtol=1e-4, atol=1e-5)


def test_what_no_stream_can_compute_is_refused() -> None:
    x = torch.randn(1, 3, 200, dtype=torch.float64)
    normed = Plain(nn.Sequential(nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4)))
    centred = Plain(Calls(lambda self, x: x - x.mean(2, keepdim=True)))
    placed = Plain(Calls(lambda self, x: x + torch.arange(x.shape[2], dtype=x.dtype)))
    for engine in (normed, centred, placed):
        with pytest.raises(ValueError, match="so chunks of a signal would not give the result of the whole signal"):
            next(streaming.stream(engine, [x]))
        with pytest.raises(ValueError, match="so tiles of 64 steps would not compute"):
            engine(x, tile=64)
    plain = engine_of("one to one")
    for chunks, why in (
        ([x, x.float()], r"chunk 1 is torch.float32 \[1, 3, 200\]"),
        ([x, x[:, :2]], r"chunk 1 is torch.float64 \[1, 2, 200\] on cpu; batch, channels"),
        ([x[0]], r"chunk 0 is torch.float64 \[3, 200\]; each chunk must be a signal of floats"),
        ([None], "chunk 0 is NoneType"),
    ):
        with pytest.raises(ValueError, match=why):
            list(streaming.stream(plain, chunks))  # type: ignore[arg-type]
    two = Plain(Calls(lambda self, x: (x, 2 * x)))
    with pytest.raises(ValueError, match="puts out 2 signals; a stream needs one"):
        list(streaming.stream(two, [x]))
    assert torch.equal(torch.cat(two(x, tile=64), 1), torch.cat([x, 2 * x], 1))  # tiles may have several
    assert list(streaming.stream(plain, [])) == list(streaming.stream(plain, [x[..., :0]])) == []
    with pytest.raises(ValueError, match=r"tile is \(64, 64\); for signals .* it must be one number"):
        plain(x, tile=(64, 64))
    with pytest.raises(ValueError, match=r"one length; there is signals of 100 and 200"):
        Plain(Calls(lambda self, x, y: x))(x, x[..., :100], tile=64)
    short = Plain(Calls(lambda self, x: x.mean(1)))
    with pytest.raises(ValueError, match=r"output 0 is no signal \[N, C, L\]"):
        short(x, tile=64)
