"""Short radiology reports that match a phantom. All stay far below CLIP's 77 tokens."""

from collections.abc import Iterator

import numpy as np

from pie_engine.demo.phantom import Patient
from pie_engine.demo.wording import pick

_HEART = {
    "normal": (
        "Normal heart size.",
        "The heart is normal in size.",
        "The cardiac silhouette is within normal limits.",
        "No cardiomegaly.",
    ),
    "borderline": (
        "Borderline heart size.",
        "The heart is at the upper limits of normal.",
        "Borderline cardiac silhouette.",
    ),
    "enlarged": (
        "Cardiomegaly.",
        "Cardiomegaly. The heart is enlarged.",
        "The heart is enlarged.",
        "Enlarged cardiac silhouette.",
    ),
    "mild": ("Mild cardiomegaly.", "The heart is mildly enlarged.", "Mild cardiomegaly. The heart is mildly enlarged."),
    "severe": (
        "Severe cardiomegaly.",
        "The heart is markedly enlarged.",
        "Severe cardiomegaly. The heart is markedly enlarged.",
    ),
}
_CLEAR = ("The lungs are clear.", "Clear lungs.", "No pleural effusion.", "No acute findings.", "")
_FLUID = (
    "{size} {side} pleural effusion.",
    "There is a {size} pleural effusion on the {side}.",
    "{side} pleural effusion, {size} in size.",
)
_SIZES = ("small", "moderate", "large")


def heart_grades(ctr: float) -> tuple[str, ...]:
    """The words that fit a cardiothoracic ratio; more than one where they overlap, as in real reports."""
    if ctr <= 0.49:
        return ("normal",)
    if ctr < 0.54:
        return ("borderline",)
    if ctr < 0.58:
        return ("mild", "enlarged")
    return ("enlarged", "severe") if ctr >= 0.62 else ("enlarged",)


def report(patient: Patient, rng: np.random.Generator) -> str:
    """One report, worded at random."""
    return " ".join(part for part in parts(patient, rng) if part)


def parts(patient: Patient, rng: np.random.Generator) -> tuple[str, str]:
    """What one report says of the heart and of the lungs, worded at random; nothing of clear lungs at times."""
    grades = heart_grades(patient.ctr)
    heart = pick(rng, _HEART[grades[rng.integers(len(grades))]])
    return heart, _fluid(patient, rng) if patient.effusion else pick(rng, _CLEAR)


def heart_sentences(grade: str) -> tuple[str, ...]:
    """Every wording of one of `heart_grades`."""
    return _HEART[grade]


def lung_sentences(side: str | None) -> tuple[str, ...]:
    """Every wording of clear lungs (None), or of fluid on the "left" or the "right" side."""
    if side is None:
        return tuple(sentence for sentence in _CLEAR if sentence)
    return tuple(_word_fluid(template, size, side) for template in _FLUID for size in _SIZES)


def true_sentences(patient: Patient) -> frozenset[str]:
    """Every part of a report that is true of the patient; a report is true if all of its parts are."""
    heart = (sentence for grade in heart_grades(patient.ctr) for sentence in _HEART[grade])
    lungs = _CLEAR if not patient.effusion else [_word_fluid(template, *_fluid_words(patient)) for template in _FLUID]
    return frozenset((*heart, *lungs, ""))


def findings(patient: Patient) -> tuple[float, float, float]:
    """What a report describes, as numbers: cardiothoracic ratio, left and right effusion."""
    left = patient.effusion if patient.effusion_left else 0.0
    return patient.ctr, left, patient.effusion - left


def _fluid(patient: Patient, rng: np.random.Generator) -> str:
    return _word_fluid(pick(rng, _FLUID), *_fluid_words(patient))


def _fluid_words(patient: Patient) -> tuple[str, str]:
    size = _SIZES[0] if patient.effusion < 0.2 else _SIZES[1] if patient.effusion < 0.32 else _SIZES[2]
    return size, "left" if patient.effusion_left else "right"


def _word_fluid(template: str, size: str, side: str) -> str:
    text = template.format(size=size, side=side)
    return text[0].upper() + text[1:]


def corpus() -> Iterator[str]:
    """Every sentence that a report can hold, for the tokenizer to learn its merges from."""
    for sentences in _HEART.values():
        yield from sentences
    yield from (sentence for sentence in _CLEAR if sentence)
    for template in _FLUID:
        for size in _SIZES:
            for side in ("left", "right"):
                yield template.format(size=size, side=side)
