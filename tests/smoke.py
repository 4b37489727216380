"""Checks that an installed sparsegan works away from its sources: python -I tests/smoke.py [SOURCE_TREE]

With SOURCE_TREE it also checks that the installation has every Python file and stub of that tree, and lies outside the
tree.
"""

import importlib
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import nn

import sparsegan as sg


def check_files(source: Path, installed: Path) -> None:
    assert installed.resolve() != (source / "sparsegan").resolve(), (
        f"{installed} is the source tree, not an installation"
    )
    for folder, target in ((source / "sparsegan", installed), (source / "kernels", installed / "kernels")):
        files = [file for pattern in ("*.py", "*.pyi", "py.typed") for file in folder.rglob(pattern)]
        missing = [str(file) for file in files if not (target / file.relative_to(folder)).exists()]
        assert not missing, f"not in the wheel: {', '.join(missing)}"


def check_layers() -> None:
    torch.manual_seed(0)
    for conv, x in (
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 9, 8)),
        (nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1), torch.randn(2, 3, 5, 4)),
    ):
        layer = sg.sparsify(nn.Sequential(conv), sparsity=0.8)[0]
        layer.backend = "sparse"
        dense = layer.to_dense()
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [module(given) for module, given in zip((layer, dense), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
        torch.testing.assert_close(layer.values.grad, dense.weight.grad.flatten()[layer.support.long()])


def check_file() -> None:
    model = sg.sparsify(nn.Sequential(nn.Conv2d(8, 8, 3)), sparsity=0.9)
    with tempfile.TemporaryDirectory() as folder:
        sg.save(model, Path(folder) / "g.safetensors")
        loaded = sg.load(nn.Sequential(nn.Conv2d(8, 8, 3)), Path(folder) / "g.safetensors")
    assert torch.equal(loaded[0].values, model[0].values)


def main() -> None:
    installed = Path(sg.__file__).parent
    if len(sys.argv) > 1:
        check_files(Path(sys.argv[1]), installed)
    importlib.import_module("sparsegan.kernels")
    check_layers()
    check_file()
    subprocess.run([Path(sysconfig.get_path("scripts")) / "sparsegan", "info"], check=True)
    print(f"sparsegan {sg.__version__} in {installed} works")


if __name__ == "__main__":
    main()
