"""Every relative link in the Markdown pages leads to an existing file, and to an existing heading if it names one.

The tables and rows of the study that method.md and reviewers.md name exist as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from sparsegan.compress import RECIPES
from sparsegan.study.grids import TECHNIQUES

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "checkpoints", "csrc", "docs", "kernels", "sparsegan", "tests")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
#: The target of a link, an image or a reference definition.
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HTML = re.compile(r"""(?:href|src)=["']([^"']+)["']""")
#: A file that a page names in backticks. Names with NAME are placeholders. CHANGELOG.md may name deleted files.
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)`")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)

#: Tables of the study that a page names.
TABLES = re.compile(r"\btables? ((?:`\w+`(?:, | and )?)+)")


def pages(root: Path) -> list[Path]:
    """The Markdown pages at the root and in the folders of the repository."""
    return sorted([*root.glob("*.md"), *(page for name in FOLDERS for page in (root / name).rglob("*.md"))])


def anchors(text: str) -> set[str]:
    """The anchors of the headings as GitHub makes them. A repeated heading gets -1, -2 and so on."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link shows only its text
        slug = "".join(c for c in shown.lower() if c.isalnum() or c in " -_").replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return found


def dead_links(root: Path) -> list[str]:
    """'PAGE: TARGET' for each target that does not exist."""
    dead = []
    for page in pages(root):
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        named = [one for one in NAMED.findall(text) if "NAME" not in one and page.name != "CHANGELOG.md"]
        dead += [f"{page.relative_to(root)}: {one}" for one in named if not (root / one).exists()]
        prose = CODE.sub("", text)
        for target in [a or b for a, b in LINK.findall(prose)] + HTML.findall(prose):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue  # a URL
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            known = file.exists() and file.is_relative_to(root.resolve())
            if known and anchor and file.suffix == ".md":
                known = anchor in anchors(file.read_text(encoding="utf-8"))
            if not known:
                dead.append(f"{page.relative_to(root)}: {target}")
    return dead


def tables_named(page: str) -> set[str]:
    """The names in backticks behind the word "table" or "tables", and those in the columns at the right whose head is
    "table". Such a column may name rows of the study as well.
    """
    found = {name for names in TABLES.findall(page) for name in names.split("`")[1::2]}
    in_column = False
    for line in page.splitlines():
        cells = line.strip("| ").split(" | ")
        in_column = line.startswith("|") and (in_column or cells[-1] == "table")
        if in_column:
            found |= set(re.findall(r"`([\w-]+)`", cells[-1]))
    return found


def test_the_tables_that_the_pages_name_are_in_the_study() -> None:
    known = set(re.findall(r"<!-- table: (\w+) -->", (ROOT / "docs" / "study.md").read_text(encoding="utf-8")))
    for page in ("method", "reviewers", "prior-work"):
        named = tables_named((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
        assert named & known
        assert named - known - RECIPES.keys() - TECHNIQUES.keys() == set()
    page = "table `a`; `no`\ntables `b`, `c`\n| x | table |\n|---|---|\n| `no` | `d`, `e-f` |\n\n| `no` |"
    assert tables_named(page) == {"a", "b", "c", "d", "e-f"}


def test_no_link_is_dead() -> None:
    assert len(pages(ROOT)) > 10
    assert dead_links(ROOT) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Speed: 90 % of it\n## Same\n## Same\n[up](../README.md#top-page)")
    good = "[a](docs/a.md) [b](docs/a.md#speed-90--of-it) [c](docs/a.md#same-1) [d](#top-page) `docs/a.md` `[e](no.md)`"
    bad = ["docs/b.md", "docs/a.md#speed", "docs/a.md#same-2", "#bottom", "../outside.md", "docs"]
    (tmp_path / "README.md").write_text(
        f"# Top page\n{good}\n"
        + " ".join(f"[x]({one})" for one in bad)
        + "\n`tests/test_no.py`\n```\n[f](no.md)\n```\n"
    )
    assert dead_links(tmp_path) == [f"README.md: {one}" for one in ["tests/test_no.py", *bad[:-1]]]
