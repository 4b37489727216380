"""Rebuilds the page's tables and plots from the rows that are done; nothing is run.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` of the page; a plot is an svg beside it. A cell that
holds no figure says why.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..atomic_files import write_text
from .plots import draw
from .results import Results
from .tables import TABLES


def rebuild(study: str, results: Results, page: Path) -> None:
    """Write the tables of a study into `page`, and its plots beside it.

    Raises FileNotFoundError where there is no page, ValueError where it has no place for a table.
    """
    if not page.is_file():
        raise FileNotFoundError(f"{page} is missing; it must hold <!-- table: NAME --> and <!-- end --> for each table")
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES[study].items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(text):
            raise ValueError(f"{page} has no <!-- table: {name} --> with <!-- end --> behind it")
        table = make(results)
        text = block.sub(lambda found, table=table: found[1] + table + found[2], text)  # type: ignore[misc]
    write_text(page, text)
    draw(study, results, page.parent)
