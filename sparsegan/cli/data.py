"""Prepare a data set that is installed with a package: write folders of pictures for train, compress and evaluate.

Nothing is downloaded. Without a name, the command lists the data sets and how their packages are installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data import registry
from ..gans import GANS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `sparsegan data`."""
    parser.add_argument("name", nargs="?", choices=list(registry.SETS), help="the data set (default: list all)")
    parser.add_argument(
        "--from",
        type=Path,
        dest="given",
        metavar="FOLDER",
        help="the folder of the data set's packages: a package's folder, a node_modules folder, or the root of an "
        "unpacked Debian package",
    )
    parser.add_argument("--out", type=Path, help="the new folder to write (default: runs/data/NAME-SIZE)")
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels; for photos, the longer side (default: the data set's)"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(arguments: argparse.Namespace) -> None:
    """Write the folder and print its counts, split and licences, or list the data sets."""
    if arguments.name is None:
        _list(arguments.given)
        return
    chosen = registry.SETS[arguments.name]
    out = arguments.out or registry.default_folder(arguments.name, arguments.size or chosen.size)
    facts = registry.prepare(arguments.name, out, given=arguments.given, size=arguments.size, quiet=arguments.quiet)
    print(f"{out}: {facts['what']}")
    print("  " + ", ".join(f"{name} {count}" for name, count in facts["counts"].items()))
    print(f"  split: {facts['split']}")
    for package in facts["packages"]:
        print(f"  {package['registry']} {package['name']} {package['version']}: {package['licence']}")
    print(f"  use it: sparsegan train {_gans_of(chosen)[0]} --data {out}")


def _gans_of(chosen: registry.Set) -> list[str]:
    """The names of the reference GANs that learn from this data set's kind of samples."""
    return [name for name, reference in GANS.working().items() if reference.samples.name == chosen.kind.name]


def _list(given: Path | None) -> None:
    for name, chosen in registry.SETS.items():
        print(f"{name:<15}{', '.join(_gans_of(chosen)):<10}{chosen.text}")
        for package in chosen.packages:
            try:
                state = f"installed, {package.version(package.find(given))}"
            except FileNotFoundError:
                state = f"missing: {package.install}"
            print(f"{'':<25}{package.name:<29}{package.licence}; {state}")
