"""The permutation test against orders listed by hand and against scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pie_engine.errors import InputError
from pie_engine.metrics.permutation import permutation_test


def test_three_units_by_hand() -> None:
    """Sums of the six orders: 1+5+9=15, 1+6+8=15, 2+4+9=15, 2+6+7=15, 3+4+8=15, 3+5+7=15, and one score raised by 1."""
    scores = np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 6.0], [7.0, 8.0, 9.0]])
    found = permutation_test(scores, [0, 1, 2], [0, 0, 0])
    assert found is not None
    # The orders that put label 1 on unit 1 (2 of 6) give 16, the others 15.
    assert found.to_dict() == {
        "observed": 16.0, "expected": pytest.approx(15 + 2 / 6), "p": pytest.approx(2 / 6), "exact": True,
        "arrangements": 6, "counted": 6,
    }  # fmt: skip
    other = permutation_test(scores, [1, 0, 2], [0, 0, 0])
    assert other is not None and (other.observed, other.p) == (15.0, 1.0)


def test_against_scipy_with_equal_labels() -> None:
    rng = np.random.default_rng(5)
    scores, labels = rng.normal(size=(7, 3)), np.array([0, 0, 1, 1, 1, 2, 2])
    scores[np.arange(7), labels] += 0.5
    theirs = stats.permutation_test(
        (labels,),
        lambda drawn: scores[np.arange(7), drawn.astype(int)].sum(),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=math.factorial(7),
        vectorized=False,
    )
    found = permutation_test(scores, labels, [0] * 7)
    assert found is not None and found.exact and found.arrangements == 210  # 7! / (2! 3! 2!)
    assert found.observed == pytest.approx(theirs.statistic)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.expected == pytest.approx(theirs.null_distribution.mean())
    assert 0.001 < found.p < 0.5


def blocks_by_hand(scores: np.ndarray, labels: list[int], blocks: list[list[int]]) -> tuple[float, int]:
    """p and how many orders there are, every product of the blocks' orders listed."""
    sums = []
    for orders in itertools.product(*(itertools.permutations(block) for block in blocks)):
        drawn = list(labels)
        for block, order in zip(blocks, orders, strict=True):
            for unit, source in zip(block, order, strict=True):
                drawn[unit] = labels[source]
        sums.append(scores[range(len(labels)), drawn].sum())
    return float(np.mean(np.array(sums) >= sums[0] - 1e-9)), len(sums)


def test_blocks_keep_their_labels() -> None:
    scores = np.random.default_rng(8).normal(size=(6, 3))
    labels = [0, 1, 2, 0, 1, 2]
    scores[range(6), labels] += 0.7
    found = permutation_test(scores, labels, [7, 7, 7, 7, 3, 3])
    p, count = blocks_by_hand(scores, labels, [[0, 1, 2, 3], [4, 5]])
    assert found is not None and found.exact
    assert count == 48 and found.arrangements == 24  # label 0 is twice in the first block
    assert found.p == pytest.approx(p)
    free = permutation_test(scores, labels, [0] * 6)
    assert free is not None and free.arrangements == 90 and free.p != found.p


def test_what_all_orders_share_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    scores, labels, blocks = rng.normal(size=(5, 5)), [4, 2, 1, 0, 3], [0] * 5
    found = permutation_test(scores, labels, blocks)
    moved = permutation_test(scores + 10 * rng.normal(size=(5, 1)) + 10 * rng.normal(size=5), labels, blocks)
    assert found is not None and moved is not None
    assert found.p == moved.p
    assert found.observed - found.expected == pytest.approx(moved.observed - moved.expected)


def test_drawn_orders_agree_with_all_of_them() -> None:
    rng = np.random.default_rng(11)
    scores, labels, blocks = rng.normal(size=(8, 8)), list(range(8)), [0] * 5 + [1] * 3
    scores[range(8), labels] += 0.4
    exact = permutation_test(scores, labels, blocks)
    drawn = permutation_test(scores, labels, blocks, permutations=700, seed=1)
    assert exact is not None and drawn is not None
    assert exact.exact and exact.counted == exact.arrangements == 720
    assert not drawn.exact and drawn.counted == 701 and drawn.arrangements == 720
    assert (drawn.p * 701) == pytest.approx(round(drawn.p * 701))  # (1 + reached) / (1 + 700)
    assert drawn.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p / 700))
    assert drawn.expected == pytest.approx(exact.expected)
    again = permutation_test(scores, labels, blocks, permutations=700, seed=1)
    assert again == drawn
    strong = permutation_test(np.eye(8), labels, [0] * 8, permutations=700)
    assert strong is not None and strong.p == 1 / 701  # never 0


def test_without_an_effect_p_is_not_small_too_often() -> None:
    rng = np.random.default_rng(0)
    found = [permutation_test(rng.normal(size=(6, 3)), [0, 0, 1, 1, 2, 2], [0] * 6) for _ in range(200)]
    small = sum(one is not None and one.p <= 0.1 for one in found)
    assert stats.binom.sf(small - 1, 200, 0.1) > 0.001
    equal = permutation_test(np.full((4, 2), 0.1), [0, 1, 0, 1], [0] * 4)
    assert equal is not None and equal.p == 1.0  # all orders tie


def test_many_units_and_one_label_that_differs() -> None:
    """As many orders as units: more than Python nests calls."""
    scores = np.zeros((3000, 2))
    scores[:, 1] = np.arange(3000)
    found = permutation_test(scores, [0] * 2990 + [1] + [0] * 9, [0] * 3000)
    assert found is not None and found.exact and found.arrangements == 3000
    assert found.p == pytest.approx(10 / 3000)


def test_nothing_to_exchange_and_refusals() -> None:
    assert permutation_test(np.ones((3, 2)), [1, 1, 1], [0, 0, 0]) is None
    assert permutation_test(np.ones((2, 2)), [0, 1], [0, 1]) is None
    for scores, labels, blocks, permutations, line in (
        (np.ones((2, 2)), [0], [0, 0], 10, "pass one finite row per unit"),
        (np.ones((2, 2)), [0, 1], [0], 10, "pass one finite row per unit"),
        (np.array([[math.nan, 1.0], [1.0, 1.0]]), [0, 1], [0, 0], 10, "pass one finite row per unit"),
        (np.ones((2, 2)), [0, 1], [0, 0], 0, "0 permutations are too few; pass at least 1"),
    ):
        with pytest.raises(InputError, match=line):
            permutation_test(scores, labels, blocks, permutations=permutations)
