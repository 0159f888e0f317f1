"""Do labels fit the units that carry them better than they fit other units? A permutation test in blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError

PERMUTATIONS = 10_000
# Arrangements that are equal in exact arithmetic may differ by rounding: so close they count as equal, relative to the
# sum of absolute scores.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Permutation:
    """What a permutation test found.

    Attributes:
        observed: the statistic.
        expected: its mean over all arrangements.
        p: share of the arrangements whose statistic is at least `observed`, the observed one included.
        exact: whether all arrangements were counted, and not a sample.
        arrangements: how many different ones there are; p is never below 1 / arrangements.
        counted: how many p is a share of.
    """

    observed: float
    expected: float
    p: float
    exact: bool
    arrangements: int
    counted: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def permutation_test(
    scores: np.ndarray,
    labels: Sequence[int],
    blocks: Sequence[int],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Permutation | None:
    """Test whether sum over u of scores[u, labels[u]] is larger than with the labels shuffled within blocks.

    One-sided. Under the null hypothesis the labels of a block are exchangeable among its units. With no more than
    `permutations` different arrangements all are counted; else p = (1 + arrangements drawn that reach the observed
    statistic) / (1 + permutations) (Phipson and Smyth 2010), which is never 0. What is added to a row or, within a
    block, to a column of `scores` changes no p.

    Args:
        scores: [units, labels]: how well each unit fits each label, finite.
        labels: of each unit, a column of `scores`.
        blocks: of each unit; units with the same number may exchange labels.

    Returns:
        None where no shuffle changes anything: every block has labels of one kind.

    Raises:
        InputError: shapes do not fit, a score is not finite, or `permutations` is below 1.
    """
    scores, label, block = np.asarray(scores, np.float64), np.asarray(labels), np.asarray(blocks)
    if scores.ndim != 2 or not label.shape == block.shape == scores.shape[:1] or not np.isfinite(scores).all():
        raise InputError(
            f"scores {list(scores.shape)} do not fit {label.size} labels and {block.size} blocks or are not finite; "
            "pass one finite row per unit"
        )
    if permutations < 1:
        raise InputError(f"{permutations} permutations are too few; pass at least 1")
    parts = [(scores[block == name], label[block == name]) for name in np.unique(block)]
    arrangements = math.prod(_arrangements(part) for _, part in parts)
    if arrangements == 1:
        return None
    exact = arrangements <= permutations
    sums = np.zeros(1) if exact else np.zeros(permutations)
    rng = np.random.default_rng(seed)
    for rows, part in parts:
        if exact:  # every arrangement of this block with every one of those before
            sums = np.add.outer(sums, _all_sums(rows, part)).ravel()
        else:
            sums = sums + _draw(rows, part, permutations, rng)
    observed = math.fsum(scores[np.arange(len(label)), label])
    reached = int((sums >= observed - _ROUNDING * np.abs(scores).sum()).sum())
    return Permutation(
        observed=observed,
        expected=math.fsum(float(rows[:, part].mean(axis=1).sum()) for rows, part in parts),
        p=reached / len(sums) if exact else (1 + reached) / (1 + permutations),
        exact=exact,
        arrangements=arrangements,
        counted=len(sums) if exact else 1 + permutations,
    )


def _arrangements(labels: np.ndarray) -> int:
    """Different orders of labels, some of which may be equal."""
    counts = Counter(labels.tolist())
    return math.factorial(len(labels)) // math.prod(math.factorial(count) for count in counts.values())


def _all_sums(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The block's part of the statistic for every different order of its labels."""
    kinds, counts = np.unique(labels, return_counts=True)
    # By how many labels of each kind are left, the sums of all ways to place the others on the units so far.
    states = {tuple(counts.tolist()): np.zeros(1)}
    for row in scores:
        longer: dict[tuple[int, ...], list[np.ndarray]] = {}
        for left, sums in states.items():
            for kind, count in enumerate(left):
                if count:
                    rest = (*left[:kind], count - 1, *left[kind + 1 :])
                    longer.setdefault(rest, []).append(sums + row[kinds[kind]])
        states = {left: np.concatenate(ways) for left, ways in longer.items()}
    (sums,) = states.values()
    return sums


def _draw(scores: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The block's part of the statistic for `count` random orders of its labels."""
    drawn = rng.permuted(np.tile(labels, (count, 1)), axis=1)  # [count, units]
    return scores[np.arange(len(labels)), drawn].sum(axis=1)
