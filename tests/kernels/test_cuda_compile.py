"""ops.cu compiled for every architecture, which needs nvcc but no GPU: no spills, vector accesses, and it links.

nvcc's front end takes most of the time and ptxas a second for each architecture: a family shares one front end.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pie_engine.cpp_ext import build

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
WANTED = {"80", "86", "89", "90", "100"}
FAMILIES = {"75": "75", "80": "80", "86": "80", "89": "80", "90": "90", "100": "90", "120": "90"}  # by architecture


@pytest.fixture(scope="module")
def toolchain() -> build.Toolchain:
    try:
        return build.find_toolchain()
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def compile_cuda(toolchain: build.Toolchain, target: Path, *options: str, **architectures: object) -> str:
    arguments = build.cuda_options(toolchain.torch.folder / "include", **architectures)  # type: ignore[arg-type]
    return build.run([str(NVCC), f"-ccbin={toolchain.compiler[0]}", *arguments, *options, "-o", str(target)])


@pytest.fixture(scope="module")
def compiled(toolchain: build.Toolchain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The object file for every architecture, and what ptxas says of each kernel. Takes minutes."""
    names = build.known_architectures(str(NVCC))
    if not set(names) >= WANTED:
        pytest.skip(f"this nvcc compiles for sm_{', sm_'.join(names)}; sm_100 needs CUDA 12.8")
    target = tmp_path_factory.mktemp("cuda") / "cuda.o"
    shared: dict[str, list[str]] = {}
    for name in names:
        shared.setdefault(FAMILIES[name], []).append(f"sm_{name}")
    generate = [f"-gencode=arch=compute_{family},code=[{','.join(own)}]" for family, own in shared.items()]
    return target, compile_cuda(toolchain, target, "-c", "--threads=0", "-Xptxas=-v", *generate, architectures=())


def test_no_kernel_spills(compiled: tuple[Path, str]) -> None:
    _, log = compiled
    assert set(re.findall(r"for 'sm_(\d+)'", log)) >= WANTED
    kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    combinations = 3 * 3 * 2 * (build_kept() + 1)  # state, io, vector or scalar; K of the step, and the entry
    assert len(kernels) == combinations * len(build.known_architectures(str(NVCC)))
    assert set(kernels) == {("0", "0", "0")}


def build_kept() -> int:
    """How many K the kernels are compiled for: 0 to max_kept."""
    found = re.search(r"max_kept = (\d+)", (build.SOURCES / "arguments.h").read_text())
    assert found is not None
    return int(found[1]) + 1


def test_vector_path_moves_vectors(toolchain: build.Toolchain, tmp_path: Path) -> None:
    """16 bytes at once of float32, 8 of a 16-bit type; the scalar path has none of them."""
    target = tmp_path / "ops.ptx"
    compile_cuda(toolchain, target, "-ptx", architectures=(), ptx="90")
    kernels = dict(re.findall(r"\.entry (\w+)\((.*?\n)\}", target.read_text(), re.DOTALL))
    assert len(kernels) == 3 * 3 * 2 * (build_kept() + 1)
    for name, body in kernels.items():
        words = 4 if re.search(r"_kernelIf", name) else 2  # of 32 bits each, for 4 elements of the state's type
        if re.search(r"Li1EEEv", name):
            assert not re.search(r"(ld|st)\.global\.v", body), name
        else:
            assert re.search(rf"ld\.global\.v{words}\.", body), name
            assert re.search(rf"st\.global\.v{words}\.", body), name
            assert not re.search(r"(ld|st)\.global\.\w?16", body), name  # none is left to go one by one


def test_links_as_a_shared_library(toolchain: build.Toolchain, compiled: tuple[Path, str], tmp_path: Path) -> None:
    """With a CPU build of torch one function is missing, the one that asks for the current CUDA stream."""
    include, library = toolchain.torch.folder / "include", tmp_path / "_ops.so"
    for name, arguments in build.cpu_sources(include).items():
        build.run([*toolchain.compiler, "-c", *arguments, "-o", str(tmp_path / name)])
    if toolchain.torch.cuda is None:
        stub = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
        (tmp_path / "stub.cpp").write_text(stub)
        stub_options = ["-c", "-fPIC", str(tmp_path / "stub.cpp"), "-o", str(tmp_path / "stub.o")]
        build.run([*toolchain.compiler, *stub_options])
    objects = [str(compiled[0]), *map(str, tmp_path.glob("*.o"))]
    torch_libraries = [f"-L{toolchain.torch.folder / 'lib'}", "-ltorch_cpu"]
    command = [str(NVCC), f"-ccbin={toolchain.compiler[0]}", "-shared", *objects, *torch_libraries, "-o", str(library)]
    build.run(command)
    program = (
        "import sys, torch; torch.ops.load_library(sys.argv[1]); x = torch.ones(1, 1, 1, 1)\n"
        "torch.ops.pie_engine.noising(x, None, None, None, None, x, None, torch.tensor([2.0, 0, 0, 0]))\n"
        "assert x.item() == 2\n"
        "for name in ('denoise_step', 'noising'):\n"
        "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'pie_engine::{name}', 'CUDA')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
