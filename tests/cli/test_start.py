"""A bundle runs without the libraries that its checkpoint needed: importing them takes longer than a small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pie_engine.model.bundle import Bundle

RUN = """
import sys
from pie_engine.cli.main import main
code = main(sys.argv[1:])
print(code, sorted({"diffusers", "transformers", "torch._dynamo", "onnx", "sympy"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_needs_neither_diffusers_nor_transformers(
    bundle: Bundle, image: Path, mask: Path, tmp_path: Path, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    words = [
        "run", "--engine", bundle.path, "--image", image, "--mask", mask, "--prompt", "heart", "--steps", 1,
        "--resolution", 32, "--backend", backend, "--quiet", "--output", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
