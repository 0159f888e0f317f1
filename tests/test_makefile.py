"""`make demo` and its kind, without installing: what they say first, and what they ask pip for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HINT = "No NVIDIA driver is found."
if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose programs write down how they are called."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "pie-engine"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/calls"\n')
        program.chmod(0o755)
    return folder


def make(venv: Path, *words: str, driver: bool = False) -> tuple[str, list[str]]:
    """What it printed, and how the environment's programs were called."""
    tools = venv.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "ls", "touch", "test", "make", "rm"):
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    if driver:
        (tools / "nvidia-smi").symlink_to("/bin/true")
    hidden = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH", "TORCH_INDEX", "PYTHONS", "BUILDS", "QUICK")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"PATH": str(tools)}
    command = ["make", "--no-print-directory", *words, f"VENV={venv}", f"PYTHON={venv}/bin/python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (venv / "calls").read_text().splitlines() if (venv / "calls").exists() else []
    return done.stdout, [call for call in calls if not call.endswith("-m pie_engine.cpp_ext")]


def test_the_demo_says_what_it_installs_and_how_large(venv: Path) -> None:
    said, calls = make(venv, "demo", "OUTPUT=out")
    assert f"Installs into {venv}: torch, diffusers, transformers, ONNX Runtime" in said
    assert "1.6 GB with a CPU build of torch, 5.6 GB with a CUDA build" in said
    pip = "python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt"
    assert calls == [
        f"{pip} setuptools>=77", f"{pip} torch", f"{pip} --no-build-isolation --editable .[cpu]",
        "pie-engine demo --output out",
    ]  # fmt: skip
    said, again = make(venv, "demo", "OUTPUT=out")
    assert "Installs" not in said and again[len(calls) :] == ["pie-engine demo --output out"]


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver")
def test_without_a_driver_it_names_the_builds_that_need_none(venv: Path) -> None:
    said, _ = make(venv, "check")
    assert HINT in said and "save 4 GB:\n  make check TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in said


@pytest.mark.parametrize("words", [("TORCH_INDEX=https://example.org/cpu",), ()])
def test_nothing_is_advised_to_those_who_need_none(venv: Path, words: tuple[str, ...]) -> None:
    said, calls = make(venv, "demo", *words, driver=not words)
    assert "Installs into" in said and HINT not in said
    # From there torch alone: what it needs comes with the rest.
    own = "--index-url https://example.org/cpu --no-deps torch" if words else "constraints.txt torch"
    assert calls[1].endswith(own) and not any("example.org" in call for call in [*calls[:1], *calls[2:]])


def test_nothing_is_said_where_torch_is_installed(venv: Path) -> None:
    (venv / "lib" / "python3.13" / "site-packages" / "torch").mkdir(parents=True)
    said, calls = make(venv, "demo")
    assert "Installs" not in said and HINT not in said and len(calls) == 4


def test_tests_say_their_own_size_and_serve_the_demo(venv: Path) -> None:
    said, calls = make(venv, f"{venv}/.dev", "TORCH=torch===9.0+cpu")
    assert "3.2 GB with a CPU build of torch" in said and "TensorRT-RTX" in said
    assert calls[1].endswith("constraints.txt torch===9.0+cpu")
    assert calls[2].endswith("--editable .[cpu,test,test-bindings,lint]")
    assert make(venv, "check")[1][len(calls) :] == ["python tests/support/check.py"]


def test_the_matrix_is_narrowed_by_variables(venv: Path) -> None:
    said, calls = make(venv, "test-matrix", "PYTHONS=3.12,3.13", "BUILDS=cpu", "QUICK=1", "TORCH_INDEX=https://e.org")
    narrowed = "--pythons 3.12,3.13 --builds cpu --quick --torch-index https://e.org"
    assert calls == [f"python tests/support/matrix.py {narrowed}"] and "Installs" not in said
    assert make(venv, "test-matrix")[1][1:] == ["python tests/support/matrix.py"]


def test_the_smoke_set_is_there() -> None:
    text = (ROOT / "Makefile").read_text()
    names = text.partition("SMOKE := ")[2].partition("\n\n")[0].replace("\\\n", " ").split()
    assert len(names) >= 10 and [name for name in names if not (ROOT / name).is_file()] == []
