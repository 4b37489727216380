"""Reads the user's own data, in the layouts that the reference repositories use.

    image folder      any files that pillow reads, in any depth; train/ and test/ (or val/) inside it are the splits
    idx files         NAME-images-idx3-ubyte(.gz), labels beside it; a folder's train-* and t10k-* are the splits
    pairs             images of input and target side by side, or trainA/ trainB/ (testA/ testB/) of the same names
    two sides         trainA/ trainB/ testA/ testB/, unpaired
    domain folders    one folder per domain, directly or inside train/ and test/
    attribute file    an image folder, and a file as CelebA's list_attr_celeba.txt: count, names, then a line per image

In a layout without splits, a tenth of the items is held out for the test split. The SHA-256 of an item's name decides
(`held_out`), so the split is the same on every machine. In every layout, a tenth of the training split is the split
"validation" and the rest of it is "fit". Here the SHA-256 of the item's base item decides (`Reading.chosen`).

Hidden files, and files whose ending belongs to no image format, are not images. All other files must be readable.
Transparent images get a white background.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ..progress import announce, track
from ..renamed import renamed_keywords
from . import idx
from .samples import FACTOR, Crops, Images, Labelled, Pairs, Samples, Single, Unpaired

if TYPE_CHECKING:
    from PIL import Image as Pillow

_Item = TypeVar("_Item")
HELD_OUT = 0.1
SPLITS = ("train", "test", "all", "validation", "fit")


def unit(name: str) -> float:
    """Returns a number in [0, 1) that depends on `name` alone, through its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@renamed_keywords(share="fraction")
def held_out(base: str, fraction: float = HELD_OUT) -> bool:
    """Returns whether the item `base` belongs to the test split, which holds this `fraction` of all names."""
    return unit(base) < fraction


@dataclass(frozen=True)
class Reading:
    """How a layout is read. The fields are the arguments of `data.load`, with three changes: `swap` is the direction
    "BtoA", `flip` mirrors half of the samples in training, and `base` gives the base item of an item's name."""

    size: int
    split: str
    load_size: int
    swap: bool
    channels: int
    limit: int
    flip: bool
    workers: int
    quiet: bool
    attributes: Path | None = None
    domains: tuple[str, ...] = ()
    base: Callable[[str], str] = str

    @property
    def part(self) -> str:
        """The split "train", "test" or "all" that contains `split`."""
        return "train" if self.split in ("validation", "fit") else self.split

    def chosen(self, items: Sequence[_Item], names: Iterable[str]) -> list[_Item]:
        """Returns the items of `part` that belong to `split`. `names`: a name per item.

        Raises ValueError if no item belongs to it.
        """
        if self.split == self.part:
            return list(items)
        validated = (held_out(f"validation/{self.base(name)}") for name in names)
        found = [item for item, held in zip(items, validated, strict=True) if held == (self.split == "validation")]
        if not found:
            raise ValueError(f"the train split has {len(items)} items, too few for a {self.split} split")
        return found

    def images(self, items: Sequence[Any], read: Callable[[Any], Tensor]) -> Images:
        """Returns the images of all items, which have one shape: decoded, uint8 [N, C, H, W], if they fit in `limit`
        bytes; otherwise a sequence that reads an image from disk at each access."""
        first = read(items[0])
        if first.numel() * len(items) > self.limit:
            return OnDisk(items, read)
        images = torch.empty(len(items), *first.shape, dtype=torch.uint8)
        for index, item in enumerate(self.track(items)):
            images[index] = read(item)
        return images

    def track(self, items: Sequence[Any]) -> Iterable[Any]:
        """Returns an iterable over the items that shows a progress bar unless `quiet`."""
        return track(items, "reading images", self.quiet)

    @property
    def training(self) -> dict[str, Any]:
        """The fields that `Samples` takes as arguments."""
        return {"flip": self.flip, "workers": self.workers}


# images


