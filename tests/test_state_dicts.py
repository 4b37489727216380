"""Checkpoints as trainers write them, read by ``sg.load`` and by the reader of the command line."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sparsegan as sg
from sparsegan.cli import main
from sparsegan.gans import dcgan, store
from sparsegan.state_dicts import read_state

State = dict[str, Tensor]


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 3, 3, padding=1))
    )


@pytest.fixture
def trained() -> State:
    torch.manual_seed(3)
    state = model().state_dict()
    return {name: torch.rand_like(one) + 0.1 if one.is_floating_point() else one + 7 for name, one in state.items()}


def other(state: State) -> State:
    return {name: one + 1 for name, one in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: one for name, one in state.items()}


def adam() -> Any:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


# Each content holds one state_dict that fits the model. Some also hold state_dicts that do not fit.
NESTS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "ordered": OrderedDict,
    "data parallel": lambda s: prefixed("module.", s),
    "twice": lambda s: prefixed("module.module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled inside": lambda s: {name.replace("3.", "3._orig_mod.", 1): one for name, one in s.items()},
    "distributed and compiled": lambda s: prefixed("module._orig_mod.", s),
    "an accelerator's": lambda s: {"model": prefixed("_forward_module.", s), "optimizer": adam()},
    "any single key": lambda s: {"netG_state_dict": s},
    "with its optimizer": lambda s: {"epoch": 3, "state_dict": s, "optimizer": adam(), "best": 0.5, "name": "x"},
    "deep": lambda s: {"epoch": 1, "models": {"G": s, "D": {"0.weight": torch.ones(3)}}, "opts": {"G": adam()}},
    "lightning": lambda s: {
        "state_dict": prefixed("generator.", s) | {"discriminator.0.weight": torch.ones(2), "loss.scale": torch.ones(1)}
    },
    "one name for all": lambda s: prefixed("net.", s),
    "two in one": lambda s: prefixed("netG.", s) | prefixed("netD.", {"0.weight": torch.ones(2)}),
    "inside a trainer's": lambda s: prefixed("module.model.", s),
    "a trainer's arguments": lambda s: {"args": argparse.Namespace(lr=1e-3, sizes=[1, 2]), "model": s},
    "numpy numbers": lambda s: {"model": s, "loss": np.float64(3.5), "step": np.int64(3), "curve": np.arange(3.0)},
    "counters": lambda s: {"model": s, "seen": Counter("abca"), "sizes": {1, 2}},
    "no counts of batches": lambda s: {name: one for name, one in s.items() if "num_batches" not in name},
    "half precision": lambda s: {name: one.half() if one.is_floating_point() else one for name, one in s.items()},
    "views of one buffer": lambda s: {
        **s,
        "3.0.weight": torch.cat([s["3.0.weight"].flatten(), torch.ones(9)])[:-9].view(3, 4, 3, 3),
    },
    "transposed views": lambda s: {
        **s,
        "3.0.weight": s["3.0.weight"].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    },
}


def written(content: Any, file: Path) -> Path:
    torch.save(content, file)
    return file


def check(net: nn.Module, state: State) -> None:
    loaded = net.state_dict()
    for name, one in state.items():
        if name in loaded:
            tolerance = 1e-2 if one.dtype == torch.float16 else 0
            torch.testing.assert_close(loaded[name].float(), one.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("nest", NESTS)
def test_nests(nest: str, trained: State, tmp_path: Path) -> None:
    file = written(NESTS[nest](trained), tmp_path / "net.pth")
    net = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sg.load(net, file) is net
    kept = {name: one for name, one in trained.items() if nest != "no counts of batches" or "num_batches" not in name}
    check(net, NESTS[nest](kept) if nest == "half precision" else kept)

    sparse = sg.sparsify(model(), 0.5)
    sg.load(sparse, file)
    wanted = model()
    wanted.load_state_dict(trained)
    sg.sparsify(wanted, 0.5)
    for (_, ours), (_, theirs) in zip(sg.sparse_layers(sparse), sg.sparse_layers(wanted), strict=True):
        if nest != "half precision":
            assert torch.equal(ours.dense_weight(), theirs.dense_weight())


AVERAGES: dict[str, Callable[[State, State], Any]] = {
    "params_ema": lambda raw, mean: {"params": raw, "params_ema": mean},
    "g_ema": lambda raw, mean: {"g": raw, "d": {"0.weight": torch.ones(2)}, "g_ema": mean},
    "ema_state_dict": lambda raw, mean: {"state_dict": raw, "ema_state_dict": prefixed("module.", mean)},
    "AveragedModel": lambda raw, mean: {
        "model": raw,
        "averaged": {**prefixed("module.", mean), "n_averaged": torch.tensor(5)},
    },
    "in one": lambda raw, mean: {"state_dict": prefixed("generator.", raw) | prefixed("generator_ema.", mean)},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_taken_with_a_warning(name: str, trained: State, tmp_path: Path) -> None:
    file = written(AVERAGES[name](trained, other(trained)), tmp_path / "net.pth")
    net = model()
    with pytest.warns(UserWarning, match=r"moving average .*; the average is taken\. key=") as said:
        sg.load(net, file)
    assert len(said) == 1
    check(net, other(trained))
    raw = str(said[0].message).rpartition("key='")[2].partition("'")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sg.load(net, file, key=raw)
    check(net, trained)


def test_an_average_that_lacks_buffers_is_not_taken(trained: State, tmp_path: Path) -> None:
    mean = {name: one for name, one in other(trained).items() if "running" not in name}
    net = model()
    with pytest.warns(UserWarning, match="average, ema, which does not hold all tensors of params"):
        sg.load(net, written({"params": trained, "ema": mean}, tmp_path / "net.pth"))
    check(net, trained)


def test_a_named_state_dict_that_does_not_fit_is_not_replaced(trained: State, tmp_path: Path) -> None:
    more = {**trained, "zz": torch.zeros(1)}
    for content in ({"g": more, "g_init": other(trained)}, {"generator": more, "old": other(trained)}):
        with pytest.raises(sg.CheckpointError, match="zz is not in the model"):
            sg.load(model(), written(content, tmp_path / "net.pth"))
    net = model()
    sg.load(net, tmp_path / "net.pth", key="old")
    check(net, other(trained))
    averages = {"model": trained, "ema_0.999": other(trained), "ema_0.9999": other(other(trained))}
    written(averages, tmp_path / "net.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning of an average before the error
        with pytest.raises(sg.CheckpointError, match="several state_dicts"):
            sg.load(net, tmp_path / "net.pth")
    sg.load(net, tmp_path / "net.pth", key="ema_0.999")
    check(net, other(trained))
    for kind in (torch.int8, torch.complex64):
        short = {**trained, "3.0.weight": trained["3.0.weight"].to(kind)}
        for into in (model(), sg.sparsify(model(), 0.5)):
            with pytest.raises(sg.CheckpointError, match=r"3\.0.*(int8|complex64)"):
                sg.load(into, written(short, tmp_path / "short.pth"))


def test_an_averaged_model_alone(trained: State, tmp_path: Path) -> None:
    content = {**prefixed("module.", trained), "n_averaged": torch.tensor(5)}
    net = model()
    sg.load(net, written(content, tmp_path / "net.pth"))
    check(net, trained)


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "mask": lambda conv: prune.random_unstructured(conv, "weight", 0.4),
    "mask of both": lambda conv: prune.random_unstructured(prune.random_unstructured(conv, "weight", 0.4), "bias", 0.5),
    "weight norm, hook": lambda conv: nn.utils.weight_norm(conv),
    "weight norm": lambda conv: parametrizations.weight_norm(conv),
    "spectral norm, hook": lambda conv: nn.utils.spectral_norm(conv),
    "spectral norm": lambda conv: parametrizations.spectral_norm(conv),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("square", [False, True])
def test_computed_weights_become_plain_ones(name: str, square: bool, tmp_path: Path) -> None:
    def net() -> nn.Sequential:
        out = 3 if square else 5
        return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, out, 3), nn.ConvTranspose2d(out, 3, 4))

    source = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for conv in source:
            COMPUTED[name](conv)
    source(torch.randn(1, 3, 6, 6))
    file = written({"netG": source.state_dict()}, tmp_path / "net.pth")
    x = torch.randn(2, 3, 6, 6)
    wanted = source.eval()(x).detach()
    plain = net()
    sg.load(plain, file)
    torch.testing.assert_close(plain(x), wanted)
    again = copy.deepcopy(source) if "hook" not in name and "mask" not in name else None
    if again is not None:  # a network that computes its weight loads it unchanged
        for one in again.parameters():
            nn.init.zeros_(one)
        sg.load(again, file)
        torch.testing.assert_close(again.eval()(x), wanted)
    if name == "mask":
        sparse = sg.sparsify(net(), 0.4)
        sg.load(sparse, file)
        for layer, conv in zip(sparse, source, strict=True):
            assert torch.equal(layer.mask(), conv.weight_mask.bool())


def test_kinds_of_files(trained: State, tmp_path: Path) -> None:
    save_file({name: one.contiguous() for name, one in trained.items()}, tmp_path / "net.safetensors")
    torch.save(trained, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for number, half in enumerate((list(trained)[:4], list(trained)[4:])):
        torch.save({name: trained[name] for name in half}, tmp_path / f"part-{number}.bin")
    index = {
        name: f"part-{number}.bin"
        for number, half in enumerate((list(trained)[:4], list(trained)[4:]))
        for name in half
    }
    (tmp_path / "model.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "renamed.ckpt").write_bytes((tmp_path / "net.safetensors").read_bytes())
    (tmp_path / "no-suffix").write_bytes((tmp_path / "old.bin").read_bytes())
    (tmp_path / "net.pth.tar").write_bytes(written(trained, tmp_path / "net.pth").read_bytes())
    (tmp_path / "net.model").write_bytes((tmp_path / "net.pth").read_bytes())
    names = ("net.safetensors", "old.bin", "model.index.json", "renamed.ckpt", "no-suffix", "net.pth.tar", "net.model")
    for name in names:
        net = model()
        sg.load(net, tmp_path / name)
        check(net, trained)


class Own:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def test_files_that_are_refused(trained: State, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.jit.save(torch.jit.trace(model().eval(), torch.zeros(1, 3, 4, 4)), tmp_path / "traced.pt")
    (tmp_path / "empty.pth").write_bytes(b"")
    whole = written(trained, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "escape.index.json").write_text(json.dumps({"weight_map": {"a": "../net.pth"}}))
    (tmp_path / "text.pth").write_text("hello")
    written({**trained, "0.weight": torch.zeros(400, 3, 50, 50)}, tmp_path / "plain.pth")
    repacked = {ZIP_DEFLATED: tmp_path / "compressed.pth", ZIP_STORED: tmp_path / "stored.pth"}
    for how, file in repacked.items():
        with ZipFile(tmp_path / "plain.pth") as plain, ZipFile(file, "w", how) as archive:
            for name in plain.namelist():
                archive.writestr(name, plain.read(name))
    bad: dict[str, str] = {
        "compressed.pth": r"and unpacks to 12\d{6}",
        "stored.pth": "0.weight has shape",  # the same entries, stored uncompressed
        "traced.pt": "is a program of torch.jit.save",
        "empty.pth": "is empty",
        "cut.pth": "cannot be read as a state_dict",
        "escape.index.json": "must lie beside it",
        "text.pth": "cannot be read as a state_dict",
    }
    contents: dict[str, tuple[Any, str]] = {
        "module.pth": (model(), "pickled torch.nn.modules.container.Sequential.*model.state_dict"),
        "nested.pth": ({"netG": model(), "epoch": 3}, "pickled torch.nn"),
        "own.pth": ({"state_dict": trained, "hook": Own()}, "cannot be read as a state_dict without running code"),
        "list.pth": ([trained], "holds a list"),
        "numbers.pth": ({"epoch": 3}, "has 'epoch', a int"),
        "more.pth": ({**trained, "4.weight": torch.ones(1)}, "4.weight is not in the model"),
        "fewer.pth": ({name: one for name, one in trained.items() if name != "0.bias"}, "0.bias is missing"),
        "shape.pth": ({**trained, "0.bias": torch.ones(5)}, r"0.bias has shape \[5\] where the model has \[4\]"),
        "sparse.pth": (sg.sparsify(model(), 0.5).state_dict(), "0 is dense, so sparsify the model first"),
        "several.pth": (
            {"first": trained, "second": other(trained)},
            "several state_dicts that may be meant: first, se",
        ),
    }
    for name, (content, words) in contents.items():
        written(content, tmp_path / name)
        bad[name] = words
    for name, words in bad.items():
        net = model()
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(sg.CheckpointError, match=words) as raised:
            sg.load(net, tmp_path / name)
        assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items()), name
        assert "weights_only" not in str(raised.value), "the text repeats torch's advice to run the code of the file"
    assert "code ran" not in capfd.readouterr().out
    with pytest.raises(sg.CheckpointError, match="key is 'third'"):
        sg.load(model(), tmp_path / "several.pth", key="third")
    net = model()
    sg.load(net, tmp_path / "several.pth", key="second")
    check(net, other(trained))


def test_the_commands_reader_finds_nested_state_dicts(tmp_path: Path) -> None:
    generator, judge = dcgan.Generator(8, 2, 1), dcgan.Discriminator(1, 2)
    state, judges = generator.state_dict(), judge.state_dict()
    content = {
        "args": argparse.Namespace(nz=8),
        "state_dict": prefixed("module.netG.", state) | prefixed("module.netD.", judges),
    }
    file = written(content, tmp_path / "both.ckpt")
    gan, trained = store.load_public(file, file)
    assert trained
    for ours, theirs in ((gan.generator, state), (gan.discriminator, judges)):
        assert all(torch.equal(one, theirs[name]) for name, one in ours.state_dict().items())
    file = written({"G": {"raw": state, "ema": other(state)}, "D": judges}, tmp_path / "average.pth")
    with pytest.warns(UserWarning, match="G.ema; the average is taken"):
        gan, _ = store.load_public(file)
    assert torch.equal(gan.generator.state_dict()["main.0.weight"], state["main.0.weight"] + 1)
    gan, _ = store.load_public(file, key="G.raw")
    assert torch.equal(gan.generator.state_dict()["main.0.weight"], state["main.0.weight"])


@pytest.mark.parametrize("sparse", [False, True])
def test_models_on_the_meta_device(sparse: bool, trained: State, tmp_path: Path) -> None:
    source = model()
    source.load_state_dict(trained)
    if sparse:
        sg.sparsify(source, 0.5)
    sg.save(source, tmp_path / "ours.safetensors")
    torch.save(trained, tmp_path / "theirs.pth")
    for file in ("ours.safetensors", "theirs.pth"):
        with torch.device("meta"):
            net = model()
        loaded = sg.load(net, tmp_path / file)
        assert loaded is net
        assert not any(one.is_meta for one in (*net.parameters(), *net.buffers()))
        x = torch.randn(1, 3, 5, 5)
        wanted = source if file == "ours.safetensors" else model()
        if file == "theirs.pth":
            wanted.load_state_dict(trained)
        torch.testing.assert_close(net.eval()(x), wanted.eval()(x))
    with torch.device("meta"):
        net = model()
        net.register_buffer("noise", torch.zeros(3), persistent=False)
    with pytest.raises(sg.CheckpointError, match="noise is a buffer on the meta device that is in no file"):
        sg.load(net, tmp_path / "theirs.pth")
    assert all(one.is_meta for one in net.parameters())
    with pytest.raises(ValueError, match="device is cpu; it is for models on the meta device"):
        sg.load(model(), tmp_path / "theirs.pth", device="cpu")


def test_broken_files_never_change_a_model(trained: State, tmp_path: Path) -> None:
    """Random bytes of a file are changed, removed and doubled."""
    file = tmp_path / "net.pth"
    whole = written({"state_dict": prefixed("module.", trained), "epoch": 3}, file).read_bytes()
    net = model()
    before = copy.deepcopy(net.state_dict())
    draw = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(draw.integers(1, 4)):
            at = int(draw.integers(len(broken)))
            how = draw.integers(3)
            if how == 0:
                broken[at] = int(draw.integers(256))
            elif how == 1:
                del broken[at : at + int(draw.integers(1, 200))]
            else:
                broken[at:at] = broken[at : at + 40]
        file.write_bytes(bytes(broken))
        try:
            sg.load(net, file)
        except sg.CheckpointError:
            assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())
        else:
            read += 1
            net.load_state_dict(before)
    assert read < 300


def test_reading_without_a_network(trained: State) -> None:
    assert read_state(prefixed("module.", trained)).keys() == trained.keys()
    both = {"netG": trained, "netD": {"0.weight": torch.ones(2)}}
    assert read_state(both).keys() == trained.keys()
    assert read_state(both, "discriminator").keys() == {"0.weight"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["FOLDER", "--key", "g"], "--key needs --generator"),
        (["FOLDER", "--discriminator", "d.pth", "--task", "dcgan"], "--discriminator, --task needs --generator"),
        (["--generator", "a.b:c", "--key", "g"], "--key needs files; a Python function"),
        (["--generator", "g.pth", "--discriminator-key", "d"], "--discriminator-key is given without --discriminator"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(__file__).parent.parent / "checkpoints" / "dcgan-mnist")
    for command in ("generate", "compress"):
        assert main([command, *(folder if word == "FOLDER" else word for word in words)]) == 1
        assert said in capsys.readouterr().err


def test_the_command_line_says_which_weights_it_takes(tmp_path: Path) -> None:
    state = dcgan.Generator(8, 2, 1).state_dict()
    file = written({"g": state, "g_ema": other(state)}, tmp_path / "net.pt")
    words = [sys.executable, "-m", "sparsegan", "generate", "--generator", str(file), "--count", "1"]
    done = subprocess.run([*words, "--out", str(tmp_path / "a.png")], capture_output=True, text=True, check=True)
    assert done.stderr.count("the average is taken") == 1
    assert "warnings.warn" not in done.stderr
