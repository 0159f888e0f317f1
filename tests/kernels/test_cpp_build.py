"""Building and loading the C++ operations: what is said where something is missing, and that processors agree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pie_engine import cpp_ext
from pie_engine.cpp_ext import build
from pie_engine.errors import BackendError

ROOT = Path(__file__).parents[2]
NO_COMPILER = {**os.environ, "CXX": "/nonexistent/g++", "PATH": ""}


def available() -> build.Toolchain:
    try:
        return build.find_toolchain()
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def test_library_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpp_ext, "LIBRARY", tmp_path / "_ops.so")
    with pytest.raises(BackendError, match=r"not built \(_ops.so\); run python -m pie_engine.cpp_ext"):
        cpp_ext._load.__wrapped__()
    (tmp_path / "_ops.so").write_text("no library")
    with pytest.raises(BackendError, match=r"_ops.so: .*; build it for this torch with python -m pie_engine.cpp_ext"):
        cpp_ext._load.__wrapped__()


def test_torch_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(BackendError, match=r"torch 2.9.1 is too old .* pip install 'torch>=2.11'"):
        cpp_ext._load.__wrapped__()


def test_no_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pie_engine.cpp_ext"]
    done = subprocess.run(command, capture_output=True, text=True, env=NO_COMPILER, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no C++ compiler for the C++ operations (CXX=/nonexistent/g++): install g++ or set CXX" in done.stderr


def test_package_builds_without_a_compiler(tmp_path: Path) -> None:
    """A wheel for every platform, without the library, even if an older one lies in the sources."""
    for name in ("pie_engine", "export", "kernels", "cpp_ext", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "cpp_ext/_ops.so").write_text("stale")
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run(command, capture_output=True, text=True, env=NO_COMPILER, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "C++ operations left out: no C++ compiler" in done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert b"_ops.so" not in wheel.read_bytes()


def test_folder_not_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    available()
    real = os.access  # root may write anywhere, so a folder's mode would not do
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(build.Unavailable, match="is not writable; run this as its owner"):
        build.build(tmp_path)


def test_compiler_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    available()
    monkeypatch.setattr(build, "FLAGS", ("-std=c++17", "-fno-such-flag"))
    with pytest.raises(build.Unavailable, match=r"failed: .*no-such-flag.*the eager step runs instead"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__version__ = '2.9.1'\n", r"torch 2.9.1 is too old .* pip install 'torch>=2.11'"),
        ("__version__ = '2.12.0+cpu'\ncuda: Optional[str] = None\n", "has no C.. headers"),
    ],
)
def test_torch_that_does_not_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str) -> None:
    available()
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(text)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(build.Unavailable, match=message):
        build.find_toolchain()


PROGRAM = """
import sys, torch
from kernels_cases import Case, compare_entry, compare_step, step_arguments, step_cases
torch.set_num_threads(1)
torch.ops.load_library(sys.argv[1])
operations = torch.ops.pie_engine
for case in step_cases():
    compare_step(operations.denoise_step, case)
    compare_entry(operations.noising, case)
results = []
for state, io in (("fp32", "fp32"), ("fp16", "bf16"), ("bf16", "fp16")):
    arguments = step_arguments(Case((2, 4, 33, 31), 3, state=state, io=io))
    operations.denoise_step(**arguments)
    results += [arguments["x"], arguments["history"], arguments["sample"]]
torch.save(results, sys.argv[2])
"""


def test_processors_agree_on_every_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library as it is built for a processor that nothing is known of, against the one with AVX2."""
    available()
    results = []
    for machine in (build.platform.machine(), "unknown"):
        (tmp_path / machine).mkdir()
        monkeypatch.setattr(build.platform, "machine", lambda machine=machine: machine)
        library = build.build(tmp_path / machine).path
        command = [sys.executable, "-c", PROGRAM, str(library), str(tmp_path / f"{machine}.pt")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")}
        subprocess.run(command, env=environment, check=True)
        results.append(torch.load(tmp_path / f"{machine}.pt"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
