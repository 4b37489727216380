"""GANs of other packages: a folder with dist-info metadata on the path is an installed package."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsegan.gans import GANS, Registry, dcgan, store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new-gan.md").read_text(encoding="utf-8")
BUILT_IN = {"dcgan": "sparsegan.gans.dcgan", "srgan": "sparsegan.gans.srgan"}
#: A module with DCGAN's reference under another name.
MODULE = (
    "from dataclasses import replace\nfrom sparsegan.gans import dcgan\nreference = replace(dcgan.reference, name={!r})"
)


def install(site: Path, package: str, entry_points: str, modules: dict[str, str] | None = None) -> None:
    """Lays out a package as pip does. `modules`: module name -> source."""
    information = site / f"{package}-1.5.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(entry_points)
    for name, source in (modules or {}).items():
        file = site / Path(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, whose modules are forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


COMMANDS = """
import sys, torch, warnings
from pathlib import Path
from sparsegan.gans import GANS
from sparsegan.cli import main
from sparsegan.gans import store
pictures, runs = sys.argv[1:]
assert "glyphgan" not in sys.modules
assert "glyphs" in GANS and "glyphgan" not in sys.modules
assert main(["info"]) == 0
common = ["--threads", "1", "--steps", "2", "--batch", "2", "--quiet", "--out"]
assert main(["train", "glyphs", "--width", "4", "--data", pictures, *common, runs + "/dense"]) == 0
bare = runs + "/generator.pth"
torch.save(store.load(runs + "/dense").generator.state_dict(), bare)
alone = ["compress", "--generator", bare, "--data-free", "--sparsity", "0.5"]
assert main([*alone, *common, runs + "/small"]) == 0
assert store.read_config(runs + "/small")["network"] == {"gan": "glyphs", "nz": 16, "width": 4, "channels": 3}
assert main(["generate", runs + "/small", "--count", "3", "--threads", "1", "--out", runs + "/grid.png"]) == 0
assert main(["train", "broken", "--data", pictures, *common, runs + "/none"]) == 1
"""


def test_the_package_of_the_page_works_with_every_command(tmp_path: Path) -> None:
    for package in ("matplotlib", "PIL.Image"):
        image = pytest.importorskip(package)
    (declared,) = re.findall(r'^(\w+) = "([\w.]+)"$', PAGE, re.MULTILINE)
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    install(tmp_path, "glyphgan", "[sparsegan.gans]\n{} = {}\n".format(*declared), {declared[1]: source})
    install(tmp_path, "brokengan", "[sparsegan.gans]\nbroken = no_such_module\n")
    for index in range(4):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
        image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    command = [sys.executable, "-c", f"import sys; sys.path[1:1] = [{str(tmp_path)!r}]\n{COMMANDS}"]
    result = subprocess.run(
        [*command, tmp_path / "pictures", tmp_path / "runs"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^gan glyphs +letters from noise, 32x32; of glyphgan 1\.5$", result.stdout, re.MULTILINE)
    reason = "the GAN 'broken' cannot be used; the entry point broken = no_such_module of brokengan 1.5: Mod"
    assert re.search(rf"^gan broken +{re.escape(reason)}", result.stdout, re.MULTILINE)
    assert f"sparsegan train: {reason}" in result.stderr
    assert "Warning" not in result.stderr, "a warning of a command is one sentence"


BROKEN = {
    "missing": ("nowhere.networks", "", "ModuleNotFoundError: No module named 'nowhere'"),
    "raises": ("raises_gan", "1 / 0", "ZeroDivisionError: division by zero"),
    "exits": ("exits_gan", "raise SystemExit(3)", "SystemExit: 3"),
    "unnamed": ("unnamed_gan", "", "AttributeError: module 'unnamed_gan' has no attribute 'reference'"),
    "number": ("number_gan:n", "n = 3", "it names a int; it must name a Reference, or a module with one"),
    "other": ("other_gan", MODULE.format("another"), "its Reference has the name 'another'; it must be 'other'"),
    "garbled": ("not a module!", "", "AttributeError"),
}


def test_a_gan_that_cannot_be_used_is_one_sentence_and_the_others_work(site: Path) -> None:
    for name, (value, source, _) in BROKEN.items():
        install(site, f"{name}pkg", f"[sparsegan.gans]\n{name} = {value}\n", {f"{name}_gan": source} if source else {})
    (site / "unnamed_gan.py").touch()
    install(site, "fine", "[sparsegan.gans]\nfine = fine_gan\n", {"fine_gan": MODULE.format("fine")})
    gans = Registry(BUILT_IN)
    assert list(gans) == ["dcgan", "srgan", *sorted([*BROKEN, "fine"])]
    assert not {"fine_gan", "raises_gan"} & sys.modules.keys(), "names alone import nothing"
    with pytest.warns(UserWarning, match="cannot be used") as told:
        assert list(gans.working()) == ["dcgan", "srgan", "fine"]
    said = [str(one.message) for one in told]
    assert len(said) == len(BROKEN)
    for name, (value, _, reason) in BROKEN.items():
        with pytest.raises(ValueError, match="cannot be used") as raised:
            gans[name]
        beginning = f"the GAN {name!r} cannot be used; the entry point {name} = {value} of {name}pkg 1.5: {reason}"
        assert str(raised.value).startswith(beginning)
        assert str(raised.value) in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gans.working()["fine"].name == "fine"
    assert gans["dcgan"] is dcgan.reference


def test_a_name_belongs_to_one_package(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for package in ("one", "two"):
        shared = f"[sparsegan.gans]\nshared = {package}_gan\n"
        install(site, package, shared, {f"{package}_gan": MODULE.format("shared")})
    install(site, "thief", "[sparsegan.gans]\ndcgan = thief_gan\nclassifier = thief_gan\nhonest = thief_gan\n")
    (site / "thief_gan.py").write_text(MODULE.format("honest"))
    gans = Registry(BUILT_IN)
    with pytest.warns(UserWarning, match="is left out") as told:
        assert list(gans) == ["dcgan", "srgan", "honest", "shared"]
    said = sorted(str(one.message) for one in told)
    end = "= thief_gan of thief 1.5 is left out: the name {!r} belongs to sparsegan"
    assert said == [f"the entry point {name} {end.format(name)}" for name in ("classifier", "dcgan")]
    assert gans["dcgan"] is dcgan.reference
    assert gans.distribution("honest") == "thief 1.5"
    both = r"by the entry point shared = one_gan of one 1\.5 and the entry point shared = two_gan of two 1\.5; uninst"
    with pytest.raises(ValueError, match=both):
        gans["shared"]
    with pytest.warns(UserWarning, match="declared more than once"):
        assert list(gans.working()) == ["dcgan", "srgan", "honest"]

    again = tmp_path_factory.mktemp("again")  # a second copy of an installation, further down the path
    install(again, "Thief", "[sparsegan.gans]\nhonest = elsewhere\n")
    sys.path.append(str(again))
    with pytest.warns(UserWarning, match="belongs to sparsegan"):
        assert Registry(BUILT_IN)["honest"].name == "honest"


def test_metadata_that_cannot_be_parsed_are_charged_to_their_package(site: Path) -> None:
    install(site, "fine", "[sparsegan.gans]\nfine = fine_gan\n", {"fine_gan": MODULE.format("fine")})
    install(site, "garbled", "[sparsegan.gans]\nno equals sign\n")
    install(site, "unrelated", "[console_scripts]\nno equals sign\n")
    with pytest.warns(UserWarning, match=r"^entry_points\.txt of garbled cannot be parsed") as told:
        assert list(Registry(BUILT_IN)) == ["dcgan", "srgan", "fine"]
    assert len(told) == 1


def test_a_program_adds_and_removes_a_gan() -> None:
    gans = Registry(BUILT_IN)
    gans["mine"] = replace(dcgan.reference, name="mine")
    assert gans["mine"].build is dcgan.build
    assert gans.distribution("mine") == "this program"
    assert repr(gans) == "Registry(dcgan, srgan, mine)"
    for name, reference, reason in (
        ("mine", gans["mine"], "'mine' is registered already"),
        ("dcgan", dcgan.reference, "'dcgan' is registered already"),
        ("classifier", dcgan.reference, "'classifier' is registered already"),
        ("yours", dcgan.reference, "has the name 'dcgan'; it must be 'yours'"),
        ("yours", dcgan, "it names a module"),
    ):
        with pytest.raises(ValueError, match=reason):
            gans[name] = reference
    del gans["mine"]
    assert "mine" not in gans
    assert gans.get("mine") is None
    for name in ("mine", 3, ["dcgan"]):
        assert name not in gans


def raises(state: object) -> list[dict[str, int]]:
    raise KeyError("start.weight")


def too_large(*, width: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    raise OverflowError("no memory has this width")


RUDE: dict[str, tuple[Callable[..., Any], str]] = {
    "it raises": (raises, r"KeyError\('start.weight'\)"),
    "no list": (lambda state: None, "TypeError"),
    "no dicts": (lambda state: [3], "TypeError"),
    "unknown sizes": (lambda state: [{"width": 2, "depth": 1}], r"build has width, so \['depth'\] do not fit"),
    "missing sizes": (lambda state: [{}], r"build has width, so \['width'\] do not fit"),
    "sizes that cannot be built": (lambda state: [{"width": 2}], ""),
}


@pytest.mark.parametrize(("sizes", "reason"), RUDE.values(), ids=RUDE)
def test_recognition_survives_a_rude_gan(
    sizes: Callable[..., Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GANS, "rude", replace(dcgan.reference, name="rude", generator_sizes=sizes, build=too_large))
    state = dcgan.Generator(nz=5, ngf=2, nc=1).state_dict()
    if reason:
        with pytest.warns(UserWarning, match=f"GAN rude of this program cannot say .* generator_sizes .*{reason}"):
            assert store.recognise(state)["gan"] == "dcgan"
    else:
        assert store.recognise(state)["gan"] == "dcgan"
        with pytest.raises(ValueError, match="OverflowError"):
            store.recognise(state, gan="rude")


def test_sizes_may_be_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*, widths: list[int]) -> tuple[torch.nn.Module, torch.nn.Module]:
        return torch.nn.Conv2d(*widths, 3), torch.nn.Conv2d(3, 1, 1)

    lists = replace(dcgan.reference, name="lists", build=build, generator_sizes=lambda state: [{"widths": [2, 3]}])
    monkeypatch.setitem(GANS, "lists", lists)
    gan, judged = store.load_public(build(widths=[2, 3])[0].state_dict())
    assert (gan.config, judged) == ({"network": {"gan": "lists", "widths": [2, 3]}}, False)


@pytest.mark.parametrize("name", ["elsewhere", ["dcgan"], None])
def test_a_configuration_names_a_gan_that_is_not_installed(name: object) -> None:
    with pytest.raises(ValueError, match=r"must be one of dcgan, .* and is not installed here"):
        store.build({"network": {"gan": name}})
