"""The reference GANs by name: those of this package, and those that other packages declare as entry points.

A package declares a GAN by an entry point of the group "sparsegan.gans", for example in its pyproject.toml:

    [project.entry-points."sparsegan.gans"]
    glyphs = "glyphgan.networks"

The value names a module whose attribute `reference` is the `Reference`, or the `Reference` itself, as
"glyphgan.networks:small". The GANs of this package are entry points of the same form. They are made in the code and not
in the metadata of the installation, so that a source tree needs no new installation for a new file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, distributions
from types import ModuleType

from .reference import Reference

GROUP = "sparsegan.gans"
#: `sparsegan train classifier` is no GAN.
RESERVED = ("classifier",)


class Registry(MutableMapping[str, Reference]):
    """Name -> `Reference`. The names of this package's GANs come first, then those of other packages in order.

    `built_in`: the value of an entry point for each name of this package.

    The metadata of the installed packages are read when a name is first asked for. The module of a GAN is imported when
    that GAN is first asked for. An entry point that cannot be used does no harm to other GANs: `registry[name]` raises
    ValueError with a sentence that names the package, the entry point and the reason, and `working()` leaves the GAN
    out with a warning. The same holds for two packages that declare one name. A name of this package stays with this
    package, and a warning names an entry point that claims this name too.

    A program may add a GAN for its own process: `registry[name] = reference`. It raises ValueError for a name that is
    taken.
    """

    def __init__(self, built_in: Mapping[str, str]) -> None:
        self._built_in = dict(built_in)
        self._loaded: dict[str, Reference] = {}
        self._broken: dict[str, str] = {}
        self._told: set[str] = set()  # the names of broken GANs that a warning has named

    @cached_property
    def _entries(self) -> dict[str, list[EntryPoint]]:
        """Name -> the entry points with this name. More than one is an error of those who use the name."""
        entries = {name: [EntryPoint(name, value, GROUP)] for name, value in self._built_in.items()}
        for entry in sorted(_declared(), key=lambda entry: (entry.name, entry.value)):
            if entry.name in self._built_in or entry.name in RESERVED:
                _warn(f"{_described(entry)} is left out: the name {entry.name!r} belongs to sparsegan")
            else:
                entries.setdefault(entry.name, []).append(entry)
        return entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __getitem__(self, name: str) -> Reference:
        if name not in self:
            raise KeyError(name)
        if name not in self._loaded and name not in self._broken:
            try:
                self._loaded[name] = _load(self._entries[name])
            except ValueError as error:
                self._broken[name] = str(error)
        if name in self._broken:
            raise ValueError(self._broken[name])
        return self._loaded[name]

    def __setitem__(self, name: str, reference: Reference) -> None:
        if name in self or name in RESERVED:
            raise ValueError(f"the GAN {name!r} is registered already; a new GAN needs a name of its own")
        self._loaded[name] = _checked(reference, name)
        self._entries[name] = []

    def __delitem__(self, name: str) -> None:
        del self._entries[name]
        self._loaded.pop(name, None)
        self._broken.pop(name, None)

    def __repr__(self) -> str:
        return f"Registry({', '.join(self)})"

    def working(self) -> dict[str, Reference]:
        """Returns name -> reference for all GANs that can be used. The first call warns of each of the others."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except ValueError as error:
                if name not in self._told:
                    self._told.add(name)
                    _warn(str(error))
        return found

    def distribution(self, name: str) -> str:
        """Returns the name and version of the package that declares a GAN.

        It is "sparsegan" for the GANs of this package, and "this program" for a GAN that the program added. Raises
        KeyError for an unknown name.
        """
        if name in self._built_in:
            return "sparsegan"
        return " and ".join(_distribution(entry) for entry in self._entries[name]) or "this program"


def _declared() -> list[EntryPoint]:
    """Returns the entry points of the group, of all installed packages.

    A package that is on the path twice counts once: the first one on the path is the one that is imported. The entry
    points of each package are parsed by themselves, so that a file that cannot be parsed is charged to its package.
    """
    found: dict[tuple[str, str], EntryPoint] = {}
    for distribution in distributions():
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            entries = distribution.entry_points.select(group=GROUP)
        except Exception as error:  # each version of Python raises its own kinds
            _warn(f"entry_points.txt of {distribution.name} cannot be parsed ({error}); its GANs are left out")
            continue
        package = re.sub(r"[-_.]+", "-", distribution.name or "").lower()
        for entry in entries:
            found.setdefault((package, entry.name), entry)
    return list(found.values())


def _load(entries: list[EntryPoint]) -> Reference:
    """Returns the reference GAN of the one entry point with its name. Raises ValueError where it cannot be used."""
    if len(entries) > 1:
        both = " and ".join(map(_described, entries))
        raise ValueError(f"the GAN {entries[0].name!r} is declared more than once, by {both}; uninstall all but one")
    (entry,) = entries
    try:
        found = entry.load()
        return _checked(found.reference if isinstance(found, ModuleType) else found, entry.name)
    # The module is somebody else's code, which may raise anything. A script that was declared by mistake may even exit.
    except (Exception, SystemExit) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"the GAN {entry.name!r} cannot be used; {_described(entry)}: {reason}") from error


def _checked(reference: object, name: str) -> Reference:
    if not isinstance(reference, Reference):
        raise ValueError(f"it names a {type(reference).__name__}; it must name a Reference, or a module with one")
    if reference.name != name:
        raise ValueError(f"its Reference has the name {reference.name!r}; it must be {name!r}, as the entry point says")
    return reference


def _described(entry: EntryPoint) -> str:
    return f"the entry point {entry.name} = {entry.value} of {_distribution(entry)}"


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "sparsegan"


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)
