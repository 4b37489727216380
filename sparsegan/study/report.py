"""Rebuilds the tables and plots of the study's page from the rows that have run. No row is run.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` of the page. A plot is an svg file beside the page. A
cell without a figure tells the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..atomic_files import write_text
from .plots import draw
from .results import Results
from .tables import TABLES


def rebuild(study: str, results: Results, page: Path) -> None:
    """Writes the tables of a study into `page`, and the plots of the study beside `page`.

    Raises FileNotFoundError if `page` is missing, ValueError if `page` has no place for a table.
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
