"""Compressed files: lossless round trips, sizes, and files that must be refused without touching the model."""

import base64
import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsegan as sg
from sparsegan import checkpoint
from sparsegan.checkpoint import CheckpointError, file_report
from sparsegan.gans import dcgan
from sparsegan.ops import native


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, (4, 2), stride=2, padding=1, output_padding=(0, 1), bias=False),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect", groups=2),
        nn.PReLU(),
    )


def sparse_network(seed: int, granularity: str | dict[str, str] = "element") -> nn.Module:
    model = sg.sparsify(network(seed), sparsity=0.75, granularity=granularity)
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += seed + 5
    return model


def bits(model: nn.Module) -> dict:
    """Every module, parameter and buffer by name: the identity of the object, and its contents bit for bit."""
    found = {name: (id(m), m.training) for name, m in model.named_modules(remove_duplicate=False)}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[f"{name}:"] = (id(tensor), tensor.dtype, tensor.shape, tensor.requires_grad, raw)
    return found


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    x, y = a.state_dict(), b.state_dict()
    assert list(x) == list(y)
    for name in x:
        assert x[name].dtype == y[name].dtype
        assert torch.equal(x[name], y[name]), name


# ---- round trips


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("sparse", [False, True], ids=["into-dense", "into-sparse"])
@pytest.mark.parametrize("granularity", ["element", "vector:2", {"0": "input:2", "2": "input:3"}])
def test_round_trip(tmp_path, values, sparse, granularity):
    path = tmp_path / "g.safetensors"
    model, target = sparse_network(0, granularity), network(1)
    if sparse:
        sg.sparsify(target, sparsity=0.5, granularity=granularity)
    for parameter in target[0].parameters():
        parameter.requires_grad_(False)
    target[2].eval()
    before = {name: id(parameter) for name, parameter in target.named_parameters()}

    sg.save(model, path, values=values)
    assert sg.load(target, path) is target

    for _, layer in sg.sparse_layers(model):  # `values` says the rounding; float32 has none
        layer.values.data = layer.values.data.to(getattr(torch, values)).float()
    assert_same_state(target, model)
    assert [layer.granularity for _, layer in sg.sparse_layers(target)] == (
        list(granularity.values()) if isinstance(granularity, dict) else [granularity] * 2
    )
    assert [p.requires_grad for p in target[0].parameters()] == [False]
    assert [m.training for m in target] == [True, True, False, True]
    kept = {name for name, parameter in target.named_parameters() if before.get(name) == id(parameter)}
    assert kept >= set(before) - {"0.weight", "2.weight"}
    example = torch.randn(1, 4, 5, 5)
    assert torch.equal(target.eval()(example), model.eval()(example))


# nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)) with the weights -54 to 53, pruned to 90 %, saved as float16 by
# the first release. Files of single weights must stay readable, and must still be written with the same contents.
FIRST_RELEASE = """
aAIAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJzcGFyc2VnYW4iOiJ7XCJmb3JtYXRcIjpcInNwYXJzZWdhblwiLFwibGF5ZXJzXCI6e1wiMFwiOntcImJpYX
NcIjpmYWxzZSxcImRpbGF0aW9uXCI6WzEsMV0sXCJkdHlwZVwiOlwiZmxvYXQxNlwiLFwiZ3JhbnVsYXJpdHlcIjpcImVsZW1lbnRcIixcImdyb3Vwc1wi
OjEsXCJpbl9jaGFubmVsc1wiOjMsXCJrZXJuZWxfc2l6ZVwiOlszLDNdLFwibm56XCI6MTEsXCJvdXRfY2hhbm5lbHNcIjo0LFwib3V0cHV0X3BhZGRpbm
dcIjpbMCwwXSxcInBhZGRpbmdcIjpbMCwwXSxcInBhZGRpbmdfbW9kZVwiOlwiemVyb3NcIixcInN0cmlkZVwiOlsxLDFdLFwidHJhbnNwb3NlZFwiOmZh
bHNlLFwid2VpZ2h0X3NoYXBlXCI6WzQsMywzLDNdfX0sXCJzaGEyNTZcIjpcIjg0MTcxZTZiYjQ1ZmZiODk4MzFkMzJiMmIyMzQyMmU5ZmNkMjFlMTM3MG
Y3OGNjZmFlOWI1ZDM4N2QwZWQzZmFcIixcInRpZXNcIjp7fSxcInZlcnNpb25cIjoxfSJ9LCIwLnZhbHVlcyI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpb
MTFdLCJkYXRhX29mZnNldHMiOlswLDIyXX0sIjAuc3VwcG9ydCI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOls4XSwiZGF0YV9vZmZzZXRzIjpbMjIsMzBdfX
0gICAgwNKg0oDSYNJA0iDSIFJAUmBSgFKgUgMAAAD/LwAA
"""


