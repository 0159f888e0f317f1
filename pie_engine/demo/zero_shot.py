"""What a CLIP knows of phantoms without having been told what to look for: the heart's size and the side of fluid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pie_engine.demo.phantom import Patient
from pie_engine.demo.reports import heart_grades, heart_sentences, lung_sentences
from pie_engine.metrics.clip import ClipEncoder, normalised, similarity

GRADES = ("normal", "borderline", "enlarged", "severe")
SIDES = (None, "left", "right")


def measure_zero_shot(encoder: ClipEncoder, grey: NDArray[np.uint8], patients: Sequence[Patient]) -> dict[str, float]:
    """Each picture gets the class whose wordings it is most similar to (mean of their embeddings).

    Args:
        grey: uint8 [N, 128, 128], of the `patients`.

    Returns:
        "heart_accuracy": share of hearts whose class of `GRADES` is one that a report may give; "side_accuracy": share
        with the right one of `SIDES`; "heart_rho": Spearman's rank correlation of the ratio with the similarity to
        "severe" minus that to "normal".
    """

    def classes(wordings: Sequence[Sequence[str]]) -> NDArray[np.floating]:
        return np.stack([normalised(encoder.text_features(some)).mean(axis=0) for some in wordings])

    pictures = encoder.features(np.repeat(grey[..., None], 3, axis=3))
    hearts = similarity(pictures, classes([heart_sentences(grade) for grade in GRADES]))  # [N, 4]
    sides = similarity(pictures, classes([lung_sentences(side) for side in SIDES]))  # [N, 3]
    ratios = [patient.ctr for patient in patients]
    graded = [GRADES[best] in heart_grades(ctr) for best, ctr in zip(hearts.argmax(1), ratios, strict=True)]
    true = [SIDES.index(None if not p.effusion else "left" if p.effusion_left else "right") for p in patients]
    return {
        "heart_accuracy": round(float(np.mean(graded)), 4),
        "side_accuracy": round(float((sides.argmax(1) == true).mean()), 4),
        "heart_rho": round(float(spearmanr(ratios, hearts[:, -1] - hearts[:, 0]).statistic), 4),
    }
