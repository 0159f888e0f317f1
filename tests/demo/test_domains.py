"""Fundus photographs and skin lesions: phantoms as files, the second checkpoint, its classifiers and their training."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.cli.main import main
from pie_engine.demo import DOMAINS
from pie_engine.demo.data import split_seed
from pie_engine.demo.domain import load_domain
from pie_engine.errors import ConfigError

NEW = ("fundus", "skin")


@pytest.mark.parametrize("name", NEW)
def test_files_hold_phantoms_regions_and_structures(tmp_path: Path, name: str) -> None:
    folder, domain = tmp_path / "cohort", load_domain(name)
    assert main(["demo", "--phantoms", "2", "--domain", name, "--diseased", "--output", str(folder), "--quiet"]) == 0
    with (folder / "patients.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    facts = json.loads((folder / "phantoms.json").read_text())
    assert facts["domain"] == name and name in facts["statement"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(facts["files"]) == files and len(files) == 2 + 3 * 2
    for index, (row, truth) in enumerate(zip(rows, facts["phantoms"], strict=True)):
        phantom = domain.phantom(index, diseased=True)
        assert row["item_id"] == truth["item_id"] == f"{domain.names[1]}-{index}"
        assert row["prompt"] == domain.defaults.healthy_prompt
        assert truth["seed"] == split_seed("test", index) and 0.72 <= truth["severity"] <= 1
        with Image.open(folder / row["image"]) as image:
            assert image.mode == "RGB" and image.text["Synthetic"] == "true"
            assert np.array_equal(np.asarray(image), domain.render(phantom))
        assert domain.structure is not None
        with Image.open(folder / "structures" / f"{row['item_id']}.png") as image:
            np.testing.assert_allclose(np.asarray(image) / 255, domain.structure(phantom), atol=0.5 / 255)


@pytest.mark.parametrize("name", DOMAINS)
def test_healthy_and_diseased_phantoms_of_a_number_are_one_patient(name: str) -> None:
    domain = load_domain(name)
    healthy, diseased = domain.phantom(3), domain.phantom(3, diseased=True)
    outside = domain.roi_mask(healthy) == 0
    a, b = domain.render(healthy), domain.render(diseased)
    # A chest's soft edges fade over the region's; the others end within it.
    assert outside.any() and np.abs(a.astype(int) - b)[outside].max() <= (2 if name == "chest" else 0)
    assert np.abs(a.astype(int) - b).max() > 20
    mask = domain.roi_mask(healthy)
    assert domain.measure(b, mask) > domain.measure(a, mask) + 0.05


@pytest.mark.parametrize("name", DOMAINS)
def test_the_shipped_files_fit_together(name: str) -> None:
    pytest.importorskip("onnxruntime")
    from pie_engine.demo.training.classifier import auc
    from pie_engine.metrics.classifier import Classifier

    domain = load_domain(name)
    config = json.loads((domain.checkpoint / "unet" / "config.json").read_text())
    assert config["sample_size"] * 8 == domain.defaults.resolution
    pictures = {
        diseased: np.stack([domain.render(domain.phantom(index, diseased=diseased)) for index in range(30)])
        for diseased in (False, True)
    }
    classifier = Classifier(domain.classifier)
    healthy, diseased = (classifier.confidence(pictures[one]) for one in (False, True))
    assert auc(np.concatenate([healthy, diseased]), np.repeat([False, True], 30)) > 0.98
    assert healthy.mean() < 0.1 and diseased.mean() > 0.9
    assert sum(path.stat().st_size for path in domain.checkpoint.rglob("*") if path.is_file()) < 12e6


@pytest.mark.parametrize("name", NEW)
def test_the_second_autoencoder_shows_both_domains(name: str) -> None:
    import torch
    from diffusers import AutoencoderKL

    from pie_engine.demo.training.vae import psnr, reconstruct

    domain = load_domain(name)
    vae = AutoencoderKL.from_pretrained(domain.checkpoint / "vae", torch_dtype=torch.float32).eval()
    pictures = np.stack([domain.render(domain.phantom(index, diseased=index % 2 == 1)) for index in range(8)])
    decoded = reconstruct(vae, pictures)
    assert decoded.shape == pictures.shape and decoded.dtype == np.uint8
    assert psnr(pictures, decoded) > 26


@pytest.mark.parametrize("name", NEW)
def test_the_demo_goes_towards_the_disease(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments = ["demo", "--domain", name, "--steps", "2", "--backend", "torch", "--output", str(tmp_path / "demo")]
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    domain = load_domain(name)
    assert json.loads(Path(printed["provenance"]).read_text())["confidence"] == {
        domain.condition: printed["confidence"]
    }
    assert printed["confidence"][-1] > printed["confidence"][0] + 0.1
    measured = printed[domain.measured.replace(" ", "_")]
    assert len(measured) == 3 and measured[-1] > measured[0]


@pytest.mark.parametrize("domain", ["fundus", "skin"])
def test_the_line_to_try_gives_what_the_demo_showed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, domain: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--domain", domain, "--steps", "1", "--backend", "torch", "--quiet"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("try:"))
    words = shlex.split(line.removeprefix("try:"))[1:]
    assert main([*words, "--backend", "torch", "--quiet"]) == 0
    facts = [json.loads(Path(name, "provenance.json").read_text()) for name in ("demo-output", "my-output")]
    demo, again = ({**one["settings"], **one["simulated"]} for one in facts)
    assert (demo.pop("leakage"), again.pop("leakage")) == (True, False)  # a measure, which the line leaves out
    assert demo == again
    first, last = (Path(name, "frames", "001.png") for name in ("demo-output", "my-output"))
    with Image.open(first) as one, Image.open(last) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_an_unknown_domain_and_findings_of_another_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="domain 'brain' is unknown; pass one of chest, fundus, skin"):
        load_domain("brain")
    words = ["demo", "--phantoms", "2", "--domain", "skin", "--findings", "--output", str(tmp_path / "cohort")]
    assert main(words) == 2
    assert "--findings is for --domain chest alone" in capsys.readouterr().err
    assert main(["demo", "--domain", "fundus", "--patient", "1000", "--output", str(tmp_path / "demo")]) == 2
    assert "patient 1000 is outside [0, 999]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_stage_of_the_training_runs_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from diffusers import StableDiffusionPipeline

    from pie_engine.demo.training.classifier import ClassifierTraining
    from pie_engine.demo.training.domains import DomainTraining, cohort, train
    from pie_engine.demo.training.unet import UnetTraining
    from pie_engine.demo.training.vae import VaeTraining
    from pie_engine.metrics.classifier import Classifier

    tiny = DomainTraining(
        vae_patients=4,
        unet_patients=4,
        classifier_patients=4,
        validation_patients=12,
        vae=VaeTraining(steps=4, batch=2, channels=(8, 8, 8, 8), bfloat16=True),
        unet=UnetTraining(steps=2, batch=4, channels=(16, 32), text_width=16, heads=2, reading_steps=4),
        refinement=UnetTraining(steps=1, batch=4, channels=(16, 32), text_width=16, heads=2),
        classifier=ClassifierTraining(steps=2, batch=4),
    )
    record = train(tmp_path, tiny)
    assert set(record["stages"]) == {"vae", "unet", "refinement", "fundus", "skin"}
    assert set(record["stages"]["vae"]["psnr_db"]) == set(NEW)
    again = train(tmp_path, tiny)
    assert again["stages"] == record["stages"]
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "checkpoint", safety_checker=None, feature_extractor=None)
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size
    for name in NEW:
        assert b"stack_trace" not in (tmp_path / f"{name}.onnx").read_bytes()  # it would name this machine's folders
        confidence = Classifier(tmp_path / f"{name}.json").confidence(np.zeros((2, 128, 128, 3), np.uint8))
        assert confidence.shape == (2,) and ((confidence >= 0) & (confidence <= 1)).all()
        severity = np.array([phantom.severity for phantom in cohort(name, "train", 200)])
        # As the training's docstring says: two fifths healthy, two fifths severe; three standard deviations.
        assert abs((severity <= 0.12).mean() - 0.4) < 0.11 and abs((severity >= 0.72).mean() - 0.4) < 0.11
