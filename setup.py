"""Drives CMake, the one description of the build, and maps kernels/ to sparsegan.kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds sparsegan._native with CMake and ninja, in build/ so that a second build is incremental.

    Where nvcc is found, the CUDA kernels as well, sparsegan/_cuda.so; ``SPARSEGAN_CUDA`` 0 or 1 decides it otherwise.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        sanitize = os.environ.get("SPARSEGAN_SANITIZE", "0") == "1"
        build = ROOT / "build" / f"{'sanitize-' if sanitize else ''}{sys.implementation.cache_tag}"
        configure = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSPARSEGAN_SANITIZE={'ON' if sanitize else 'OFF'}",
            f"-DSPARSEGAN_CUDA={os.environ.get('SPARSEGAN_CUDA', '')}",
        ]
        cuda = build / "_cuda.so"
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *configure], check=True)
        subprocess.run(["cmake", "--build", build, "--target", "modules"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / cuda.name).unlink(missing_ok=True)
        for built, to in [(build / target.name, target), (cuda, target.parent / cuda.name)]:
            if built.exists():
                # Not in place: a running process may have the old one mapped.
                temporary = to.with_suffix(".new")
                shutil.copy2(built, temporary)
                os.replace(temporary, to)


setup(
    ext_modules=[Extension("sparsegan._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    package_dir={"sparsegan.kernels": "kernels"},
)
