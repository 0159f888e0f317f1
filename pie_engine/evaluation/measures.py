"""Every measure of one run: a row per round, and how steadily the series over the rounds rise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pie_engine.errors import InputError
from pie_engine.evaluation.runs import Run
from pie_engine.metrics.change import unevenness
from pie_engine.metrics.classifier import Classifier
from pie_engine.metrics.clip import ClipEncoder, clip_i
from pie_engine.metrics.perceptual import PictureDistance
from pie_engine.metrics.similarity import Monotonicity, measure_similarity, monotonicity, sharpness
from pie_engine.metrics.structure import structure_kept

CONFIDENCE = "confidence: "
CLIP_I = "clip_i"
DISTANCE = "distance: "
STRUCTURE = "structure_kept"
SHARPNESS = "sharpness_inside"
# By column, what provenance.json calls it under "change". They exist from round 1 on.
RECORDED = {
    "increment_inside": "increment_inside",
    "displacement_inside": "displacement_inside",
    "displacement_outside": "displacement_outside",
    "decoded_leakage": "decoded_outside",
}
SIMILARITY = (
    "ssim_inside", "ssim_outside", "psnr_inside", "psnr_outside", "change_inside", "leakage_mean", "leakage_p95",
)  # fmt: skip
# A value per round from 0 (the input) on; None where a measure is not defined there.
Series = list[float | None]


@dataclass(frozen=True)
class Measured:
    """What is measured of one run.

    Attributes:
        run: whose.
        confidence: by the classifiers' names, N + 1 values.
        series: by measure, N + 1 values, the input's first.
        trends: by measure, how steadily it rises.
        unevenness: how far its frames lie from an even way (`pie_engine.metrics.change.unevenness`).
    """

    run: Run
    confidence: dict[str, list[float]]
    series: dict[str, Series]
    trends: dict[str, Monotonicity]
    unevenness: float | None = None


def measure_run(
    run: Run,
    encoder: ClipEncoder | None = None,
    classifiers: Sequence[Classifier] = (),
    distances: Sequence[PictureDistance] = (),
    region: np.ndarray | None = None,
    structure: np.ndarray | None = None,
) -> Measured:
    """Measure one run against its input.

    Args:
        region: [H, W] bool; inside and outside are those of this region and not of the run's own. What provenance
            recorded stays the run's own.
        structure: [H, W] in 0 to 1, where features lie that the disease leaves alone; see `structure_kept`.

    Raises:
        InputError: frames or mask are missing or damaged, or do not fit one another.
        BackendError, CheckpointError, ConfigError: see `Classifier`, `PictureDistance`, `ClipEncoder`,
            `measure_similarity`.
    """
    frames, mask = run.frames(), run.mask() if region is None else region
    if mask is not None and mask.shape != frames.shape[1:3]:
        raise InputError(f"mask.png of {run.name} is not of its frames' size; run pie-engine run again")
    confidence = {one.name: [float(value) for value in one.confidence(frames)] for one in classifiers}
    series: dict[str, Series] = {CONFIDENCE + name: list(values) for name, values in confidence.items()}
    if encoder is not None:
        series[CLIP_I] = list(clip_i(frames, encoder))
    series |= {DISTANCE + one.name: [float(value) for value in one.between(frames, frames[0])] for one in distances}
    rising = {name: [value for value in values if value is not None] for name, values in series.items()}
    similar = [measure_similarity(frame, frames[0], mask).to_dict() for frame in frames]
    series |= {name: [one[name] for one in similar] for name in SIMILARITY}
    series[SHARPNESS] = [sharpness(frame, mask if mask is None or mask.any() else None) for frame in frames]
    if structure is not None:
        try:
            series[STRUCTURE] = [float(value) for value in structure_kept(frames, structure, mask)]
        except InputError as error:
            raise error.within(run.name) from error
    for name, key in RECORDED.items():
        values = run.provenance["change"].get(key)
        series[name] = [None, *(values or [None] * run.rounds)]
    rising["change_inside"] = [value for value in series["change_inside"] if value is not None]
    trends = {name: monotonicity(values) for name, values in rising.items() if values}
    way = run.provenance["change"].get("displacement_inside") or []
    return Measured(run, confidence, series, trends, unevenness(way))
