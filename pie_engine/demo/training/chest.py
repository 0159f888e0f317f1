"""Make the demo's checkpoint, classifier and CLIP: `python -m pie_engine.demo.training.chest --output DIR`.

A stage whose results are already in DIR is kept, so that an interrupted run goes on where it stopped.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo import reports
from pie_engine.demo.data import cohort, render_all
from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY
from pie_engine.demo.training.classifier import (
    BOUNDARY,
    SOFTNESS,
    ClassifierTraining,
    auc,
    export_classifier,
    soft_label,
    train_classifier,
)
from pie_engine.demo.training.clip import ClipTraining, save_clip, train_clip
from pie_engine.demo.training.stages import load_vae, run_command, run_stages, save_denoiser
from pie_engine.demo.training.tokenizer import save_tokenizer
from pie_engine.demo.training.unet import UnetTraining, train_unet
from pie_engine.demo.training.vae import VaeTraining, encode_mean, psnr, reconstruct, train_vae
from pie_engine.demo.zero_shot import measure_zero_shot
from pie_engine.metrics.classifier import Classifier
from pie_engine.metrics.clip import ClipEncoder

SEED_OF_REPORTS = 11


@dataclass(frozen=True)
class Training:
    """All stages; the defaults make the shipped files."""

    vae_patients: int = 3000
    unet_patients: int = 6000
    validation_patients: int = 100
    wordings: int = 4  # reports per patient
    vae: VaeTraining = field(default_factory=VaeTraining)
    classifier_patients: int = 3000
    unet: UnetTraining = field(default_factory=UnetTraining)
    classifier: ClassifierTraining = field(default_factory=ClassifierTraining)
    clip_patients: int = 4000
    clip_reconstructed: int = 2000  # of them, which are also shown as the autoencoder gives them back
    zero_shot_patients: int = 400
    clip: ClipTraining = field(default_factory=ClipTraining)


def train(output: Path, config: Training) -> dict:
    """Run every stage that `output` does not hold yet; return and write the record, as `run_stages` does."""
    return run_stages(output, config, (_vae, _unet, _classifier, _clip))


def _vae(output: Path, config: Training) -> dict:
    grey = render_all(cohort("train", config.vae_patients))
    vae, measured = train_vae(grey, config.vae)
    vae.half().save_pretrained(output / "checkpoint" / "vae")
    held_out = render_all(cohort("validation", config.validation_patients))
    measured["psnr_db"] = round(psnr(held_out, reconstruct(load_vae(output), held_out)), 2)
    return measured


def _classifier(output: Path, config: Training) -> dict:
    patients = cohort("classifier", config.classifier_patients)
    grey = render_all(patients)
    grey = np.concatenate([grey, reconstruct(load_vae(output), grey)])
    labels = soft_label(np.array([patient.ctr for patient in patients] * 2))
    model, measured = train_classifier(grey, labels, config.classifier)
    files = output / "severity.onnx", output / "severity.json"
    notes: dict[str, str | float] = {
        "confidence": "0 = usual heart size, 1 = enlarged",
        "boundary_ctr": BOUNDARY,
        "softness_ctr": SOFTNESS,
    }
    export_classifier(model, *files, name="enlarged heart", notes=notes)
    held_out = cohort("validation", config.validation_patients)
    enlarged = np.array([patient.ctr > CTR_ENLARGED[0] for patient in held_out])
    clear = enlarged | np.array([patient.ctr < CTR_HEALTHY[1] for patient in held_out])
    pictures = np.repeat(render_all(held_out)[..., None], 3, axis=3)
    scores = Classifier(files[1]).confidence(pictures)
    measured["validation_auc"] = round(auc(scores[clear], enlarged[clear]), 4)
    return measured


def _clip(output: Path, config: Training) -> dict:
    patients = cohort("clip", config.clip_patients, config.clip.effusion_rate)
    seen_again = patients[: config.clip_reconstructed]
    grey = render_all(patients)
    grey = np.concatenate([grey, reconstruct(load_vae(output), grey[: len(seen_again)])])
    tokenizer = CLIPTokenizer.from_pretrained(output / "checkpoint" / "tokenizer")
    model, measured = train_clip(grey, patients + seen_again, tokenizer, config.clip)
    save_clip(model, tokenizer, output / "clip")
    held_out = cohort("test", config.zero_shot_patients, config.clip.effusion_rate)
    measured["zero_shot"] = measure_zero_shot(ClipEncoder(output / "clip"), render_all(held_out), held_out)
    return measured


def _unet(output: Path, config: Training) -> dict:
    checkpoint = output / "checkpoint"
    patients = cohort("train", config.unet_patients)
    latents = encode_mean(load_vae(output), render_all(patients))
    rng = np.random.default_rng(SEED_OF_REPORTS)
    texts = [[reports.report(patient, rng) for _ in range(config.wordings)] for patient in patients]
    tokenizer = save_tokenizer(checkpoint / "tokenizer", reports.corpus())
    findings = torch.tensor([reports.findings(patient) for patient in patients])
    save = lambda model: save_denoiser(model, checkpoint)  # noqa: E731
    model, measured = train_unet(latents, texts, findings, tokenizer, config.unet, save)
    save(model)
    return measured


def main() -> None:
    run_command(__doc__ and __doc__.splitlines()[0], lambda output: train(output, Training()))


if __name__ == "__main__":
    main()
