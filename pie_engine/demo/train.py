"""Make the demo's checkpoint, classifier and CLIP from nothing: `python -m pie_engine.demo.train --output DIR`.

A stage whose results are already in DIR is kept, so that an interrupted run goes on where it stopped.
"""

import argparse
import copy
import ctypes
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo import reports
from pie_engine.demo.classifier import SeverityClassifier
from pie_engine.demo.data import cohort, render_all
from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY
from pie_engine.demo.tokenizer import save_tokenizer
from pie_engine.demo.train_classifier import ClassifierTraining, auc, export_classifier, train_classifier
from pie_engine.demo.train_clip import ClipTraining, save_clip, train_clip
from pie_engine.demo.train_unet import Denoiser, UnetTraining, build_scheduler, train_unet
from pie_engine.demo.train_vae import VaeTraining, encode_mean, psnr, reconstruct, train_vae
from pie_engine.demo.zero_shot import measure_zero_shot
from pie_engine.metrics.clip import ClipEncoder

log = logging.getLogger(__name__)
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
    """Run every stage that `output` does not hold yet; return and write the record of what was measured."""
    _keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    record: dict = {"config": asdict(config), "hardware": _hardware(), "stages": {}}
    stages: tuple[Callable[[Path, Training], dict], ...] = (_vae, _unet, _classifier, _clip)
    for stage in stages:
        name = stage.__name__.removeprefix("_")
        done = output / f"stage-{name}.json"
        if not done.exists():
            start = time.perf_counter()
            measured = stage(output, config)
            measured["stage_seconds"] = round(time.perf_counter() - start, 1)
            _write_json(done, measured)
        record["stages"][name] = json.loads(done.read_text())
    _write_json(output / "training.json", record)
    return record


def _vae(output: Path, config: Training) -> dict:
    grey = render_all(cohort("train", config.vae_patients))
    vae, measured = train_vae(grey, config.vae)
    vae.half().save_pretrained(output / "checkpoint" / "vae")
    held_out = render_all(cohort("validation", config.validation_patients))
    measured["psnr_db"] = round(psnr(held_out, reconstruct(_load_vae(output), held_out)), 2)
    return measured


def _classifier(output: Path, config: Training) -> dict:
    patients = cohort("classifier", config.classifier_patients)
    grey = render_all(patients)
    grey = np.concatenate([grey, reconstruct(_load_vae(output), grey)])
    model, measured = train_classifier(grey, np.array([patient.ctr for patient in patients] * 2), config.classifier)
    files = output / "severity.onnx", output / "severity.json"
    export_classifier(model, *files)
    held_out = cohort("validation", config.validation_patients)
    enlarged = np.array([patient.ctr > CTR_ENLARGED[0] for patient in held_out])
    clear = enlarged | np.array([patient.ctr < CTR_HEALTHY[1] for patient in held_out])
    scores = SeverityClassifier(*files).confidence(render_all(held_out))
    measured["validation_auc"] = round(auc(scores[clear], enlarged[clear]), 4)
    return measured


def _clip(output: Path, config: Training) -> dict:
    patients = cohort("clip", config.clip_patients, config.clip.effusion_rate)
    seen_again = patients[: config.clip_reconstructed]
    grey = render_all(patients)
    grey = np.concatenate([grey, reconstruct(_load_vae(output), grey[: len(seen_again)])])
    tokenizer = CLIPTokenizer.from_pretrained(output / "checkpoint" / "tokenizer")
    model, measured = train_clip(grey, patients + seen_again, tokenizer, config.clip)
    save_clip(model, tokenizer, output / "clip")
    held_out = cohort("test", config.zero_shot_patients, config.clip.effusion_rate)
    measured["zero_shot"] = measure_zero_shot(ClipEncoder(output / "clip"), render_all(held_out), held_out)
    return measured


def _unet(output: Path, config: Training) -> dict:
    checkpoint = output / "checkpoint"
    patients = cohort("train", config.unet_patients)
    latents = encode_mean(_load_vae(output), render_all(patients))
    rng = np.random.default_rng(SEED_OF_REPORTS)
    texts = [[reports.report(patient, rng) for _ in range(config.wordings)] for patient in patients]
    tokenizer = save_tokenizer(checkpoint / "tokenizer", reports.corpus())
    findings = torch.tensor([reports.findings(patient) for patient in patients])
    save = lambda model: save_denoiser(model, checkpoint)  # noqa: E731
    model, measured = train_unet(latents, texts, findings, tokenizer, config.unet, save)
    save(model)
    return measured


def save_denoiser(model: Denoiser, checkpoint: Path) -> None:
    """Write U-Net, text encoder, scheduler and the folder's index, the weights as fp16."""
    for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        copy.deepcopy(part).half().save_pretrained(checkpoint / name)
    # transformers 5 drops the prefix that every published Stable Diffusion v1 checkpoint has.
    text_file = checkpoint / "text_encoder" / "model.safetensors"
    named = {"text_model." + key.removeprefix("text_model."): value for key, value in load_file(text_file).items()}
    save_file(named, text_file, metadata={"format": "pt"})
    build_scheduler().save_pretrained(checkpoint / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(checkpoint / "model_index.json", index)


def _load_vae(output: Path) -> AutoencoderKL:
    """The autoencoder as shipped: fp16 weights, computed in float32."""
    return AutoencoderKL.from_pretrained(output / "checkpoint" / "vae", torch_dtype=torch.float32).eval()


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory: on a virtual machine, page faults cost ten times the work otherwise."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for option, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**29), (mmap_max, 0)):
            libc.mallopt(option, value)


def _hardware() -> dict:
    """What the record needs to compare times: processor, threads, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its records")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args().output, Training())


if __name__ == "__main__":
    main()
