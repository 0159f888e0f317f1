"""How far apart two sets of pictures are, as distributions of features: FID and KID, over any feature extractor.

Computed from the definitions in float64; the tests hold them to torchmetrics and to closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError
from pie_engine.metrics.bootstrap import LEVEL, RESAMPLES

# [N, H, W, 3] uint8 -> [N, D] floating point: `ClipEncoder.features`, a network of one's own, anything.
Extractor = Callable[[np.ndarray], np.ndarray]
_CHUNK = 500  # resamples at once


@dataclass(frozen=True)
class KernelDistance:
    """KID of n and m pictures, and its interval; `low` and `high` are None where n or m is 2."""

    value: float
    low: float | None
    high: float | None
    n: int
    m: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fid(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets' features as if both were normal (Heusel et al. 2017); 0 or more, 0 is equal.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with unbiased covariances. The estimate is biased upwards, the more the
    fewer samples there are: compare only FIDs of the same sample sizes. With no more samples than features a covariance
    has no full rank and the figure means nothing: refused.

    Args:
        first, second: [N, D] and [M, D] features, N and M greater than D.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or too few samples.
    """
    one, two = _check(first, second)
    features, fewest = one.shape[1], min(len(one), len(two))
    if fewest <= features:
        raise InputError(
            f"FID of {fewest} samples with {features} features is meaningless, as their covariance has no full rank; "
            f"pass at least {features + 1} samples (ten times as many are better), or use KID"
        )
    squared = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    s1, s2 = (
        np.cov(one, rowvar=False).reshape(features, features),
        np.cov(two, rowvar=False).reshape(features, features),
    )
    # S1 S2 has the eigenvalues of the symmetric R S2 R with R = S1^(1/2); rounding makes zeros slightly negative.
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return float(max(0.0, squared + np.trace(s1) + np.trace(s2) - 2 * cross))


def kid(first: np.ndarray, second: np.ndarray) -> float:
    """Kernel distance of two sets' features (Binkowski et al. 2018): unbiased, so 0 on average for equal distributions.

    The squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, over all samples at once (no subsets); a
    single value can be below 0. Usable from a handful of samples on, with a spread that shrinks as they grow.

    Args:
        first, second: [N, D] and [M, D] features, at least two samples each.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a single sample.
    """
    one, two, across = _kernels(first, second)
    return _within(one) + _within(two) - 2 * float(across.mean())


def kid_interval(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> KernelDistance:
    """KID with a bootstrap interval: percentile method, 95 %, 10 000 resamples of both sets.

    A resample holds some pictures twice. A picture paired with itself would count as two that are alike, and move every
    resample upwards; such pairs are left out, as they are in `kid`. For fewer than about ten pictures the interval is
    too narrow; a resample of one picture alone has no pairs and is drawn anew. Of two pictures all others would be the
    set itself, as if nothing were left to chance: there is no interval.

    Args:
        first, second: as in `kid`.

    Raises:
        InputError: as in `kid`.
    """
    one, two, across = _kernels(first, second)
    n, m = across.shape
    value = _within(one) + _within(two) - 2 * float(across.mean())
    if min(n, m) < 3:
        return KernelDistance(value, None, None, n, m)
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while sum(map(len, found)) < RESAMPLES:
        left, right = (rng.multinomial(k, [1 / k] * k, _CHUNK).astype(np.float64) for k in (n, m))
        pairs = [n**2 - np.square(left).sum(axis=1), m**2 - np.square(right).sum(axis=1)]
        usable = (pairs[0] > 0) & (pairs[1] > 0)
        left, right, pairs = left[usable], right[usable], [some[usable] for some in pairs]
        inside = [
            (counts @ kernel * counts).sum(axis=1) / some
            for counts, kernel, some in zip((left, right), (one, two), pairs, strict=True)
        ]
        found.append(inside[0] + inside[1] - 2 * (left @ across * right).sum(axis=1) / (n * m))
    low, high = np.percentile(np.concatenate(found)[:RESAMPLES], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return KernelDistance(value, float(low), float(high), n, m)


def _kernels(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Within each set, without a picture's kernel with itself, and across; [N, N], [M, M], [N, M]."""
    one, two = _check(first, second)
    if min(len(one), len(two)) < 2:
        raise InputError(f"KID of {len(one)} and {len(two)} samples is not defined; pass at least 2 each")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / one.shape[1] + 1) ** 3

    within = kernel(one, one), kernel(two, two)
    for values in within:
        np.fill_diagonal(values, 0)
    return *within, kernel(one, two)


def _within(kernel: np.ndarray) -> float:
    return float(kernel.sum() / (len(kernel) * (len(kernel) - 1)))


def features_of(images: np.ndarray, extractor: Extractor, batch: int = 16) -> np.ndarray:
    """Features of [N, H, W, 3] uint8 by an extractor that is called with `batch` pictures at a time; [N, D] float64.

    Raises:
        InputError: the extractor gives something else than one row of features per picture.
    """
    found = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        rows = np.asarray(extractor(some), np.float64)
        if rows.ndim != 2 or len(rows) != len(some):
            raise InputError(f"the feature extractor gave {list(rows.shape)} for {len(some)} pictures; return [N, D]")
        found.append(rows)
    return np.concatenate(found)


def _check(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1] or not one.shape[1]:
        raise InputError(
            f"features {list(one.shape)} and {list(two.shape)} cannot be compared; pass [N, D] and [M, D] with one D"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise InputError("features hold values that are not finite; run the extractor in fp32")
    return one, two
