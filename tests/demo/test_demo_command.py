"""`pie-engine demo`, and the shipped checkpoint on ONNX Runtime against the eager reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine import Item, PieEngine, cpp_ext
from pie_engine.checkpoint import load_checkpoint
from pie_engine.cli.main import main
from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.demo.data import healthy_cohort
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.reference import progress_engine


@pytest.fixture(scope="module")
def onnx_engine() -> PieEngine:
    return PieEngine.load(checkpoint=CHECKPOINT, backend="onnxruntime", threads=1)


# With inversion a step is two evaluations one after the other, so that a full schedule of them would take a minute.
@pytest.mark.parametrize(("inversion", "num_inference_steps"), [("noise", 50), ("ddim", 10)])
def test_ten_rounds_on_onnxruntime_are_the_reference(
    onnx_engine: PieEngine, inversion: str, num_inference_steps: int
) -> None:
    """The limit that the project promises: final latents within 1e-4 in fp32."""
    defaults = load_defaults()
    config = replace(defaults.run_config(), inversion=inversion, num_inference_steps=num_inference_steps)
    patient = healthy_cohort("validation", 1)[0]
    image, mask = to_image(render(patient)), to_image(roi_mask(patient))
    result = onnx_engine.run(Item(image, defaults.prompt, mask), config)
    latent_mask = prepare_mask(mask, image.size, 128, official=False).latent
    rounds = progress_engine(load_checkpoint(CHECKPOINT), fit(image, 128), latent_mask, defaults.prompt, config)
    *_, (expected, _) = rounds
    assert np.abs(result.latents[-1] - expected[0].numpy()).max() < 1e-4


def test_demo_prints_one_object_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--output", str(tmp_path / "demo"), "--steps", "3", "--backend", "torch", "--patient", "3"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert len(report["confidence"]) == 4
    assert all(0 <= value <= 1 for value in report["confidence"])
    assert report["confidence"][-1] > report["confidence"][0]
    assert json.loads(Path(report["provenance"]).read_text())["confidence"] == {
        "that the heart is enlarged": report["confidence"]
    }
    assert "round 3/3" in printed.err
    for name in ("sheet", "gif", "mask", "differences", "report", "provenance"):
        assert Path(report[name]).is_file()
    with Image.open(report["sheet"]) as sheet:
        assert sheet.text["Synthetic"] == "true"
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "confidence of an enlarged heart" in printed.out
    assert f"look at: {tmp_path / 'demo' / 'report.html'}" in printed.out
    assert "run --checkpoint" in printed.out and "--pace even" in printed.out
    assert main([*arguments, "--pace", "constant", "--json"]) == 0
    constant = json.loads(capsys.readouterr().out)
    first, last = report["change"]["frame_inside"], constant["change"]["frame_inside"]
    assert first[0] < 0.6 * last[0]  # the paper's first round goes most of the way


def test_what_was_left_out_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where pip found no compiler, and said so to nobody."""
    monkeypatch.setattr(cpp_ext, "LIBRARY", tmp_path / "_ops.so")
    monkeypatch.setattr(cpp_ext, "_load", cpp_ext._load.__wrapped__)  # not what another test has loaded
    arguments = ["demo", "--output", str(tmp_path / "demo"), "--steps", "1", "--backend", "torch"]
    reason = "cpp: the C++ operations are not built (_ops.so); run python -m pie_engine.cpp_ext"
    line = f"going on without a faster step ({reason})"
    assert main(arguments) == 0
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--patient", "1000", "patient 1000 is outside [0, 999]"), ("--steps", "0", "steps 0 is outside [1, 1000]")],
)
def test_demo_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo"), option, value]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"pie-engine: error: {message}")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
