"""The version is set in pyproject.toml. CITATION.cff and CHANGELOG.md repeat it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def found(pattern: str, file: str) -> list[str]:
    return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_citation_and_changelog_know_the_version() -> None:
    [version] = found(r'^version = "(\d+\.\d+\.\d+)"', "pyproject.toml")
    assert found(r"^version: (.+)$", "CITATION.cff") == [version]
    headings = found(r"^## (.+)$", "CHANGELOG.md")
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d|not released yet)", one) for one in headings[1:]]
    assert all(released), f"a heading is not '[version] - date': {headings[1:]}"
    versions = [one[1] for one in released if one]
    assert versions[0] == version
    assert versions == sorted(set(versions), key=lambda one: [int(n) for n in one.split(".")], reverse=True)
