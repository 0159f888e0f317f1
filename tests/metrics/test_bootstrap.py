"""Intervals of a mean, against all resamples listed and against scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pie_engine.errors import InputError
from pie_engine.metrics.bootstrap import mean_interval


def test_against_every_resample_of_four_values() -> None:
    """All 4^4 resamples: the percentiles fall on plateaus of the distribution of means, which random draws hit too."""
    values = [0.0, 1.0, 10.0, 100.0]
    means = np.mean(list(itertools.product(values, repeat=4)), axis=1)
    found = mean_interval(values)
    assert (found.mean, found.n) == (27.75, 4)
    assert (found.low, found.high) == tuple(np.percentile(means, [2.5, 97.5], method="nearest"))


def test_against_scipy() -> None:
    values = np.random.default_rng(3).normal(2.0, 0.5, 40)
    found = mean_interval(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    assert (found.low, found.high) == (pytest.approx(theirs.low, abs=0.012), pytest.approx(theirs.high, abs=0.012))


def test_seed_and_few_values() -> None:
    values = [0.1, 0.5, 0.45, 0.9, 0.2, 0.33]
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval([0.25]).to_dict() == {"mean": 0.25, "low": None, "high": None, "n": 1}
    same = mean_interval([0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
    for bad in ([], [math.nan, 1.0], [[1.0]]):
        with pytest.raises(InputError, match="at least 1 finite value"):
            mean_interval(bad)
