"""The one-way rule of imports: each room imports only from the rooms below it. docs/architecture.md names the rooms."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The rooms from the top floor down. Rooms of one floor do not import each other.
FLOORS = (
    ("cli",),
    ("benchmark", "study"),
    ("compress",),
    ("metrics", "profiling"),
    ("checkpoint",),
    ("training",),
    ("pruning",),
    ("engine",),
    ("gans",),
    ("nn",),
    ("ops",),
    ("kernels",),
    ("data",),
)
#: The ground floor: the modules directly in ``sparsegan``. They import only each other.
GROUND = len(FLOORS)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: Modules outside the rooms: the package root, the entry of the command, and the list of old names.
OUTSIDE = ("", "__main__", "_moved")

Imports = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """The file of each module of the package, by the module's name below ``sparsegan``."""
    found = {}
    for folder, prefix in ((ROOT / "sparsegan", ()), (ROOT / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            if path.relative_to(folder).parts[0] != "kernels":  # a link that some checkouts have
                parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
                found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


def imported(name: str, source: str, is_package: bool, known: Mapping[str, object]) -> Iterator[str]:
    """The modules of the package that a module imports at any place in its source."""
    here = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            absolute = [alias.name.split(".") for alias in node.names]
            yield from (".".join(parts[1:]) for parts in absolute if parts[0] == "sparsegan")
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                parts = [*here[: len(here) - node.level + 1], *parts]
            elif parts[:1] == ["sparsegan"]:
                parts = parts[1:]
            else:
                continue
            for alias in node.names:
                inner = ".".join([*parts, alias.name])
                yield inner if inner in known else ".".join(parts)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: set(imported(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", known)) - {name}
        for name, path in known.items()
    }


def room(module: str) -> str:
    return module.split(".")[0]


def against_the_grain(imports: Imports) -> list[str]:
    """One sentence for each import that points upwards, sideways or at the package root."""
    wrong = []
    for module, others in imports.items():
        for other in others:
            if module in OUTSIDE or room(module) == room(other) != "":
                continue
            mine, its = FLOOR_OF.get(room(module), GROUND), FLOOR_OF.get(room(other), GROUND)
            if other in OUTSIDE or its < mine or (its == mine != GROUND):
                wrong.append(f"sparsegan.{module} imports sparsegan.{other}".rstrip("."))
    return sorted(wrong)


def cycle(imports: Imports) -> list[str]:
    """The modules of one cycle of imports; empty where there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module not in finished:
            for other in sorted(imports.get(module, ())):
                if found := visit(other, [*path, module]):
                    return found
            finished.add(module)
        return []

    return next((found for module in sorted(imports) if (found := visit(module, []))), [])


def test_a_wheel_has_every_package() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert listed is not None
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == {f"sparsegan.{name}".rstrip(".") for name in packages}


def test_imports_point_downwards() -> None:
    imports = graph()
    assert {"nn.layer", "kernels.sparse_conv", "cli.compress"} <= imports.keys()
    assert sum(map(len, imports.values())) > 300, "too few imports were found in the sources"
    assert not against_the_grain(imports)


def test_imports_have_no_cycle() -> None:
    assert not cycle(graph())


@pytest.mark.parametrize(
    ("module", "source", "what"),
    [
        ("nn.layer", "from ..compress import Compressor", "sparsegan.nn.layer imports sparsegan.compress"),
        ("ops.plan", "def f():\n    from sparsegan.nn import layer", "sparsegan.ops.plan imports sparsegan.nn.layer"),
        ("study.row", "import sparsegan.benchmark", "sparsegan.study.row imports sparsegan.benchmark"),
        ("engine.cpu", "from .. import __version__", "sparsegan.engine.cpu imports sparsegan"),
        ("clock", "from .nn import layer", "sparsegan.clock imports sparsegan.nn.layer"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, what: str) -> None:
    known = modules()
    assert against_the_grain({module: set(imported(module, source, False, known))}) == [what]


def test_a_planted_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_page_names_every_room() -> None:
    rooms = {name for rooms in FLOORS for name in rooms} - {"kernels"}
    named = set(re.findall(r"`sparsegan/(\w+)(?:\.py)?`", PAGE))
    assert rooms <= named, f"docs/architecture.md leaves out {rooms - named}"


@pytest.mark.parametrize("name_and_file", sorted(set(re.findall(r"`([\w.]+)` (?:in|of) `([\w/]+/[\w/.]+)`", PAGE))))
def test_names_of_the_page_are_in_their_files(name_and_file: tuple[str, str]) -> None:
    name, file = name_and_file
    assert re.search(rf"\b{name.split('.')[-1]}\b", (ROOT / file).read_text(encoding="utf-8"))


def test_files_of_the_page_exist() -> None:
    named = set(re.findall(r"`((?:sparsegan|csrc|kernels|tests|benchmarks)/[\w/.]+\.\w+)`", PAGE))
    assert len(named) > 40
    assert not [file for file in named if not (ROOT / file).exists()]
