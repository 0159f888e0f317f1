"""How far a mean over patients can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 1000  # resamples that are drawn at once, so that a large cohort does not fill the memory


@dataclass(frozen=True)
class Estimate:
    """A mean over n patients and its interval; `low` and `high` are None where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean with its bootstrap interval: percentile method, 95 %, 10 000 resamples (Efron and Tibshirani 1993).

    Each resample draws n of the n values with replacement; the interval ends at the 2.5th and 97.5th percentile of
    their means, interpolated linearly. For small n (below about
    10) it is too narrow; it cannot reach beyond the values.

    Args:
        values: one value per patient: several runs of one patient are averaged first, as they are not independent.

    Raises:
        InputError: no value, or one that is not finite.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise InputError(
            f"the mean over {sample.size} values is not defined, or one is not finite; pass at least 1 finite value"
        )
    mean = float(sample.mean())
    if len(sample) < 2:
        return Estimate(mean, None, None, len(sample))
    rng = np.random.default_rng(seed)
    means = [
        sample[rng.integers(len(sample), size=(_CHUNK, len(sample)))].mean(axis=1) for _ in range(RESAMPLES // _CHUNK)
    ]
    low, high = np.percentile(np.concatenate(means), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(mean, float(low), float(high), len(sample))
