"""How `make docs` renders README.md, the pages beside it, and the docstrings. The source folder is the repository."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import sparsegan  # noqa: E402

project, version, copyright = "sparsegan", sparsegan.__version__, "the sparsegan authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "csrc/*/NOTES.md", "kernels/NOTES.md", "checkpoints/README.md"]
pages = ["docs/api", "docs/modules", "docs/*", "csrc/*/NOTES", "kernels/NOTES", "checkpoints/README", "C*", "SECURITY"]

html_theme = "furo"
myst_heading_anchors = 4
default_role = "code"  # docstrings write names in single backquotes too
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
nitpicky = True
# In signatures: types of other packages, type variables, and classes that no user makes.
inside = r"calls|nn\.plan_cache|engine\.(compiler|gpu|memory|steps|values)"
nitpick_ignore_regex = [
    ("py:class", rf"(?!sparsegan).*|.*\.(Model|Module|Self|Setting)|sparsegan\.({inside})\..*"),
    ("py:obj", r"typing\.Literal.*"),
]

#: How a paragraph or a row on an argument begins: `name`: or `one`, `other`:
ARGUMENT = re.compile(r"`[^`]+`(, `[^`]+`)*: ")


def add_pages(app: Any, name: str, source: list[str]) -> None:
    """The list of pages, which GitHub does not need, goes to the end of README.md."""
    if name == root_doc:
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n" + "\n".join(pages) + "\n```\n"


def public_once(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """A public name is described as `sparsegan.NAME`, not a second time in its module."""
    return True if app.env.docname == "docs/modules" and getattr(sparsegan, name, None) is value else None


def to_rst(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read as they are: formulas indented, arguments as `name`: text, |x| for norms."""
    text = "\n".join(lines)
    text = re.sub(r"(`[^`]*`)|\|", lambda bar: bar[1] or r"\|", text)
    paragraphs = text.split("\n\n")
    for at, paragraph in enumerate(paragraphs):
        if paragraph.endswith(":") and paragraphs[at + 1 : at + 2] and paragraphs[at + 1].startswith("    "):
            paragraphs[at] += ":"
            paragraphs[at + 1] = paragraphs[at + 1].replace(r"\|", "|")
        elif ARGUMENT.match(paragraph):
            rows = (line.strip() for line in paragraph.split("\n"))
            paragraphs[at] = "\n".join(f"{'- ' if ARGUMENT.match(row) else '  '}{row}" for row in rows)
    lines[:] = "\n\n".join(paragraphs).split("\n")
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon would take the words before a first line's colon for a type


def setup(app: Any) -> None:
    """Sphinx calls it."""
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon
    app.connect("source-read", add_pages)
    app.connect("autodoc-skip-member", public_once)
