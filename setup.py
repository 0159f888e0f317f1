"""Builds the C++ operations with the package where a compiler and torch are at hand; elsewhere it installs without.

Everything else about the package is in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

log = logging.getLogger(__name__)

# By its path: neither the package nor the folder that it lies in can be imported while it is being built.
_spec = importlib.util.spec_from_file_location("pie_engine_cpp_ext_build", Path(__file__).parent / "cpp_ext/build.py")
assert _spec is not None and _spec.loader is not None
cpp_ext = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = cpp_ext
_spec.loader.exec_module(cpp_ext)


class BuildOperations(build_ext):
    """Runs the package's own build; a failure leaves the operations out, and the installation goes on."""

    def get_ext_filename(self, fullname: str) -> str:
        # torch loads it, not Python's import: no tag of a Python version.
        return str(Path(*fullname.split(".")[:-1], cpp_ext.LIBRARY))

    def build_extension(self, ext: Extension) -> None:
        folder = Path(self.get_ext_fullpath(ext.name)).parent
        folder.mkdir(parents=True, exist_ok=True)
        try:
            log.warning("built %s", cpp_ext.build(folder))
        except cpp_ext.Unavailable as reason:
            log.warning("C++ operations left out: %s", reason)


class Wheel(bdist_wheel):
    """The library depends on the platform, and on no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


def extensions() -> list[Extension]:
    try:
        cpp_ext.find_toolchain()
    except cpp_ext.Unavailable as reason:
        log.warning("C++ operations left out: %s", reason)
        return []  # a wheel without them fits every platform
    sources = ["cpp_ext/ops.cpp", "cpp_ext/cpu_kernels.cpp"]
    return [Extension("pie_engine.cpp_ext._ops", sources, optional=True)]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOperations, "bdist_wheel": Wheel})
