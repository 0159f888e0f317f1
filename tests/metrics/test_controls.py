"""Controls made from a prompt."""

from __future__ import annotations

import pytest

from pie_engine.metrics.controls import negate, shuffle_words


def test_shuffled_words_are_the_same_words_in_other_orders() -> None:
    prompt = "Severe  cardiomegaly. The heart\nis markedly enlarged."
    orders = shuffle_words(prompt, seed=3)
    assert len(orders) == len(set(orders)) == 8
    for order in orders:
        assert sorted(order.split(" ")) == sorted(prompt.split()) and order != " ".join(prompt.split())
    assert shuffle_words(prompt, seed=3) == orders != shuffle_words(prompt, seed=4)
    assert shuffle_words("The lungs are clear.", seed=3, count=2) == shuffle_words("The lungs are clear.", seed=3)[:2]


def test_few_words_have_few_orders() -> None:
    assert shuffle_words("normal heart") == ["heart normal"]
    assert set(shuffle_words("very very large")) == {"very large very", "large very very"}
    assert set(shuffle_words("a b c")) == {"a c b", "b a c", "b c a", "c a b", "c b a"}
    for prompt in ("Cardiomegaly.", "", " ", "no no no"):
        assert shuffle_words(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "negated"),
    [
        ("Cardiomegaly.", "No cardiomegaly."),
        ("Cardiomegaly. The heart is enlarged.", "No cardiomegaly. The heart is not enlarged."),
        ("No pleural effusion.", "Pleural effusion."),
        ("no acute findings; the lungs are clear", "Acute findings; the lungs are not clear"),
        ("A node of 1.5 cm is new. It was small.", "A node of 1.5 cm is not new. It was not small."),
        ("COPD", "No COPD"),
        ("Large heart. It is new. + Left effusion.", "No large heart. It is not new. + No left effusion."),
        ("Heart size has increased!", "Heart size has not increased!"),
        ("The disease persists", "No the disease persists"),
        ("", ""),
    ],
)
def test_negation(prompt: str, negated: str) -> None:
    assert negate(prompt) == negated
