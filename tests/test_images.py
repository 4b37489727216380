"""Image files of all kinds, read by the reader that every command uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsegan.data.layouts import decode, image_files, to_tensor

Image: Any = pytest.importorskip("PIL.Image")

RED = np.zeros((2, 3, 3), np.uint8)
RED[..., 0], RED[0, 0] = 200, (10, 20, 30)  # not square; one corner differs


def pixels(file: Path, channels: int = 3) -> np.ndarray:
    return to_tensor(decode(file, channels)).numpy().transpose(1, 2, 0)


def written(image: Any, file: Path, **options: Any) -> Path:
    image.save(file, **options)
    return file


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_of_grey_are_scaled(suffix: str, tmp_path: Path) -> None:
    levels = np.array([[0, 1, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    file = written(Image.fromarray(levels), tmp_path / f"grey.{suffix}")
    wanted = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(pixels(file, 1)[..., 0], wanted)
    assert np.array_equal(pixels(file), np.repeat(wanted[..., None], 3, 2))


def test_other_depths(tmp_path: Path) -> None:
    large = written(Image.fromarray(np.array([[0, 70000]], np.int32)), tmp_path / "large.tiff")
    real = written(Image.fromarray(np.array([[0.0, 0.5]], np.float32)), tmp_path / "real.tiff")
    for file, mode in ((large, "I"), (real, "F")):
        with pytest.raises(ValueError, match=rf"{file.name} .*pixels of type {mode}; 8 or 16 bits"):
            decode(file)
    fits = written(Image.fromarray(np.array([[0, 65535]], np.int32)), tmp_path / "fits.tiff")
    assert pixels(fits, 1).flatten().tolist() == [0, 255]


def test_modes(tmp_path: Path) -> None:
    rgb = Image.fromarray(RED)
    assert np.array_equal(pixels(written(rgb, tmp_path / "rgb.png")), RED)
    grey = np.array([[0, 100, 255]], np.uint8)
    alpha = np.array([[255, 128, 0]], np.uint8)
    on_white = np.round(grey * (alpha / 255) + 255 * (1 - alpha / 255)).astype(int)
    both = Image.fromarray(np.stack([grey, alpha], -1))
    assert abs(pixels(written(both, tmp_path / "la.png"))[..., 0] - on_white).max() <= 1
    clear = Image.fromarray(np.concatenate([RED, np.zeros((2, 3, 1), np.uint8)], -1))
    assert (pixels(written(clear, tmp_path / "rgba.png")) == 255).all()
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert abs(pixels(written(palette, tmp_path / "p.png")).astype(int) - RED).max() <= 8
    index = palette.getpixel((1, 1))
    through = pixels(written(palette, tmp_path / "transparent.png", transparency=index))
    assert (through[1, 1] == 255).all()
    bits = Image.fromarray(np.array([[True, False]]))
    assert pixels(written(bits, tmp_path / "bits.png"), 1).flatten().tolist() == [255, 0]
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    red = pixels(written(cmyk, tmp_path / "cmyk.jpg", quality=100))
    assert red[0, 0, 0] > 230
    assert red[0, 0, 1:].max() < 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int, tmp_path: Path) -> None:
    """The file stores a turned image. The reader turns it back as the EXIF tag says."""
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.T,
        6: np.rot90(picture),
        7: picture[::-1, ::-1].T,
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = written(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(file, 1)[..., 0], picture)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_the_first_frame_of_an_animation_is_read_with_a_warning(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    file = written(frames[0], tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:], duration=10)
    with pytest.warns(UserWarning, match=rf"film\.{suffix} has 2 frames; the first is taken"):
        first = pixels(file)
    assert first[0, 0, 0] > 200
    assert first[0, 0, 2] < 60


def test_files_that_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = written(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), tmp_path / "Ü.PNG"
    )
    (tmp_path / "deep").mkdir()
    written(Image.fromarray(RED), tmp_path / "deep" / "photo.JPEG")
    for name in (".DS_Store", "._x.png", "notes.txt", "list.csv", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"no image")
    assert {file.name for file in image_files(tmp_path)} == {"photo.JPEG", "Ü.PNG"}
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("3 files are no images and are left out (.csv, .db, .txt)")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:3000])
    for name, content in (("cut.png", None), ("empty.png", b""), ("text.png", b"hello")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not an image that pillow can read"):
            decode(tmp_path / name)
    Image.MAX_IMAGE_PIXELS, kept = 100, Image.MAX_IMAGE_PIXELS
    try:
        with pytest.raises(ValueError, match="decompression bomb"):
            decode(whole)
    finally:
        Image.MAX_IMAGE_PIXELS = kept
