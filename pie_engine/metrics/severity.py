"""How far a disease has come, as a number of a frame: what `pace="even:CLASSIFIER"` makes rise in equal parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from scipy.special import logit

from pie_engine.files import sha256_file
from pie_engine.metrics.classifier import Classifier

# Confidences nearer to 0 or 1 are what fp32 rounds a sigmoid to, and their logits mean nothing.
_SATURATED = 1e-6


def _same(values: np.ndarray) -> np.ndarray:
    return values


@dataclass(frozen=True)
class Severity:
    """A measure of frames, and the scale on which it is to rise evenly.

    Attributes:
        name: what provenance calls it.
        measure: of [N, H, W, 3] uint8, float [N].
        scale: from the measure to where equal parts mean equal steps; rises with the measure.
        facts: what provenance says of it beside its name.
    """

    name: str
    measure: Callable[[np.ndarray], np.ndarray]
    scale: Callable[[np.ndarray], np.ndarray] = _same
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, what: SeverityMeasure) -> Severity:
        """Of a classifier, its logit; of any other callable of frames, what it gives."""
        if isinstance(what, Severity):
            return what
        if isinstance(what, Classifier):
            facts = {"file": what.file.name, "sha256": sha256_file(what.file)}
            return cls(what.name, what.confidence, _logit, facts)
        return cls(getattr(what, "__name__", type(what).__name__), what)


SeverityMeasure: TypeAlias = Severity | Classifier | Callable[[np.ndarray], np.ndarray]


def _logit(confidence: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(confidence, _SATURATED, 1 - _SATURATED)))
