"""Types that a user's program gets from the package, checked by mypy in strict mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsegan as sg
from sparsegan import kernels

PACKAGE = Path(sg.__file__).parent


def installed(folder: Path) -> Path:
    """Links the package as a wheel lays it out, with ``kernels`` inside. mypy follows no editable installation."""
    (folder / "sparsegan").mkdir()
    for entry in (*PACKAGE.iterdir(), Path(kernels.__file__).parent):
        target = folder / "sparsegan" / entry.name
        if not target.exists():
            target.symlink_to(entry)
    return folder


def test_a_users_program_in_strict_mode(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    pytest.importorskip("mypy")
    assert (PACKAGE / "py.typed").is_file()
    assert pytestconfig.cache is not None
    options = ["--strict", "--follow-imports=silent", "--config-file="]
    cache = f"--cache-dir={pytestconfig.cache.mkdir('typed_program')}"
    command = [sys.executable, "-m", "mypy", *options, cache, Path(__file__).with_name("typed_program.py")]
    environment = os.environ | {"MYPYPATH": str(installed(tmp_path))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
