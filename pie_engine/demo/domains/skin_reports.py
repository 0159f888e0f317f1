"""Short dermoscopy reports that match a skin phantom. All stay far below CLIP's 77 tokens."""

from collections.abc import Iterator

import numpy as np

from pie_engine.demo.domains.severity import OVERLAP, grades
from pie_engine.demo.domains.skin import Lesion
from pie_engine.demo.wording import pick

_OVERLAPS = (0.02, OVERLAP, OVERLAP)  # the first as the shipped checkpoint was trained with
_DOMAIN = "Dermoscopy."
# What the lesion is, then what it looks like. Every wording of one may stand before every wording of the other.
_NAMES = {
    "benign": ("Benign naevus.", "Benign melanocytic naevus.", "No melanoma.", "Common naevus. No melanoma."),
    "mild": ("Atypical naevus.", "Mildly atypical naevus.", "Dysplastic naevus.", "Mild atypia."),
    "moderate": ("Early melanoma.", "Suspected melanoma.", "Moderate melanoma.", "Melanoma suspected."),
    "severe": ("Melanoma.", "Severe melanoma.", "Advanced melanoma.", "Malignant melanoma."),
}
_LOOKS = {
    "benign": (
        "Small round lesion, evenly brown.",
        "Small symmetric lesion with regular border.",
        "Small lesion of one colour.",
        "Round, regular and evenly pigmented.",
    ),
    "mild": (
        "Slightly enlarged lesion, brown.",
        "Slightly asymmetric brown lesion.",
        "Slightly enlarged lesion with slightly irregular border.",
        "Brown lesion with slightly uneven pigment.",
    ),
    "moderate": (
        "Asymmetric lesion with irregular border.",
        "Enlarged lesion with irregular border and two colours.",
        "Enlarged asymmetric lesion of several colours.",
        "Irregular border and more than one colour.",
    ),
    "severe": (
        "Large asymmetric lesion with irregular border and several colours.",
        "Large lesion with black, red and blue-grey areas.",
        "Large, markedly asymmetric lesion. Irregular border.",
        "Large irregular lesion of many colours.",
    ),
}


def report(p: Lesion, rng: np.random.Generator) -> str:
    """One report, worded at random: the domain, the lesion's name, its looks."""
    fitting = grades(p.severity, tuple(_NAMES), _OVERLAPS)
    grade = pick(rng, fitting)
    return " ".join((_DOMAIN, pick(rng, _NAMES[grade]), pick(rng, _LOOKS[grade])))


def corpus() -> Iterator[str]:
    """Every sentence that a report can hold, for the tokenizer to learn its merges from."""
    yield _DOMAIN
    for sentences in (*_NAMES.values(), *_LOOKS.values()):
        yield from sentences
