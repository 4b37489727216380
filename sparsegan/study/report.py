"""Rebuilds the tables and plots of the study's page from the rows that have run. No row is run.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` of the page. A plot is an svg file beside the page. A
cell without a figure tells the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ..atomic_files import write_text
from .grids import DCGAN, SECOND
from .plots import draw
from .results import Results
from .tables import by_sparsity, classes, granularity, sizes, translations
from .technique_tables import baselines, discriminators, drift, equations, missing, open_points, recipes, what_of_d

#: study -> marker of a table in the page -> the function that makes the table.
TABLES: dict[str, dict[str, Callable[[Results], str]]] = {
    "paper-table2": {
        "by_sparsity": by_sparsity,
        "translations": translations,
        "digits": classes(DCGAN),
        "clothes": classes("dcgan-fashion"),
        "sizes": sizes,
    },
    "baselines": {
        "baselines_dcgan_90": baselines(DCGAN, 0.9),
        "baselines_pix2pix_50": baselines(SECOND, 0.5),
    },
    "equations": {"equations": equations},
    "granularity": {"granularity": granularity},
    "reviewers": {"discriminators": discriminators, "what_of_d": what_of_d, "open_points": open_points, "drift": drift},
    "missing": {"missing": missing},
    "recipe": {"recipes": recipes},
}


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
