"""Fourth stage: a small CLIP of phantoms and their reports, to judge pictures by text. It never sees a generated one.

Many pairs of a batch match: "The heart is enlarged." is true of half the patients. So that none of them counts as a
mismatch, a text's targets are all pictures that it is true of, a picture's all texts that are true of it.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo import reports
from pie_engine.demo.phantom import SIZE, Patient
from pie_engine.demo.training.classifier import MEAN, STD, augment
from pie_engine.demo.training.tokenizer import MAX_LENGTH
from pie_engine.demo.training.unet import READ_LENGTH, tokenize

log = logging.getLogger(__name__)
# How often a text is the whole report, its sentence on the heart, on the lungs, or empty (which is true of everybody).
PARTS = (0.50, 0.23, 0.22, 0.05)


@dataclass(frozen=True)
class ClipTraining:
    """What the fourth stage does; the defaults are those of the shipped model."""

    steps: int = 2400
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.08  # of the steps
    seed: int = 0
    effusion_rate: float = 0.5
    patch: int = 16
    width: int = 96
    layers: int = 4
    heads: int = 4
    text_width: int = 64
    text_layers: int = 2
    projection: int = 64


def build_clip(config: ClipTraining, tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIP, made small, for pictures of 128 x 128."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": SIZE,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection))


def train_clip(
    grey: NDArray[np.uint8], patients: Sequence[Patient], tokenizer: CLIPTokenizer, config: ClipTraining
) -> tuple[CLIPModel, dict]:
    """Train on uint8 [N, 128, 128] and their patients [N]; return the model in eval mode and a record."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    sentences = [reports.true_sentences(patient) for patient in patients]
    model = build_clip(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=config.warmup
    )
    start, losses = time.perf_counter(), []
    for step in range(config.steps):
        index = torch.randint(len(grey), (config.batch,), generator=generator).numpy()
        texts = [_draw_parts(patients[i], rng) for i in index]
        true = torch.tensor([[parts <= sentences[i] for i in index] for parts in map(frozenset, texts)])
        pictures = to_clip(augment(torch.from_numpy(grey[index]).float() / 255, generator))
        tokens = tokenize(tokenizer, [" ".join(parts) for parts in texts])[:, :READ_LENGTH]
        loss = contrastive_loss(model(input_ids=tokens, pixel_values=pictures).logits_per_text, true)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == config.steps - 1:
            log.info("clip step %d of %d: loss %.4f", step, config.steps, float(np.mean(losses[-100:])))
    record = {
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [round(float(np.mean(chunk)), 5) for chunk in np.array_split(losses, min(16, len(losses)))],
        "final_loss": float(np.mean(losses[-100:])),
    }
    return model.eval(), record


def contrastive_loss(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Divergence of softmax(logits) from a uniform distribution over the true pairs, both directions' mean; 0 at best.

    With the diagonal alone true it is CLIP's own loss (Radford et al. 2021).

    Args:
        logits: float32 [texts, pictures].
        true: bool, the same shape; at least one in each row and column.
    """
    target = true.float()
    both = [(logits, target / target.sum(1, keepdim=True)), (logits.T, (target / target.sum(0, keepdim=True)).T)]
    divergences = [F.kl_div(rows.log_softmax(1), wanted, reduction="batchmean") for rows, wanted in both]
    return (divergences[0] + divergences[1]) / 2


def to_clip(images: torch.Tensor) -> torch.Tensor:
    """Grey levels in 0 to 1, [B, 128, 128], to the model's input [B, 3, 128, 128], as its preprocessor does."""
    return ((images - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write config, weights as fp16, preprocessor and tokenizer, as published CLIP checkpoints have them."""
    copy.deepcopy(model).half().save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).write_bytes((Path(tokenizer.name_or_path) / name).read_bytes())


def _draw_parts(patient: Patient, rng: np.random.Generator) -> tuple[str, ...]:
    """Sentences that are true of the patient, as one text; none at times."""
    heart, lungs = reports.parts(patient, rng)
    chosen = [(heart, lungs), (heart,), (lungs,), ()][rng.choice(4, p=PARTS)]
    return tuple(part for part in chosen if part)