def test_files_of_the_first_release(tmp_path):
    path = tmp_path / "g"
    path.write_bytes(base64.b64decode(FIRST_RELEASE))
    weight = torch.arange(-54.0, 54.0).view(4, 3, 3, 3)
    for model in (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), nn.Sequential(sg.SparseConv2d(3, 4, 3, bias=False))):
        sg.load(model, path)
        assert torch.equal(model[0].dense_weight(), weight * (weight.abs() >= 49))
    sg.save(model, tmp_path / "again", values="float16")
    assert checkpoint._File(tmp_path / "again").meta == checkpoint._File(path).meta  # contains a hash of all contents


def test_same_model_same_bytes(tmp_path):
    for name in ("a", "b"):
        sg.save(sparse_network(0), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_dtype_is_kept(tmp_path, dtype):
    model, target = sparse_network(0).to(dtype), sparse_network(1).to(dtype)
    if dtype == torch.float64:
        with pytest.raises(ValueError, match=r'0 has float64 values.*values="float64"'):
            sg.save(model, tmp_path / "g")
    sg.save(model, tmp_path / "g", values="float64" if dtype == torch.float64 else "float32")
    assert_same_state(sg.load(target, tmp_path / "g"), model)


def test_special_values_survive(tmp_path):
    model = sparse_network(0)
    model[2].values.data[:4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    sg.save(model, tmp_path / "g")
    loaded = sg.load(sparse_network(1), tmp_path / "g")
    assert loaded[2].values.detach().view(torch.int32).equal(model[2].values.detach().view(torch.int32))


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_empty_and_full_support(tmp_path, keep):
    conv = nn.Conv2d(3, 5, 3)
    layer = sg.SparseConv2d.from_dense(conv, mask=torch.full(conv.weight.shape, bool(keep)))
    sg.save(layer, tmp_path / "g")
    loaded = sg.load(nn.Conv2d(3, 5, 3), tmp_path / "g")  # the model is itself a layer
    assert isinstance(loaded, sg.SparseConv2d)
    assert_same_state(loaded, layer)


def test_model_without_sparse_layers(tmp_path):
    sg.save(network(0), tmp_path / "g")
    target = network(1)
    assert_same_state(sg.load(target, tmp_path / "g"), network(0))
    with pytest.raises(CheckpointError, match="no sparse layer 0, which the model has"):
        sg.load(sparse_network(1), tmp_path / "g")


def test_shared_modules_and_tied_parameters(tmp_path):
    def model(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        conv = nn.Conv2d(4, 4, 3, padding=1)
        first, second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        second.weight = first.weight
        return nn.Sequential(conv, first, conv, second)

    saved = sg.sparsify(model(0), sparsity=0.5)
    sg.save(saved, tmp_path / "g")
    assert not any(name.startswith("2.") for name in safetensors.torch.load_file(tmp_path / "g"))
    loaded = sg.load(model(1), tmp_path / "g")
    assert loaded[0] is loaded[2]
    assert loaded[1].weight is loaded[3].weight
    assert_same_state(loaded, saved)

    untied = copy.deepcopy(model(1))
    untied[3].weight = nn.Parameter(untied[3].weight.detach().clone())
    before = bits(untied)
    with pytest.raises(CheckpointError, match=r"shares .*3\.weight = 1\.weight"):
        sg.load(untied, tmp_path / "g")
    assert bits(untied) == before


@pytest.mark.parametrize(("ngf", "nc"), [(32, 1), (64, 3)])
def test_file_sizes_at_90_percent(tmp_path, ngf, nc):
    torch.manual_seed(0)
    model = dcgan.Generator(ngf=ngf, nc=nc)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "dense")
    sg.sparsify(model, sparsity=0.9)
    for values, ratio in (("float32", 8), ("float16", 13), ("bfloat16", 13)):
        sg.save(model, tmp_path / values, values=values)
        size = (tmp_path / values).stat().st_size
        dense = (tmp_path / "dense").stat().st_size
        assert dense / size >= ratio
        assert file_report(tmp_path / values) == {"bytes": size, "dense_bytes": dense, "ratio": dense / size}


@pytest.mark.parametrize("values", ["int16", "int8"])
@pytest.mark.parametrize("granularity", ["element", "vector:2", "input:2", "kernel", "filter"])
def test_integers_are_within_half_a_scale(tmp_path, values, granularity):
    """Each weight is the nearest multiple of its output channel's scale, and the largest weight is kept."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 12, 3, groups=2), nn.ConvTranspose2d(8, 12, 3, groups=2), nn.Conv1d(4, 6, 5)]
    for layer in layers:
        layer.weight.data *= (
            torch.rand(layer.weight.shape[0]).add(0.01).pow(4).view(-1, *[1] * (layer.weight.dim() - 1))
        )
    model = sg.sparsify(nn.ModuleList(layers), sparsity=0.5, granularity=granularity)
    path = tmp_path / "g"
    sg.save(model, path, values=values)
    loaded = sg.load(copy.deepcopy(model), path)
    most = torch.iinfo(getattr(torch, values)).max
    for ours, theirs in zip(loaded, model, strict=True):
        assert torch.equal(ours.mask(), theirs.mask())
        weights = [layer.dense_weight().detach().double() for layer in (ours, theirs)]
        if theirs.transposed:  # [in, out / groups, ...] -> [out, in / groups, ...]
            weights = [torch.cat([part.transpose(0, 1) for part in weight.chunk(2)]) for weight in weights]
        for found, wanted in zip(*weights, strict=True):
            scale = wanted.abs().max() / most
            assert (found - wanted).abs().max() <= scale * (0.5 + 1e-4)
            assert (found.abs().max() - wanted.abs().max()).abs() <= 1e-6 * wanted.abs().max()
    sg.save(loaded, tmp_path / "again", values=values)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_special_channels_as_integers(tmp_path):
    """Zeros and the smallest floats survive; infinities and NaN are refused."""
    model = sg.sparsify(nn.Sequential(nn.Conv2d(2, 3, 1)), sparsity=0.0)
    model[0].values.data = torch.tensor([0.0, 0.0, 1e-45, -1e-45, 3e38, -1.0])
    sg.save(model, tmp_path / "g", values="int8")
    found = sg.load(copy.deepcopy(model), tmp_path / "g")[0].values.detach()
    assert torch.equal(found[:2], torch.zeros(2))
    assert found[2:4].abs().max() <= 2e-38
    assert found[4].item() == pytest.approx(3e38)
    for lost in ("inf", "nan"):
        model[0].values.data[0] = float(lost)
        with pytest.raises(ValueError, match=f"layer 0 has a value of {lost}, which int16 cannot hold"):
            sg.save(model, tmp_path / "g", values="int16")


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "g"
    sg.save(sparse_network(0), path)
    before = path.read_bytes()
    for fault in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, fault, lambda *_: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(OSError, match="no space left"):
                sg.save(sparse_network(1), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_save_refuses(tmp_path):
    model = sparse_network(0)
    with pytest.raises(ValueError, match="values is 'int4'; it must be one of 'float32'"):
        sg.save(model, tmp_path / "g", values="int4")
    model[0].values.data[3] = 1e6
    with pytest.raises(ValueError, match=r"layer 0 has a value of 1e\+06, which float16 cannot hold"):
        sg.save(model, tmp_path / "g", values="float16")
    assert not list(tmp_path.iterdir())


# ---- the codec


@given(st.data())
def test_codec_round_trip(data):
    size = data.draw(st.integers(0, 2**31) | st.integers(0, 300))
    positions = sorted(data.draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=200))) if size else []
    support = np.array(positions, np.int32)
    code = native.encode_support(support, size)
    assert native.decode_support(code, size, len(positions)).tolist() == positions
    # another count, a shorter code and a longer code are refused
    others = [(code, len(positions) + 1), (code[:-1], len(positions)), (code + b"\0", len(positions))]
    if positions:
        others.append((code, len(positions) - 1))
    else:
        others.remove((code[:-1], 0))
    for other, count in others:
        with pytest.raises(ValueError, match="support"):
            native.decode_support(other, size, count)


@given(st.binary(max_size=40), st.integers(0, 200) | st.integers(0, 2**31), st.integers(0, 60))
def test_decoding_foreign_bytes_gives_a_valid_support_or_an_error(code, size, count):
    try:
        support = native.decode_support(code, size, count)
    except ValueError:
        return
    assert support.dtype == np.int32
    assert support.shape == (count,)
    native.check_support(support, size)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([1, 1], r"support\[1\] is 1 and comes after 1; positions must be sorted and unique"),
        ([4, 2], r"support\[1\] is 2 and comes after 4"),
        ([0, -1], r"support\[1\] is -1; it must be at least 0 and below 8"),
        ([8], r"support\[0\] is 8; it must be at least 0 and below 8"),
    ],
)
def test_bad_supports_are_named(positions, message):
    for use in (native.check_support, native.encode_support):
        with pytest.raises(ValueError, match=message):
            use(np.array(positions, np.int32), 8)
        with pytest.raises(TypeError):
            use(np.array(positions, np.int64), 8)


def test_memory_is_bounded_by_the_code():
    with pytest.raises(ValueError, match="its code of 4 bytes cannot hold that many"):
        native.decode_support(b"\0\0\0\0", 2**31, 2**31)


# ---- files that must be refused; the model stays as it was, bit for bit


@pytest.fixture(params=[network, sparse_network], ids=["into-dense", "into-sparse"])
def target(request):
    return request.param(1)


def loads(model: nn.Module, path) -> bool:
    try:
        sg.load(model, path)
    except CheckpointError:
        return False
    return True


def refused(model: nn.Module, path, match: str | None = None) -> None:
    before = bits(model)
    with pytest.raises(CheckpointError, match=match) as caught:
        sg.load(model, path)
    assert str(path) in str(caught.value)
    assert bits(model) == before


def test_every_bit_flip_and_every_truncation(tmp_path):
    path, target = tmp_path / "g", nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))
    sg.save(sg.sparsify(copy.deepcopy(target), sparsity=0.5), path)
    good = path.read_bytes()
    before = bits(target)
    accepted = []
    for length in range(len(good)):
        path.write_bytes(good[:length])
        if loads(target, path):
            accepted.append(f"{length} bytes")
    path.write_bytes(good)
    with path.open("r+b", buffering=0) as file:
        for place in range(len(good)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([good[place] ^ 1 << bit]), place)
                if loads(target, path):
                    accepted.append(f"byte {place} bit {bit}")
            os.pwrite(file.fileno(), good[place : place + 1], place)
    assert accepted == []
    assert bits(target) == before
    path.write_bytes(good + b"\0")
    refused(target, path)
    path.write_bytes(good)
    assert loads(target, path)


def _no_file(path):
    path.mkdir()


def _pickle(path):
    path.write_bytes(pickle.dumps({"0.values": 1}))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (_no_file, "not a regular file"),
        (lambda path: path.write_bytes(b""), "damaged or not a safetensors file"),
        (lambda path: path.write_text("hello " * 100), "damaged or not a safetensors file"),
        (lambda path: path.write_bytes(b"\x00\xff\xff\xff\xff\xff\xff\xff{}"), "damaged or not a safetensors file"),
        (_pickle, "cannot be read as a state_dict without running code"),
    ],
)
def test_not_our_file(tmp_path, target, make, match):
    make(tmp_path / "g")
    refused(target, tmp_path / "g", match)
    with pytest.raises(FileNotFoundError):
        sg.load(target, tmp_path / "none")


def code(positions: list[int], size: int) -> torch.Tensor:
    return torch.tensor(bytearray(native.encode_support(np.array(positions, np.int32), size)), dtype=torch.uint8)


# Each edit changes the metadata and tensors of a valid file, whose layer 0 keeps 48 of 192 weights. The hash is made
# to fit afterwards.
def _support(make):
    def edit(meta, tensors):
        tensors["0.support"] = make(tensors["0.support"], meta["layers"]["0"]["nnz"])

    return edit


def _layer(**fields):
    return lambda meta, tensors: meta["layers"]["0"].update(fields)


def _tensor(name, make):
    return lambda meta, tensors: tensors.update({name: make(tensors[name])})


def _count(change):
    def edit(meta, tensors):
        meta["layers"]["0"]["nnz"] += change
        tensors["0.values"] = torch.ones(meta["layers"]["0"]["nnz"])

    return edit


def _integers(scales):
    def edit(meta, tensors):
        meta["layers"]["0"]["dtype"] = "int8"
        tensors["0.values"] = tensors["0.values"].to(torch.int8)
        tensors.update({} if scales is None else {"0.scales": scales})

    return edit


def _vector_across_groups(meta, tensors):
    meta["layers"]["2"].update(granularity="vector:4", nnz=24)
    tensors.update({"2.values": torch.ones(24), "2.support": code([0, 1, 2, 3, 4, 26], 27)})


def _input_units_across_groups(meta, tensors):
    meta["layers"]["2"].update(granularity="input:2")


def _bomb(meta, tensors):
    meta["layers"]["0"].update(nnz=2**31 - 1, weight_shape=[2**10, 2**10, 2**10, 2**10])


HOSTILE = {
    "position past the end": (_support(lambda _, n: code([*range(n - 1), 192], 193)), "past the end of the weight"),
    "position far past the end": (_support(lambda _, n: code([*range(n - 1), 2**31 - 1], 2**31)), "past the end"),
    "code ends early": (_support(lambda good, _: good[:-1]), "bad support for layer 0: .*ends early"),
    "code all zeros": (_support(lambda good, _: good * 0), "left over"),
    "ones only, k 0": (_support(lambda good, _: torch.cat([good[:1] * 0, good[1:] | 255])), "support for layer 0"),
    "ones to past the end, k 0": (_support(lambda good, _: torch.tensor([0] + [255] * 40).byte()), "past the end"),
    "byte left over": (_support(lambda good, _: torch.cat([good, good[:1] * 0])), "left over"),
    "Rice parameter": (_support(lambda good, _: torch.cat([good[:1] * 0 + 31, good[1:]])), "parameter is 31"),
    "support of no bytes": (_support(lambda good, _: good[:0]), "of 0 bytes cannot hold"),
    "support of int32": (_support(lambda good, n: torch.arange(n, dtype=torch.int32)), "support is torch.int32"),
    "support of two dimensions": (_support(lambda good, _: good[None]), "with 2 dimensions"),
    "one position too many": (_count(1), "bad support for layer 0"),
    "one position too few": (_count(-1), "bad support for layer 0"),
    "no position": (_count(-48), "is said to be empty"),
    "count only": (_layer(nnz=49), "48 values and nnz is 49"),
    "negative count": (_layer(nnz=-1), "nnz is -1"),
    "count above the weight": (_layer(nnz=193), "nnz is 193; it must be an integer from 0 to the weight's 192"),
    "count that is no integer": (_layer(nnz=48.0), "nnz is 48.0"),
    "count true": (_layer(nnz=True), "nnz is True"),
    "huge weight": (_bomb, "48 values and nnz is 2147483647"),
    "larger weight": (_layer(weight_shape=[400, 6, 4, 2]), "400, 6, 4, 2"),
    "weight of five dimensions": (_layer(weight_shape=[4, 6, 4, 2, 1]), "must be 3 or 4 positive integers"),
    "weight of a signal's layer": (_layer(weight_shape=[4, 6, 8]), r"has weight_shape \[4, 6, 8\] for layer 0"),
    "weight of negative size": (_layer(weight_shape=[-4, -6, 4, 2]), "must be 3 or 4 positive integers"),
    "values of int32": (_tensor("0.values", lambda t: t.int()), "values is torch.int32"),
    "values of another dtype": (_tensor("0.values", lambda t: t.half()), "values is torch.float16"),
    "values of two dimensions": (_tensor("0.values", lambda t: t[None]), "values is torch.float32 with 2 dimensions"),
    "dtype unknown": (_layer(dtype="int4"), "dtype is 'int4'"),
    "integers that are floats": (
        _layer(dtype="int8"),
        "values is torch.float32 with 1 dimensions; it must be torch.int8",
    ),
    "scales missing": (_integers(None), r"scales is missing; int8 values need torch.float32 \[6\]"),
    "scales too few": (_integers(torch.ones(4)), r"scales is torch.float32 \[4\]"),
    "scales of float64": (_integers(torch.ones(6).double()), "scales is torch.float64"),
    "scale negative": (_integers(-torch.ones(6)), "scales must be finite and at least 0"),
    "scale infinite": (_integers(torch.ones(6) / 0), "scales must be finite and at least 0"),
    "scales beside floats": (lambda meta, tensors: tensors.update({"0.scales": torch.ones(6)}), "a tensor 0.scales"),
    "dtype a list": (_layer(dtype=["float32"]), "dtype is"),
    "granularity unknown": (_layer(granularity="atom"), "atom"),
    "granularity a number": (_layer(granularity=3), "3"),
    "vector of no channel": (_layer(granularity="vector:0"), "granularity is 'vector:0'"),
    "vector too wide": (_layer(granularity="vector:1000"), "granularity is 'vector:1000'"),
    "vector that does not divide": (_layer(granularity="vector:4"), "6 output channels, which is no multiple of 4"),
    "vector in elements": (_layer(granularity="vector:3"), "bad support for layer 0|the model has 'element'"),
    "vector across groups": (_vector_across_groups, "in each of its 2 groups|for layer 2; the model has 'element'"),
    "input units that do not divide": (_layer(granularity="input:3"), "4 input channels, which is no multiple of 3"),
    "input units across groups": (_input_units_across_groups, "3 input channels in each of its 2 groups"),
    "vectors cut": (_layer(granularity="vector:2", nnz=47), "nnz is 47, which is no multiple of 2"),
    "entry unknown": (_layer(colour="red"), "exactly the entries"),
    "entry missing": (lambda meta, tensors: meta["layers"]["0"].pop("stride"), "exactly the entries"),
    "layer is no description": (lambda meta, tensors: meta["layers"].update({"0": 7}), "exactly the entries"),
    "stride": (_layer(stride=[1, 2]), r"stride \[1, 2\] for layer 0; the model has \[2, 2\]"),
    "padding": (_layer(padding="same"), r"padding 'same' for layer 0; the model has \[1, 1\]"),
    "bias": (_layer(bias=True), "bias True for layer 0; the model has False"),
    "kind": (_layer(transposed=False), "transposed False for layer 0; the model has True"),
    "layers a list": (lambda meta, tensors: meta.update(layers=[]), "unknown form"),
    "ties a list": (lambda meta, tensors: meta.update(ties=[]), "unknown form"),
    "ties invented": (lambda meta, tensors: meta.update(ties={"2": "0"}), r"shares \['2 = 0'\]"),
    "layer unknown": (lambda meta, tensors: meta["layers"].update({"9": meta["layers"].pop("0")}), "layer 9"),
    "layer a batch norm": (lambda meta, tensors: meta["layers"].update({"1": meta["layers"]["0"]}), "layer 1"),
    "version": (lambda meta, tensors: meta.update(version=2), "format version 2; this sparsegan reads version 1"),
    "metadata unknown": (lambda meta, tensors: meta.update(author="me"), "unknown form"),
    "values missing": (lambda meta, tensors: tensors.pop("0.values"), "tensor 0.values is missing"),
    "support missing": (lambda meta, tensors: tensors.pop("2.support"), "tensor 2.support is missing"),
    "tensor missing": (lambda meta, tensors: tensors.pop("1.running_var"), "no tensor 1.running_var"),
    "tensor unknown": (lambda meta, tensors: tensors.update({"9": torch.ones(1)}), "a tensor 9"),
    "tensor of another shape": (
        _tensor("1.weight", lambda t: t[:-1]),
        r"shape \[5\] for 1.weight; the model has \[6\]",
    ),
    "tensor of another dtype": (_tensor("1.weight", lambda t: t.int()), "dtype torch.int32 for 1.weight"),
    "counter a float": (_tensor("1.num_batches_tracked", lambda t: t.float()), "dtype torch.float32 for"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_with_a_fitting_hash(tmp_path, target, name):
    edit, match = HOSTILE[name]
    path = tmp_path / "g"
    sg.save(sparse_network(0), path)
    file = checkpoint._File(path)
    assert file.meta["layers"]["0"]["nnz"] == 48
    meta, tensors = copy.deepcopy(file.meta), dict(file.tensors)
    edit(meta, tensors)
    meta["sha256"] = checkpoint._digest(meta, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {checkpoint.FORMAT: checkpoint._canonical(meta)}))
    refused(target, path, match)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: json.dumps(json.loads(text)),  # other white space
        lambda text: text[:-1] + ',"version":1}',  # a key twice
        lambda text: "[" * 100_000,
        lambda text: text.replace('"version":1', '"version":NaN'),
        lambda text: "null",
        lambda text: "",
    ],
)
def test_metadata_that_is_not_canonical(tmp_path, target, rewrite):
    path = tmp_path / "g"
    sg.save(sparse_network(0), path)
    file = checkpoint._File(path)
    text = rewrite(checkpoint._canonical(file.meta))
    path.write_bytes(safetensors.torch.save(file.tensors, {checkpoint.FORMAT: text}))
    refused(target, path, "metadata|version")


# ---------------------------------------------------------------------- shared memory


class Sharing(nn.Module):
    """Two parameters that are views of one buffer; `how` names the way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        base = torch.randn(6, 4)
        parts = {
            "slices": (base[:3], base[3:]),
            "transposed": (base, base.t()),
            "the whole and a part": (base, base[1]),
            "overlapping": (base[:4], base[2:]),
            "twice": (base, base),
            "one of many": (torch.randn(1000, 4)[7], torch.randn(2)),
            "expanded": (torch.randn(1, 4).expand(5, 4), torch.randn(3)),
        }[how]
        self.first, self.second = (nn.Parameter(part) for part in parts)
        self.conv = sg.SparseConv2d(2, 3, 3, sparsity=0.5)
        self.conv.values.data = torch.randn(100)[: self.conv.nnz]


@pytest.mark.parametrize(
    "how", ["slices", "transposed", "the whole and a part", "overlapping", "twice", "one of many", "expanded"]
)
def test_parameters_that_share_memory(how: str, tmp_path: Path) -> None:
    model = Sharing(how)
    wanted = {name: one.clone() for name, one in model.state_dict().items()}
    sg.save(model, tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").stat().st_size < 2500
    with torch.no_grad():
        model.first.narrow(0, 0, 1).add_(1)
        model.second.add_(1)
    sg.load(model, tmp_path / "g.safetensors")
    assert all(torch.equal(one, wanted[name]) for name, one in model.state_dict().items())
    plain = Sharing("slices")
    plain.first, plain.second = (
        nn.Parameter(torch.zeros_like(one).contiguous()) for one in (model.first, model.second)
    )
    sg.load(plain, tmp_path / "g.safetensors")
    assert all(torch.equal(one, wanted[name]) for name, one in plain.state_dict().items())


def test_an_expanded_parameter_takes_one_value_only(tmp_path: Path) -> None:
    model = Sharing("expanded")
    other = Sharing("expanded")
    other.first = nn.Parameter(torch.randn(5, 4))
    sg.save(other, tmp_path / "g.safetensors")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(sg.CheckpointError, match="different values along dimension 0 of first"):
        sg.load(model, tmp_path / "g.safetensors")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
