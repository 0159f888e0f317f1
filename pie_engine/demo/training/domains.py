"""Make the second checkpoint, of fundus photographs and skin lesions, and a classifier for each, from nothing.

    python -m pie_engine.demo.training.domains --output DIR

A stage whose results are already in DIR is kept, so that an interrupted run goes on where it stopped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo.data import render_all, split_seed
from pie_engine.demo.domains import fundus, fundus_reports, skin, skin_reports
from pie_engine.demo.domains.severity import HEALTHY_UP_TO, SEVERE_FROM
from pie_engine.demo.training.classifier import ClassifierTraining, auc, export_classifier, soft_label, train_classifier
from pie_engine.demo.training.stages import (
    load_denoiser,
    load_vae,
    run_command,
    run_stages,
    save_denoiser,
    save_weights,
)
from pie_engine.demo.training.tokenizer import save_tokenizer
from pie_engine.demo.training.unet import Denoiser, UnetTraining, train_unet
from pie_engine.demo.training.vae import VaeTraining, encode_mean, psnr, reconstruct, train_vae
from pie_engine.metrics.classifier import Classifier

SEED_OF_REPORTS = 11
PHANTOMS: dict[str, ModuleType] = {"fundus": fundus, "skin": skin}
REPORTS: dict[str, ModuleType] = {"fundus": fundus_reports, "skin": skin_reports}
FINDINGS = {"fundus": "diabetic retinopathy", "skin": "melanoma"}
P_HEALTHY, P_SEVERE = 0.40, 0.40  # the rest lies between
BOUNDARY, SOFTNESS = 0.42, 0.05  # of the classifiers' labels, in units of the severity
FIRST_UNET = "first-unet"  # folder of what is refined: refining may be stopped at any time and begun again


@dataclass(frozen=True)
class DomainTraining:
    """All stages; the defaults make the shipped files. Numbers of patients are per domain."""

    vae_patients: int = 2500
    unet_patients: int = 4000
    classifier_patients: int = 2500
    validation_patients: int = 100
    wordings: int = 4  # reports per patient
    vae: VaeTraining = field(
        default_factory=lambda: VaeTraining(steps=2200, channels=(16, 32, 48, 64), bfloat16=True, learning_rate=2e-3)
    )
    unet: UnetTraining = field(default_factory=lambda: UnetTraining(steps=2800))
    refinement: UnetTraining = field(default_factory=lambda: UnetTraining(steps=2300, learning_rate=7e-4, seed=1))
    classifier: ClassifierTraining = field(default_factory=ClassifierTraining)


def cohort(name: str, split: str, count: int) -> list[Any]:
    """`count` phantoms of a split: healthy, severe and between."""
    return [_draw(name, split_seed(split, index)) for index in range(count)]


def _draw(name: str, seed: int) -> Any:
    rng = np.random.default_rng([seed, 2])
    group = rng.random()
    if group < P_HEALTHY:
        severity = rng.uniform(0, HEALTHY_UP_TO)
    elif group < P_HEALTHY + P_SEVERE:
        severity = rng.uniform(SEVERE_FROM, 1)
    else:
        severity = rng.uniform(HEALTHY_UP_TO, SEVERE_FROM)
    return PHANTOMS[name].sample(seed, float(severity))


def _render(name: str, phantoms: list[Any]) -> NDArray[np.uint8]:
    return render_all(phantoms, draw=PHANTOMS[name].render)


def train(output: Path, config: DomainTraining) -> dict:
    """Run every stage that `output` does not hold yet; return and write the record, as `run_stages` does."""
    return run_stages(output, config, STAGES)


def _vae(output: Path, config: DomainTraining) -> dict:
    pictures = np.concatenate([_render(name, cohort(name, "train", config.vae_patients)) for name in PHANTOMS])
    # The scaling factor is measured on the first pictures: they have to be of both domains.
    pictures = pictures[np.random.default_rng(config.vae.seed).permutation(len(pictures))]
    vae, measured = train_vae(pictures, config.vae)
    vae.half().save_pretrained(output / "checkpoint" / "vae")
    shipped = load_vae(output)
    measured["psnr_db"] = {}
    for name in PHANTOMS:
        held_out = _render(name, cohort(name, "validation", config.validation_patients))
        measured["psnr_db"][name] = round(psnr(held_out, reconstruct(shipped, held_out)), 2)
    return measured


def _unet(output: Path, config: DomainTraining) -> dict:
    corpus = [sentence for reports in REPORTS.values() for sentence in reports.corpus()]
    tokenizer = save_tokenizer(output / "checkpoint" / "tokenizer", corpus)
    model, measured = _train_unet(output, config, config.unet, tokenizer, None)
    save_weights(model, output / FIRST_UNET)
    return measured


def _refinement(output: Path, config: DomainTraining) -> dict:
    """The U-Net once more, from where it stands: strands as thin as these take it long to draw."""
    tokenizer = CLIPTokenizer.from_pretrained(output / "checkpoint" / "tokenizer")
    start_from = load_denoiser(output / FIRST_UNET, tokenizer, config.refinement)
    model, measured = _train_unet(output, config, config.refinement, tokenizer, start_from)
    save_denoiser(model, output / "checkpoint")
    return measured


def _train_unet(
    output: Path, config: DomainTraining, unet: UnetTraining, tokenizer: CLIPTokenizer, start_from: Denoiser | None
) -> tuple[Denoiser, dict]:
    vae = load_vae(output)
    rng = np.random.default_rng(SEED_OF_REPORTS)
    latents, texts, findings = [], [], []
    for number, name in enumerate(PHANTOMS):
        phantoms = cohort(name, "train", config.unet_patients)
        latents.append(encode_mean(vae, _render(name, phantoms)))
        texts += [[REPORTS[name].report(phantom, rng) for _ in range(config.wordings)] for phantom in phantoms]
        findings += [(float(number), phantom.severity) for phantom in phantoms]
    return train_unet(torch.cat(latents), texts, torch.tensor(findings), tokenizer, unet, start_from=start_from)


def _fundus(output: Path, config: DomainTraining) -> dict:
    return _classifier("fundus", output, config)


def _skin(output: Path, config: DomainTraining) -> dict:
    return _classifier("skin", output, config)


def _classifier(name: str, output: Path, config: DomainTraining) -> dict:
    phantoms = cohort(name, "classifier", config.classifier_patients)
    pictures = _render(name, phantoms)
    pictures = np.concatenate([pictures, reconstruct(load_vae(output), pictures)])
    severity = np.array([phantom.severity for phantom in phantoms] * 2)
    model, measured = train_classifier(pictures, soft_label(severity, BOUNDARY, SOFTNESS), config.classifier)
    files = output / f"{name}.onnx", output / f"{name}.json"
    notes: dict[str, str | float] = {
        "confidence": f"0 = none, 1 = {FINDINGS[name]}",
        "boundary_severity": BOUNDARY,
        "softness_severity": SOFTNESS,
    }
    export_classifier(model, *files, name=FINDINGS[name], notes=notes)
    held_out = cohort(name, "validation", config.validation_patients)
    severity = np.array([phantom.severity for phantom in held_out])
    clear = (severity >= SEVERE_FROM) | (severity <= HEALTHY_UP_TO)
    scores = Classifier(files[1]).confidence(_render(name, held_out))
    measured["validation_auc"] = round(auc(scores[clear], severity[clear] >= SEVERE_FROM), 4)
    return measured


STAGES = (_vae, _unet, _refinement, _fundus, _skin)


def main() -> None:
    run_command(__doc__ and __doc__.splitlines()[0], lambda output: train(output, DomainTraining()))


if __name__ == "__main__":
    main()
