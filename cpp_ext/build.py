"""Compiles the operations into one shared library, `_ops.so`. setup.py runs this file by itself: it imports no package.

Neither torch nor Python is linked by version: the library calls torch through its stable C interface alone.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = "_ops.so"
OLDEST_TORCH = (2, 11)
TARGET = "0x020b000000000000"  # the same as torch's headers write it
REMEDY = "python -m pie_engine.cpp_ext builds them later"

# Without fused multiply-add every processor computes the same bits. Trapping operations, which nothing here asks for,
# would keep the compiler from computing both sides of a condition, and so from vectorising the conversions.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-trapping-math")
AVX2 = ("-mavx2", "-mf16c")  # every processor with the one has the other


class Unavailable(Exception):
    """The operations cannot be built here: one line that says why, and the remedy."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, as far as a compiler is concerned. Read from its files: importing it takes seconds."""

    folder: Path
    version: str


@dataclass(frozen=True)
class Toolchain:
    torch: Torch
    compiler: tuple[str, ...]


@dataclass(frozen=True)
class Built:
    path: Path
    toolchain: Toolchain

    def __str__(self) -> str:
        return f"{self.path} (torch {self.toolchain.torch.version})"


def find_toolchain() -> Toolchain:
    """What would build the library here.

    Raises:
        Unavailable: something is missing.
    """
    if sys.platform != "linux":
        raise Unavailable(
            f"the C++ operations are built on Linux only, not on {sys.platform}; the eager step runs here"
        )
    compiler = _find_compiler()
    return Toolchain(_find_torch(), compiler)


def build(folder: Path) -> Built:
    """Compile the library into `folder`, where it replaces an older one whole or not at all.

    Raises:
        Unavailable: something is missing, or `folder` is not writable, or the compiler fails.
    """
    toolchain = find_toolchain()
    if not os.access(folder, os.W_OK):
        raise Unavailable(
            f"{folder} is not writable; run this as its owner, or install pie-engine into a venv of yours"
        )
    folder = folder.resolve()  # the compiler runs in another one
    target, temporary = folder / LIBRARY, folder / f".{LIBRARY}.{os.getpid()}"
    try:
        with tempfile.TemporaryDirectory() as objects:
            _compile(toolchain, Path(objects), temporary)
        temporary.replace(target)  # in one step: a process that has the old one loaded keeps it
    finally:
        temporary.unlink(missing_ok=True)
    return Built(target, toolchain)


def sources(include: Path) -> dict[str, list[str]]:
    """Object name -> the compiler's arguments for it."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    variants: dict[str, tuple[str, ...]] = {"baseline": ()} | ({"avx2": AVX2} if x86 else {})
    commands = {
        f"{name}.o": ["cpu_kernels.cpp", f"-DPIE_KERNELS=cpu_{name}", *options] for name, options in variants.items()
    }
    torch = [f"-DTORCH_TARGET_VERSION={TARGET}", "-isystem", str(include)]
    commands["ops.o"] = ["ops.cpp", *torch, *(["-DPIE_X86"] if x86 else [])]
    return {name: [*FLAGS, *command] for name, command in commands.items()}


def _run(command: list[str]) -> None:
    """Run a compiler; if it fails, its first complaint is an Unavailable."""
    try:
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{command[0]} does not start ({error.strerror}); the eager step runs instead") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        lines = [
            line for line in lines if "error" in line and "collect2" not in line
        ] or lines  # the linker says no "error"
        complaint = lines[0] if lines else f"exit code {done.returncode}"
        raise Unavailable(f"{Path(command[0]).name} failed: {complaint.strip()}; the eager step runs instead")


def _compile(toolchain: Toolchain, objects: Path, target: Path) -> None:
    folder, compiler = toolchain.torch.folder, toolchain.compiler
    commands = [
        [*compiler, "-c", *arguments, "-o", str(objects / name)]
        for name, arguments in sources(folder / "include").items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    libraries = [f"-L{folder / 'lib'}", "-ltorch_cpu"]
    _run([*compiler, "-shared", *map(str, sorted(objects.glob("*.o"))), *libraries, "-o", str(target)])


def _find_compiler() -> tuple[str, ...]:
    given = os.environ.get("CXX")
    for candidate in [given] if given else ["g++", "c++", "clang++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return tuple(command)
    looked = f"CXX={given}" if given else "g++, c++, clang++"
    raise Unavailable(f"no C++ compiler for the C++ operations ({looked}): install g++ or set CXX; {REMEDY}")


def _find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    roots = [Path(spec.origin).parents[1]] if spec and spec.origin else []
    # pip's isolated build hides what is installed, but not where.
    roots += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    roots += [Path(site.getusersitepackages())] if site.ENABLE_USER_SITE else []
    for folder in (root / "torch" for root in roots):
        if (folder / "version.py").is_file():
            break
    else:
        raise Unavailable(f"torch is not installed, and the C++ operations need its headers; {REMEDY}")
    version = re.search(r"^__version__\b.*= '([^']+)'", (folder / "version.py").read_text(), re.MULTILINE)
    torch = Torch(folder, version[1] if version else "unknown")
    numbers = re.match(r"(\d+)\.(\d+)", torch.version)
    needed = ".".join(map(str, OLDEST_TORCH))
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH:
        raise Unavailable(
            f"torch {torch.version} is too old for the C++ operations: pip install 'torch>={needed}'; {REMEDY}"
        )
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        raise Unavailable(f"torch in {folder} has no C++ headers; install torch with pip; {REMEDY}")
    return torch
