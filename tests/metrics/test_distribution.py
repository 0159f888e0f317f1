"""FID and KID against torchmetrics, closed forms and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.errors import InputError
from pie_engine.metrics.distribution import features_of, fid, kid, kid_interval


def features() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of [40, 5]."""
    i, j = np.arange(40)[:, None], np.arange(5)[None]
    first = np.sin(1.3 * i * (j + 1) + j)
    return first, 0.8 * np.cos(0.7 * i * (j + 2) + 0.2 * j) + 0.3 * np.sin(2.1 * i * (j + 1)) + 0.4


class _Same(torch.nn.Module):
    num_features = 5

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def test_against_torchmetrics() -> None:
    fids = pytest.importorskip("torchmetrics.image.fid")
    kids = pytest.importorskip("torchmetrics.image.kid")
    first, second = features()
    metric = fids.FrechetInceptionDistance(feature=_Same())
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    assert fid(first, second) == pytest.approx(float(metric.compute()), abs=1e-9)
    assert fid(first, second) == pytest.approx(1.2616631438395398, abs=1e-9)  # torchmetrics 1.9.0, written down
    theirs = float(kids.poly_mmd(torch.from_numpy(first), torch.from_numpy(second)))
    assert kid(first, second) == pytest.approx(theirs, abs=1e-9)
    assert kid(first, second) == pytest.approx(0.767935085891986, abs=1e-9)


def test_fid_in_closed_form() -> None:
    """In one dimension FID is (m1 - m2)^2 + (s1 - s2)^2; for covariances with one basis the sum over the axes."""
    unit = np.array([[-1.0], [0.0], [1.0]])  # unbiased standard deviation 1
    assert fid(unit, 3 * unit + 5) == pytest.approx(25 + 4)
    corners = np.array([[x, y] for x in (-1, 1) for y in (-1, 1)]) * np.sqrt(3 / 4)  # unbiased covariance: identity
    assert fid(corners, corners * [2, 5] + [1, 0]) == pytest.approx(1 + 1 + 16)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert fid(corners @ turn, (corners * [2, 5]) @ turn) == pytest.approx(17)
    assert fid(*[features()[0]] * 2) == pytest.approx(0, abs=1e-9)


def test_kid_by_plain_loops_and_unequal_sizes() -> None:
    first, second = features()
    second = second[:23]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    n, m = len(first), len(second)
    xx = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in first for b in second) / (n * m)
    assert kid(first, second) == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_extractor_and_refusals() -> None:
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    sizes: list[int] = []

    def means(some: np.ndarray) -> np.ndarray:
        sizes.append(len(some))
        return some.mean(axis=(1, 2))

    assert np.array_equal(features_of(images, means, batch=2), images.mean(axis=(1, 2)))
    assert sizes == [2, 2, 1]
    first, second = features()
    calls: list[tuple[Any, str]] = [
        (lambda: fid(first[:5], second), "FID of 5 samples with 5 features is meaningless.*pass at least 6"),
        (lambda: kid(first[:1], second), "at least 2 each"),
        (lambda: fid(first, second[:, :4]), "cannot be compared"),
        (lambda: kid(first, np.full_like(second, np.nan)), "not finite"),
        (lambda: features_of(images, lambda some: some), r"gave \[5, 4, 4, 3\] for 5 pictures"),
    ]
    for call, line in calls:
        with pytest.raises(InputError, match=line):
            call()
    assert fid(first[:6], second) > 0


def test_the_interval_of_kid_by_plain_loops() -> None:
    first, second = (rows[:count] for rows, count in zip(features(), (7, 6), strict=True))
    found = kid_interval(first, second)
    assert (found.value, found.n, found.m) == (pytest.approx(kid(first, second)), 7, 6)
    assert found == kid_interval(first, second)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    def within(rows: np.ndarray, drawn: np.ndarray) -> float:
        return float(np.mean([kernel(rows[i], rows[j]) for i in drawn for j in drawn if i != j]))

    rng, values = np.random.default_rng(7), []
    for _ in range(1500):
        left, right = rng.integers(7, size=7), rng.integers(6, size=6)
        across = np.mean([kernel(first[i], second[j]) for i in left for j in right])
        values.append(within(first, left) + within(second, right) - 2 * across)
    low, high = np.percentile(values, [2.5, 97.5])
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.08 * (high - low))
    # Of two pictures, every resample that has pairs is the set itself: an interval without width would be no interval.
    few = kid_interval(first[:2], second)
    assert (few.value, few.low, few.high) == (pytest.approx(kid(first[:2], second)), None, None)
    three = kid_interval(first[:3], second)
    assert three.low is not None and three.high is not None and three.low < three.high
    with pytest.raises(InputError, match="not defined"):
        kid_interval(first[:1], second)