@cache
def _endings() -> frozenset[str]:
    from PIL import Image

    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def image_files(folder: Path) -> list[Path]:
    """Returns every image file in `folder`, in any depth, sorted.

    Hidden files are left out. Files that are no images are left out too; a printed line gives their number.
    Raises FileNotFoundError for a missing folder, ValueError for a folder without images and ModuleNotFoundError
    without pillow.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; a folder with images is expected")
    try:
        endings = _endings()
    except ModuleNotFoundError:
        raise ModuleNotFoundError("images are read by pillow, which is not installed; pip install pillow") from None
    inside = (path for path in folder.rglob("*") if path.is_file())
    seen = [path for path in inside if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    files = sorted(path for path in seen if path.suffix.lower() in endings)
    if others := sorted({path.suffix or path.name for path in seen} - {path.suffix for path in files}):
        count = len(seen) - len(files)
        announce(f"{folder}: {count} files are no images and are left out ({', '.join(others[:4])})")
    if not files:
        raise ValueError(f"{folder} holds no images; png, jpg, webp and all else that pillow reads are accepted")
    return files


def decode(file: Path, channels: int = 3) -> Pillow.Image:
    """Returns one image file as RGB, or as grey for 1 channel, with 8 bits per channel. All commands use this function.

    The image is rotated as its EXIF says. Transparent images get a white background. Palettes, CMYK, grey and 1-bit
    images are converted. Of an animation, the first frame is taken, with a warning. Grey pixels of 16 bits are scaled
    (65535 is white) and rounded. Of colours with 16 bits per channel, pillow keeps the upper 8 bits.

    Raises ValueError, with the file's name, if pillow cannot read it or a channel has neither 8 nor 16 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            opened.load()
            if getattr(opened, "n_frames", 1) > 1:
                warnings.warn(f"{file} has {opened.n_frames} frames; the first is taken", stacklevel=2)  # type: ignore[attr-defined]
            image = ImageOps.exif_transpose(opened)
            if image.mode[0] in "IF":
                image = Image.fromarray(_eight_bits(np.array(image), image.mode))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not an image that pillow can read: {error}") from None


def _eight_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Returns grey pixels of 16 bits, which pillow may hold in 32 bits, as uint8."""
    if mode[0] == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"it has pixels of type {mode}; 8 or 16 bits per channel are accepted")
    return ((pixels.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)


def to_tensor(image: Pillow.Image) -> Tensor:
    """Returns an RGB or grey image as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def _square(size: int, channels: int, file: Path) -> Tensor:
    """Returns the middle square of an image, resized."""
    from PIL import Image, ImageOps

    return to_tensor(ImageOps.fit(decode(file, channels), (size, size), Image.Resampling.BILINEAR))


def _squeezed(size: int, channels: int, file: Path) -> Tensor:
    """Returns the whole image, resized to a square."""
    from PIL import Image

    return to_tensor(decode(file, channels).resize((size, size), Image.Resampling.BICUBIC))


