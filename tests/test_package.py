"""The package as it is installed: what it holds, what imports what, and how cheap it is to start."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_help_needs_no_heavy_import() -> None:
    """`pie-engine --help` answers in under a second because torch and diffusers are not imported."""
    program = (
        "import sys\n"
        "from pie_engine.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnx', 'onnxruntime', 'openvino', 'scipy', 'numpy', 'PIL'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Research use only" in done.stdout


def test_layers_follow_the_data_flow(tmp_path: Path) -> None:
    """The contract of pyproject.toml, on the package laid out as it installs."""
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed; pip install 'pie-engine[lint]'")
    shutil.copytree(ROOT / "pie_engine", tmp_path / "pie_engine", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("export", "kernels", "cpp_ext", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / "pie_engine" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def has_toolchain() -> bool:
    from pie_engine.cpp_ext.build import Unavailable, find_toolchain

    try:
        return bool(find_toolchain())
    except Unavailable:
        return False


def test_wheel_holds_everything_and_no_foreign_top_level(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: building leaves a build/ folder behind
    wanted = ("pie_engine", "export", "kernels", "cpp_ext", "benchmarks")
    wanted += ("setup.py", "pyproject.toml", "README.md", "LICENSE")
    for name in wanted:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pie_engine"}  # never a top-level `kernels`
    assert not any(name.startswith("pie_engine/demo/training/") for name in names)
    for package in (
        "export/graph.py",
        "export/graphs/index.json",
        "export/graphs/sd-v1-unet-fp32-opset20.onnx.xz",
        "kernels/denoise_step.py",
        "cli/main.py",
        "checkpoint/load.py",
        "py.typed",
        "benchmarks/harness/worker.py",
    ):
        assert f"pie_engine/{package}" in names
    for source in ("build.py", "ops.cpp", "checks.h"):
        assert f"pie_engine/cpp_ext/{source}" in names
    assert ("pie_engine/cpp_ext/_ops.so" in names) == has_toolchain()
    assert wheel.name.endswith("-py3-none-any.whl") != has_toolchain()
    for data in ("page.py", "template.html", "style.css", "script.js"):
        assert f"pie_engine/outputs/report/{data}" in names
    weights = ("checkpoint/unet/diffusion_pytorch_model.safetensors", "clip/model.safetensors")
    for data in (*weights, "severity.onnx", "demo.json"):
        assert f"pie_engine/demo/{data}" in names
