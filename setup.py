"""Drives CMake, the one description of the build, and maps kernels/ to sparsegan.kernels."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SANITIZE = os.environ.get("SPARSEGAN_SANITIZE", "0") == "1"
BUILD = ROOT / "build" / f"{'sanitize-' if SANITIZE else ''}{sys.implementation.cache_tag}"


def configure(cuda: str) -> None:
    """Let CMake look at the machine. `cuda`: SPARSEGAN_CUDA, or "failed"."""
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DSPARSEGAN_SANITIZE={'ON' if SANITIZE else 'OFF'}",
        f"-DSPARSEGAN_CUDA={cuda}",
    ]
    # CMake keeps the compilers and the place of the first time; where these are others now, it begins anew.
    wanted = json.dumps([str(ROOT), os.environ.get("CXX"), os.environ.get("CUDACXX")])
    made_with = BUILD / "made-with.json"
    if not made_with.exists() or made_with.read_text() != wanted:
        options.append("--fresh")
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], check=True)
    made_with.write_text(wanted)


def built(target: str, check: bool) -> bool:
    """Builds a target. Returns whether that worked, or, with `check`, raises where it did not."""
    return subprocess.run(["cmake", "--build", BUILD, "--target", target], check=check).returncode == 0


class CMakeBuild(build_ext):
    """Builds sparsegan/_cpu.so with CMake and ninja, in build/ so that a second build is incremental.

    Where there is an nvcc that can, the CUDA kernels as well, sparsegan/_cuda.so; ``SPARSEGAN_CUDA`` 0 or 1 decides it
    otherwise.
    """

    def run(self) -> None:
        cuda = os.environ.get("SPARSEGAN_CUDA", "")
        configure(cuda)
        if not built("cuda", check=cuda == "1"):
            print(
                "sparsegan: nvcc did not compile the CUDA kernels; the CPU kernels are built without them",
                file=sys.stderr,
            )
            configure("failed")
        built("_cpu", check=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        library, target = BUILD / self.get_ext_filename(ext.name).split("/")[-1], Path(self.get_ext_fullpath(ext.name))
        if library.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(library), str(target))
        else:
            target.unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        """For an editable installation. The old files are unlinked first: a running process may have them mapped."""
        for old in (ROOT / "sparsegan").glob("*.so"):
            old.unlink()
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        """No version of Python in the name: ctypes loads these files, and Python's headers are not used."""
        return fullname.replace(".", "/") + ".so"


class Build(build):
    def run(self) -> None:
        """Deletes what an earlier build left: files that are gone from the sources would be installed."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One wheel a platform, for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("sparsegan._cpu", []), Extension("sparsegan._cuda", [], optional=True)],
    cmdclass={"build": Build, "build_ext": CMakeBuild, "bdist_wheel": Wheel},
    package_dir={"sparsegan.kernels": "kernels"},
)
