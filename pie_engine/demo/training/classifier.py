"""Third stage: a small convolutional classifier of severity, trained on phantoms and their reconstructions.

It never sees a generated picture, so that it can judge them. Pictures are uint8, grey [N, 128, 128] or RGB
[N, 128, 128, 3].
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY, SIZE
from pie_engine.export.graph import strip_stack_traces

log = logging.getLogger(__name__)
MEAN, STD = 0.45, 0.27  # of levels in 0 to 1
BOUNDARY = (CTR_HEALTHY[1] + CTR_ENLARGED[0]) / 2  # of the cardiothoracic ratio
SOFTNESS = 0.012  # of the boundary between the two ranges, in units of the ratio


@dataclass(frozen=True)
class ClassifierTraining:
    """What the third stage does; the defaults are those of the shipped classifier."""

    steps: int = 800
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


class SeverityNet(nn.Module):
    """Normalised pictures [B, 1 or 3, 128, 128] to the confidence that the finding is there, [B]."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels
        widths = (channels, 8, 16, 32, 48)
        self.features = nn.Sequential(
            *(
                layer
                for a, b in pairwise(widths)
                for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU())
            ),
            nn.Conv2d(widths[-1], 8, 1),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * (SIZE // 16) ** 2, 64), nn.SiLU(), nn.Linear(64, 1))

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image))[:, 0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits(image).sigmoid()


def soft_label(
    values: NDArray[np.float64], boundary: float = BOUNDARY, softness: float = SOFTNESS
) -> NDArray[np.float64]:
    """Labels for values [N]: 0 well below the boundary, 1 well above, a slope between."""
    return 1 / (1 + np.exp(-(values - boundary) / softness))


def train_classifier(
    pictures: NDArray[np.uint8], labels: NDArray[np.float64], config: ClassifierTraining
) -> tuple[SeverityNet, dict]:
    """Train on pictures and their labels [N] in 0 to 1; return the classifier in eval mode and a record."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = SeverityNet(3 if pictures.ndim == 4 else 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps, pct_start=1 / 3
    )
    targets = torch.from_numpy(labels).float()
    start, losses = time.perf_counter(), []
    for step in range(config.steps):
        index = torch.randint(len(pictures), (config.batch,), generator=generator)
        images = augment(torch.from_numpy(pictures[index.numpy()]).float() / 255, generator)
        loss = F.binary_cross_entropy_with_logits(model.logits(normalise(images)), targets[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == config.steps - 1:
            log.info("classifier step %d of %d: loss %.4f", step, config.steps, float(np.mean(losses[-100:])))
    record = {
        "seconds": round(time.perf_counter() - start, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": [round(float(np.mean(chunk)), 5) for chunk in np.array_split(losses, min(8, len(losses)))],
        "final_loss": float(np.mean(losses[-100:])),
    }
    return model.eval(), record


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Levels in 0 to 1, [B, 128, 128] or [B, 128, 128, 3], to the classifier's input [B, 1 or 3, 128, 128]."""
    scaled = (images - MEAN) / STD
    return scaled.permute(0, 3, 1, 2) if scaled.ndim == 4 else scaled[:, None]


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Exposure, contrast, a small shift and noise, so that none of them stands in for the finding; [B, H, W, ...]."""
    each = (len(images),) + (1,) * (images.ndim - 1)
    uniform = lambda low, high: torch.rand(each, generator=generator) * (high - low) + low  # noqa: E731
    dy, dx = torch.randint(-3, 4, (2,), generator=generator).tolist()
    images = images.roll((dy, dx), (1, 2)).clamp_min(1e-4) ** uniform(0.85, 1.18)
    images = images * uniform(0.93, 1.07) + uniform(-0.03, 0.03)
    return images + uniform(0.0, 0.02) * torch.randn(images.shape, generator=generator)


def export_classifier(
    model: SeverityNet, onnx_file: Path, description: Path, *, name: str, notes: Mapping[str, str | float]
) -> None:
    """Write the ONNX file (any batch size) and the JSON that declares it to `pie_engine.metrics.classifier`.

    Args:
        name: the finding, which names the classifier's column.
        notes: what a reader may want to know; nothing reads them.
    """
    example = torch.zeros(2, model.channels, SIZE, SIZE)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=["confidence"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # only the older exporter returns nothing
    strip_stack_traces(program.model)
    program.save(onnx_file, external_data=False)
    spec = {
        "name": name,
        "file": onnx_file.name,
        "size": SIZE,
        "channels": model.channels,
        "grey": "mean",
        "range": [0, 1],
        "mean": MEAN,
        "std": STD,
        "layout": "NCHW",
        "output": 0,
        "activation": "none",
        "notes": dict(notes),
    }
    description.write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")


def auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    pairs = scores[positive][:, None] - scores[~positive][None]
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