def _side_by_side(size: int, channels: int, swap: bool, file: Path) -> Tensor:
    """Returns both halves of an image, each resized to a square and stacked along the channels: [2C, size, size]."""
    from PIL import Image

    image = decode(file, channels)
    width, height = image.size
    if width % 2:
        raise ValueError(f"{file} is {width} pixels wide; the width must be even, for input and target side by side")
    halves = [image.crop((left, 0, left + width // 2, height)) for left in (0, width // 2)]
    resized = [to_tensor(half.resize((size, size), Image.Resampling.BICUBIC)) for half in halves]
    return torch.cat(resized[::-1] if swap else resized)


def _two_files(size: int, channels: int, files: tuple[Path, Path]) -> Tensor:
    return torch.cat([_squeezed(size, channels, file) for file in files])


def _photograph(channels: int, file: Path) -> Tensor:
    return to_tensor(decode(file, channels))


class OnDisk(Sequence[Tensor]):
    """A sequence of images that decodes an image at each access."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], Tensor]) -> None:
        self.items = items
        self.read = read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.read(self.items[index])


# splits


def _folders(root: Path, split: str, suffix: str = "") -> list[Path]:
    """Returns the folders of `split`: train and test (or val), each with `suffix`. Returns [] if `root` has neither."""
    train, *tests = (root / f"{name}{suffix}" for name in ("train", "test", "val"))
    test = next((folder for folder in tests if folder.is_dir()), tests[0])
    if not train.is_dir() and not test.is_dir():
        return []
    wanted = {"train": [train], "test": [test], "all": [train, test]}[split]
    for folder in wanted:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing; {root} must hold {train.name} and {test.name}")
    return wanted


def _by_name(root: Path, files: Iterable[Path], split: str) -> list[Path]:
    """Returns the files that belong to `split`, for a folder without split folders."""
    chosen = [file for file in files if split == "all" or held_out(file.stem) == (split == "test")]
    if not chosen:
        raise ValueError(
            f"{root} holds too few files for a {split} split; split='all' or folders train and test are accepted"
        )
    return chosen


def split_files(root: Path, how: Reading, inside: Callable[[Path], list[Path]] = image_files) -> list[Path]:
    """Returns the files of a folder that belong to the split. `inside`: returns the files in a folder.

    Folders train and test (or val) are the splits; without them, the names of the files decide.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; a folder of files is expected")
    parts = _folders(root, how.part)
    if parts:
        return _chosen([file for part in parts for file in inside(part)], how)
    return _chosen(_by_name(root, inside(root), how.part), how)


def _chosen(files: Sequence[Path], how: Reading) -> list[Path]:
    return how.chosen(files, (file.stem for file in files))


def _names(root: Path, files: Iterable[Path]) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files]


# one function per layout


def image_folder(root: Path, how: Reading) -> Samples:
    """Returns one sample per image: its middle square."""
    files = split_files(root, how)
    images = how.images(files, partial(_square, how.size, how.channels))
    return Single(images, _names(root, files), how.size, **how.training)


def pairs(root: Path, how: Reading) -> Samples:
    """Returns pairs: images side by side, or files of the same name in trainA and trainB.

    The input is the left half or side A; with `how.swap` it is the right half or side B.
    """
    sides = [_folders(root, how.part, suffix) for suffix in "AB"]
    if not any(sides):
        files = split_files(root, how)
        images = how.images(files, partial(_side_by_side, how.load_size, how.channels, how.swap))
        return Pairs(images, _names(root, files), how.size, **how.training)
    items: list[tuple[Path, Path]] = []
    for a, b in zip(*_both(root, sides), strict=True):
        in_a, in_b = _by_stem(a), _by_stem(b)
        alone = sorted(in_a.keys() ^ in_b.keys())
        if alone:
            raise ValueError(f"{a} and {b} must hold the same names; {_some(alone)} is in only one of them")
        items += [(file, in_b[name]) for name, file in in_a.items()]
    items = how.chosen(items, (a.stem for a, _ in items))
    names = _names(root, (a for a, _ in items))
    items = [(b, a) for a, b in items] if how.swap else items
    images = how.images(items, partial(_two_files, how.load_size, how.channels))
    return Pairs(images, names, how.size, **how.training)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Returns the images of a folder by their path in the folder, without the ending."""
    files: dict[str, Path] = {}
    for file in image_files(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise ValueError(f"{files[name]} and {file.name} have the same name; a side must hold one image per name")
        files[name] = file
    return files


def two_sides(root: Path, how: Reading) -> Samples:
    """Returns samples of two unpaired sides: trainA and trainB, testA and testB."""
    sides = _both(root, [_folders(root, how.part, suffix) for suffix in "AB"])
    sides = sides[::-1] if how.swap else sides
    a, b = (_chosen([file for folder in side for file in image_files(folder)], how) for side in sides)
    read = partial(_squeezed, how.load_size, how.channels)
    names = _names(root, a if len(a) >= len(b) else b)
    return Unpaired(how.images(a, read), names, how.size, other=how.images(b, read), **how.training)


def _both(root: Path, sides: list[list[Path]]) -> list[list[Path]]:
    if not all(sides):
        raise FileNotFoundError(f"{root} must hold trainA and trainB (testA and testB for the test split)")
    return sides


def domain_folders(root: Path, how: Reading) -> Samples:
    """Returns images labelled by their folder. `how.domains`: the folders in the order of their labels, by default all,
    sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; a folder with a folder for each domain is expected")
    parts = _folders(root, how.part)
    there = [_subfolders(part) for part in parts or [root]]
    if there[0] != there[-1]:
        raise ValueError(
            f"{parts[0]} holds {', '.join(there[0])} and {parts[1]} {', '.join(there[1])}; they must be the same"
        )
    unknown = sorted(set(how.domains) - set(there[0]))
    if unknown:
        raise ValueError(f"{root} has no domain {_some(unknown)}; it has {', '.join(there[0])}")
    domains = list(how.domains) or there[0]
    files: list[Path] = []
    labels: list[int] = []
    for part in parts or [root]:
        for label, domain in enumerate(domains):
            inside = image_files(part / domain)
            inside = _chosen(inside if parts else _by_name(part / domain, inside, how.part), how)
            files += inside
            labels += [label] * len(inside)
    images = how.images(files, partial(_square, how.size, how.channels))
    names = _names(root, files)
    return Labelled(images, names, how.size, labels=torch.tensor(labels), domains=domains, **how.training)


def _subfolders(folder: Path) -> list[str]:
    names = sorted(inside.name for inside in folder.iterdir() if inside.is_dir() and inside.name[0] != ".")
    if len(names) < 2:
        raise ValueError(f"{folder} holds {len(names)} folders; it must hold at least 2, one per domain")
    return names


def attribute_file(root: Path, how: Reading) -> Samples:
    """Returns the images of the folder `root` with labels float32 [N, K], each 0 or 1, from the file `how.attributes`.

    The labels have a column per attribute of `how.domains`, by default per attribute of the file.
    """
    file = cast(Path, how.attributes)
    values, names = read_attributes(file)
    unknown = sorted(set(how.domains) - set(names))
    if unknown:
        raise ValueError(f"{file} has no attribute {_some(unknown)}; it has {', '.join(names)}")
    files = {path.relative_to(root).as_posix(): path for path in image_files(root)}
    alone = sorted(files.keys() ^ values.keys())
    if alone:
        where = f"{root} and not in {file}" if alone[0] in files else f"{file} and not in {root}"
        raise ValueError(f"{alone[0]} is in {where} ({len(alone)} such in all); each image needs its line")
    domains = list(how.domains) or names
    columns = [names.index(name) for name in domains]
    kept = _chosen(_by_name(root, (files[name] for name in values), how.part), how)
    kept_names = _names(root, kept)
    labels = torch.tensor([[float(values[name][c]) for c in columns] for name in kept_names])
    images = how.images(kept, partial(_square, how.size, how.channels))
    return Labelled(images, kept_names, how.size, labels=labels, domains=domains, **how.training)


def read_attributes(file: Path) -> tuple[dict[str, list[int]], list[str]]:
    """Returns (file name -> 0 or 1 per attribute, the attributes' names) from a file like list_attr_celeba.txt.

    The first line is the number of images and the second the attributes' names. Each further line is the file name of
    an image, then 1 or -1 (or 0) per attribute. Raises ValueError, with the number of the line.
    """
    try:
        count, head, *lines = file.read_text(encoding="utf-8").splitlines()
        expected, names = int(count), head.split()
    except (ValueError, UnicodeDecodeError):
        raise ValueError(
            f"{file} is no attribute file; a count, a line of names and a line per image are expected"
        ) from None
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{file}, line 2: the attributes' names are expected, each once")
    values: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 3):
        if not line.strip():
            continue
        name, *given = line.split()
        if len(given) != len(names) or not set(given) <= {"1", "-1", "0"}:
            raise ValueError(
                f"{file}, line {number}: a file name and {len(names)} numbers, each 1, -1 or 0, are expected"
            )
        if name in values:
            raise ValueError(f"{file}, line {number}: {name} is there a second time")
        values[name] = [int(v == "1") for v in given]
    if len(values) != expected or not values:
        raise ValueError(f"{file} says that it has {expected} images, and has {len(values)}")
    return values, names


def photographs(root: Path, how: Reading) -> Samples:
    """Returns crops of `how.size`, a multiple of 4, from images that are at least as large."""
    size = how.size
    if size % FACTOR:
        raise ValueError(f"size is {size}; for crops it must be a multiple of {FACTOR}")
    files = split_files(root, how)
    cells: list[tuple[int, int, int]] = []
    total = 0
    for index, file in enumerate(files):
        width, height = _dimensions(file)
        if min(width, height) < size:
            raise ValueError(f"{file} is {width}x{height}; crops of {size} need at least {size}x{size}")
        total += how.channels * width * height
        cells += [(index, y, x) for y in range(0, height - size + 1, size) for x in range(0, width - size + 1, size)]
    read = partial(_photograph, how.channels)
    images: Images = OnDisk(files, read) if total > how.limit else [read(file) for file in how.track(files)]
    files_names = _names(root, files)
    names = [f"{files_names[i]} at {y},{x}" for i, y, x in cells]
    return Crops(images, names, size, cells=torch.tensor(cells), **how.training)


def _dimensions(file: Path) -> tuple[int, int]:
    """Returns width and height of an image after the rotation that its EXIF asks for. Pixels are not decoded."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            sideways = opened.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 exchange width and height
            return opened.size[::-1] if sideways else opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not an image that pillow can read: {error}") from None


def idx_files(source: Path, how: Reading) -> Samples:
    """Returns the grey images of an idx file, or of the files train-* and t10k-* of a folder, resized bilinearly."""
    from .mnist import resized

    files = [source]
    if source.is_dir():
        wanted = {"train": ["train"], "test": ["t10k"], "all": ["train", "t10k"]}[how.part]
        found = [_idx(source, part) for part in wanted]
        files = [file for file in found if file is not None]
        if len(files) < len(wanted):
            missing = wanted[found.index(None)]
            raise FileNotFoundError(f"{source} holds no {missing}-images-idx3-ubyte, with or without .gz")
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    names: list[str] = []
    for file in files:
        images, label = _images_and_labels(file)
        chosen = list(range(len(images)))
        if not source.is_dir() and how.part != "all":
            chosen = [i for i in chosen if held_out(f"{file.name}/{i}") == (how.part == "test")]
            if not chosen:
                raise ValueError(f"{file} holds too few images for a {how.part} split; split='all' takes all")
        chosen = how.chosen(chosen, (f"{file.name}/{i}" for i in chosen))
        names += [f"{file.name}/{i}" for i in chosen]
        total = len(names) * how.size**2
        if total > how.limit:
            size = f"{how.size}x{how.size}"
            raise ValueError(f"{file} takes {total >> 20} MiB or more at {size}; the limit is {how.limit >> 20} MiB")
        for part in images[chosen].split(1000):
            pixels.append(resized(part, how.size).add(1).mul(127.5).round().to(torch.uint8))
        if label is not None:
            labels.append(label[chosen])
    all_labels = torch.cat(labels) if len(labels) == len(files) else None
    return Single(torch.cat(pixels), names, how.size, labels=all_labels, **how.training)


def _images_and_labels(file: Path) -> tuple[Tensor, Tensor | None]:
    """Returns the images uint8 [N, H, W] of an idx file, and the labels int64 [N] of the labels' file beside it."""
    images = idx.read(file)
    if images.dim() != 3:
        raise ValueError(f"{file} has the shape {tuple(images.shape)}; images are [N, height, width]")
    beside = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
    if beside == file or not beside.is_file():
        return images, None
    labels = idx.read(beside)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{beside} has the shape {tuple(labels.shape)}, and {file} holds {len(images)} images")
    return images, labels.long()


def _idx(folder: Path, part: str) -> Path | None:
    files = (folder / f"{part}-images-idx3-ubyte{ending}" for ending in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def is_idx(source: Path) -> bool:
    """Returns whether `source` is an idx file or a folder of idx files."""
    if source.is_dir():
        return any(_idx(source, part) for part in ("train", "t10k"))
    return source.is_file() and "idx" in source.name


def _some(names: Sequence[str]) -> str:
    """Returns a text with the first three of `names`, and the number of further names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
