"""Builds the package with CMake, the only description of the build, and maps kernels/ to sparsegan.kernels."""

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
    """Configures the build with CMake. `cuda` is the value of SPARSEGAN_CUDA, or "failed" after nvcc failed."""
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DSPARSEGAN_SANITIZE={'ON' if SANITIZE else 'OFF'}",
        f"-DSPARSEGAN_CUDA={cuda}",
    ]
    # CMake keeps the compilers and the folder of the first run. Where any of them has changed, CMake starts afresh.
    wanted = json.dumps([str(ROOT), os.environ.get("CXX"), os.environ.get("CUDACXX")])
    made_with = BUILD / "made-with.json"
    if not made_with.exists() or made_with.read_text() != wanted:
        options.append("--fresh")
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options], check=True)
    made_with.write_text(wanted)


def built(target: str, check: bool) -> bool:
    """Builds a target and returns whether the build worked. With `check`, raises CalledProcessError where it failed."""
    return subprocess.run(["cmake", "--build", BUILD, "--target", target], check=check).returncode == 0


class CMakeBuild(build_ext):
    """Builds sparsegan/_cpu.so with CMake and ninja. The objects stay in build/, so that a second build is incremental.

    Where an nvcc can build the CUDA kernels, sparsegan/_cuda.so is built too. ``SPARSEGAN_CUDA=0`` forbids this, and
    with ``SPARSEGAN_CUDA=1`` a failure is an error.
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
        """Copies the libraries for an editable install. Unlinks old files first, as a process may have them mapped."""
        for old in (ROOT / "sparsegan").glob("*.so"):
            old.unlink()
        super().copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        """Returns a file name without a version of Python, because ctypes loads the file without Python's headers."""
        return fullname.replace(".", "/") + ".so"


class Build(build):
    def run(self) -> None:
        """Deletes the output of an earlier build first. Files that the sources no longer have would be installed."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class Wheel(bdist_wheel):
    """One wheel per platform, for every version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("sparsegan._cpu", []), Extension("sparsegan._cuda", [], optional=True)],
    cmdclass={"build": Build, "build_ext": CMakeBuild, "bdist_wheel": Wheel},
    package_dir={"sparsegan.kernels": "kernels"},
)
