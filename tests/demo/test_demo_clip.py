"""The demo's CLIP: what it was trained to do, and what it knows of phantoms that it has not seen."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pie_engine.demo import reports
from pie_engine.demo.assets import CHECKPOINT, CLIP, TRAINING_JSON
from pie_engine.demo.data import SPLITS, cohort, render_all
from pie_engine.demo.phantom import Patient
from pie_engine.demo.training.clip import contrastive_loss
from pie_engine.demo.zero_shot import GRADES, measure_zero_shot
from pie_engine.metrics.clip import ClipEncoder

MEGABYTE = 1_000_000


def test_a_report_is_true_of_its_patient_and_not_of_another() -> None:
    rng = np.random.default_rng(0)
    healthy = Patient(1, ctr=0.44)
    for patient in cohort("validation", 60, effusion_rate=0.5):
        sentences = reports.true_sentences(patient)
        for _ in range(4):
            parts = reports.parts(patient, rng)
            assert sentences.issuperset(parts)
            if patient.ctr > 0.49:
                assert parts[0] not in reports.true_sentences(healthy)
            if patient.effusion:
                assert parts[1] not in reports.true_sentences(healthy)
                other = replace(patient, effusion_left=not patient.effusion_left)
                assert parts[1] not in reports.true_sentences(other)
    assert "Large left pleural effusion." in reports.lung_sentences("left")
    assert len(reports.lung_sentences("right")) == 9 and "" not in reports.lung_sentences(None)


def test_the_loss_against_clips_own() -> None:
    """With nothing true but the diagonal; transformers has CLIP's loss in its forward pass."""
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) * 3
    assert contrastive_loss(logits, torch.eye(5).bool()).item() == pytest.approx(
        image_text_contrastive_loss(logits).item(), rel=1e-5
    )


def test_the_loss_does_not_hold_true_pairs_apart() -> None:
    true = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    assert contrastive_loss(true.float() * 100, true).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(torch.eye(3) * 100, true).item() > 10
    # Equal logits: row and column 0 and 1 diverge from (1/2, 1/2, 0) by ln 3 - ln 2, the last by ln 3.
    expected = np.log(3) - 2 / 3 * np.log(2)
    assert contrastive_loss(torch.zeros(3, 3), true).item() == pytest.approx(expected, abs=1e-6)


def test_the_folder_is_small_half_precision_and_whole() -> None:
    from safetensors import safe_open

    files = [path for path in CLIP.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 2.5 * MEGABYTE
    with safe_open(CLIP / "model.safetensors", framework="np") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a mapping)
            assert tensors.get_tensor(key).dtype == np.float16, key
    for name in ("vocab.json", "merges.txt"):
        assert (CLIP / name).read_bytes() == (CHECKPOINT / "tokenizer" / name).read_bytes()


@pytest.mark.parametrize("domains", [False, True])
def test_each_checkpoint_with_its_judges_is_under_12_mb(domains: bool) -> None:
    files = [path for path in CLIP.parent.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files if ("domains" in path.relative_to(CLIP.parent).parts) == domains]
    assert MEGABYTE < sum(sizes) < 12 * MEGABYTE


def test_it_has_patients_of_its_own() -> None:
    assert len(set(SPLITS.values())) == len(SPLITS) and "clip" in SPLITS
    record = json.loads(TRAINING_JSON.read_text(encoding="utf-8"))
    assert record["stages"]["clip"]["zero_shot"]["heart_accuracy"] > 0.8


def test_zero_shot_on_held_out_phantoms() -> None:
    """Far beyond what a judge that does not look at the picture can reach.

    Such a judge is right as often as its best constant answer is: the share q of the commonest one. It reaches more
    than the 1 - 1e-6 quantile of Binomial(n, q) once in a million samples.
    """
    patients = cohort("test", 60, effusion_rate=0.5)
    measured = measure_zero_shot(ClipEncoder(CLIP), render_all(patients), patients)
    n = len(patients)
    sides = Counter(None if not p.effusion else p.effusion_left for p in patients)
    grades = Counter(grade for p in patients for grade in reports.heart_grades(p.ctr) if grade in GRADES)
    for name, counts in (("side_accuracy", sides), ("heart_accuracy", grades)):
        blind = stats.binom.isf(1e-6, n, counts.most_common(1)[0][1] / n) / n
        assert measured[name] > blind, name
    # Ranks of unrelated numbers: rho is about normal with standard deviation 1 / sqrt(n - 1).
    assert measured["heart_rho"] > stats.norm.isf(1e-6) / np.sqrt(n - 1)
