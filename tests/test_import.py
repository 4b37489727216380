"""``import sparsegan`` loads only the ops. Other modules are loaded when their names are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.flop_counter import flop_registry

import sparsegan as sg

#: Modules that a program which only runs or prunes layers must not load.
UNWANTED = (
    "matplotlib",
    "PIL",
    "rich",
    "sparsegan.cli",
    "sparsegan.compress",
    "sparsegan.metrics",
    "sparsegan.training",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed",
    "torch.onnx",
    "torchmetrics",
    "triton",
)


def loaded_by(statements: str) -> list[str]:
    """The modules that ``statements`` load in a new process which has imported torch."""
    program = f"import sys, torch; before = set(sys.modules); {statements}; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.split()


def test_import_loads_the_ops_only() -> None:
    loaded = loaded_by("import sparsegan")
    ours = [name for name in loaded if name.startswith("sparsegan")]
    assert "sparsegan.ops" in ours
    others = {name for name in ours if not name.startswith("sparsegan.ops")}
    assert others == {"sparsegan", "sparsegan._moved", "sparsegan.geometry", "sparsegan.renamed"}
    assert not [name for name in loaded if name.startswith(UNWANTED)]


def test_layers_pruning_files_and_engine_load_nothing_of_the_training() -> None:
    used = "SparseConv2d sparsify shrink load save optimize_for_inference export_onnx profile count_macs gans.dcgan"
    loaded = loaded_by(f"import sparsegan as sg; {'; '.join(f'sg.{name}' for name in used.split())}")
    assert "sparsegan.engine" in loaded
    assert not [name for name in loaded if name.startswith(UNWANTED)]


def test_all_public_names_are_there_and_listed() -> None:
    stub = ast.parse(Path(sg.__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    names = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {"Compressor", "SparseConv2d", "load", "gans"} <= names
    assert names == set(sg.__all__) <= set(dir(sg))
    program = "from sparsegan import *; print(Compressor.__name__, load.__name__, gans.dcgan.__name__)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["Compressor", "load", "sparsegan.gans.dcgan"]
    assert sg.clock.__name__ == "sparsegan.clock"
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = sg.no_such_name


def test_the_flop_counter_knows_the_vector_ops_that_were_loaded_before_it() -> None:
    pytest.importorskip("triton")
    program = (
        "import sparsegan.ops.vector_ops; from torch.utils.flop_counter import flop_registry as known; "
        "print(sum('sparsegan' in str(op) for op in known))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == 4


@pytest.mark.parametrize("first", ["sparsegan", "torch.utils.flop_counter"])
def test_the_flop_counter_knows_the_ops_in_either_import_order(first: str) -> None:
    program = (
        f"import torch, {first}; import sparsegan; from torch.utils.flop_counter import flop_registry as known; "
        "print(sum('sparsegan' in str(op) for op in known))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == 2 <= sum("sparsegan" in str(op) for op in flop_registry)
