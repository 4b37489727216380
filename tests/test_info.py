"""Facts about the build, and the environment variable that forces an ISA."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sparsegan.ops import native
from sparsegan.profiling.info import info


def test_facts() -> None:
    facts = info()
    assert facts["cpu isa in use"] in facts["cpu isa supported"].split(", ")
    assert set(native.supported_isas()) <= set(native.built_isas())
    assert "scalar" in native.supported_isas()


def test_one_library_serves_every_python() -> None:
    """The native library names no function of Python, as the tag of the wheel promises."""
    assert not [
        name for name in (b"PyInit_", b"PyObject_", b"PyErr_", b"_Py_Dealloc") if name in native.LIBRARY.read_bytes()
    ]


@pytest.mark.parametrize("isa", [*native.supported_isas(), "mmx"])
def test_environment_variable(isa: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import torch; from sparsegan.ops import native; print(native.isa())"],
        env={**os.environ, "SPARSEGAN_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    if isa == "mmx":
        assert "SPARSEGAN_CPU_ISA is 'mmx'" in result.stderr
    else:
        assert result.stdout.strip() == isa
