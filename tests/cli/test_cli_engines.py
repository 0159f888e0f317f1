"""`pie-engine build --backend tensorrt-rtx`, and what is refused before a checkpoint is read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pie_engine.cli.main import _parser
from pie_engine.config import COMPONENTS
from pie_engine.model.bundle import open_bundle

# The session's graphs are of this kind, so that nothing is exported.
EXPORTED = ("--precision", "fp32", "--opset", "20")
RTX = ("--backend", "tensorrt-rtx")


@pytest.mark.trt
def test_a_build_with_engines(pie: Any, simulate: Any, checkpoint: Path, bundle: Any, tmp_path: Path) -> None:
    words = ["build", "--checkpoint", checkpoint, *EXPORTED, *RTX, "--compute-capability", "8.9,8.6", "--batch", "1"]
    words += ["--resolution", "64", "--optimisation-level", "0", "--output", tmp_path / "model.pie"]
    outcome = pie(*words)
    assert outcome.code == 0, outcome.err
    progress = outcome.err.splitlines()
    for name in COMPONENTS:
        assert any(line.startswith(f"  {name}: plan, ") and line.endswith(" s") for line in progress)
    assert any("defect: " in line and "build with --precision fp16" in line for line in progress)  # fp32 has no kernels
    built = open_bundle(tmp_path / "model.pie")
    assert {entry["component"] for entry in built.engines("tensorrt-rtx")} == set(COMPONENTS)
    assert all(entry["capabilities"] == ["8.6", "8.9"] for entry in built.engines())
    # The command that refusals name builds the same again.
    again = _parser().parse_args(shlex.split(built.build_command())[1:])
    assert (again.compute_capability, again.resolution, again.optimisation_level) == ("8.9,8.6", "64", 0)

    engine = ("--engine", tmp_path / "model.pie", "--output", tmp_path / "result")
    refused = simulate(*RTX, *engine)
    assert refused.code == 2
    assert "do not run here: this machine shows no GPU" in refused.err
    assert "rebuild it: pie-engine build" in refused.err and "or pass --backend onnxruntime" in refused.err
    run = simulate("--backend", "auto", *engine)
    assert run.code == 0, run.err
    assert "this machine shows no GPU" in run.err and "going on without them" in run.err
    found = json.loads((tmp_path / "result/provenance.json").read_text())["backend"]
    assert found["name"] in ("openvino", "onnxruntime") and "this machine shows no GPU" in found["chosen"]


@pytest.mark.trt
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "this machine shows no GPU to compile for; pass --compute-capability with some of 7.5,8.0,8.6"),
        (("--compute-capability", "9.0"), "not 9.0; pass one of them, or --backend tensorrt on that GPU"),
        (("--compute-capability", "sm86"), "compute-capability 'sm86' is not a number such as 8.6"),
        (("--compute-capability", "8.6", "--weights", "refittable"), "build there, or pass --weights fixed"),
        (
            ("--compute-capability", "8.6,8.9", "--weights", "refittable"),
            "weights 'refittable' are compiled for one compute capability (2 given)",
        ),
        (("--compute-capability", "8.6", "--batch", "0"), "batch 0 is outside [1, 256]; pass --batch 1"),
        (("--compute-capability", "8.6", "--batch", "one"), "batch 'one' is not a list of whole numbers; pass --batch"),
        (("--compute-capability", "8.6", "--resolution", "4"), "resolution 4 is outside [8, 2048]"),
        (("--compute-capability", "8.6", "--resolution", "100"), "resolution 100 does not fit this U-Net"),
        (("--compute-capability", "8.6", "--optimisation-level", "9"), "optimisation-level 9 is outside [0, 5]"),
        (("--compute-capability", "8.6", "--workspace", "0"), "workspace 0.0 is outside (0, 1024]"),
    ],
)
def test_refusals(refuse: Any, checkpoint: Path, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    output = tmp_path / "model.pie"
    assert line in refuse("build", "--checkpoint", checkpoint, *RTX, *words, "--output", output)


@pytest.mark.trt
def test_a_machine_that_cannot_compile_is_told_before_anything_is_read(pie: Any) -> None:
    outcome = pie("build", "--checkpoint", "nowhere", *RTX)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "this machine shows no GPU to compile for" in outcome.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--resolution", "512"), "--resolution is for compiled engines, and ONNX Runtime takes every size"),
        (("--weights", "fixed"), "--weights is for compiled engines"),
        (("--compute-capability", "8.6"), "--compute-capability is for compiled engines"),
        (("--backend", "tensorrt", "--compute-capability", "8.6"), "tensorrt compiles for the GPU at hand"),
    ],
)
def test_options_that_contradict(refuse: Any, checkpoint: Path, words: tuple[str, ...], line: str) -> None:
    assert line in refuse("build", "--checkpoint", checkpoint, *words)
