"""Short radiology reports that match a phantom. All stay far below CLIP's 77 tokens."""

from collections.abc import Iterator

import numpy as np

from pie_engine.demo.phantom import Patient

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
    grades = heart_grades(patient.ctr)
    heart = _pick(rng, _HEART[grades[rng.integers(len(grades))]])
    lungs = _fluid(patient, rng) if patient.effusion else _pick(rng, _CLEAR)
    return " ".join(part for part in (heart, lungs) if part)


def findings(patient: Patient) -> tuple[float, float, float]:
    """What a report describes, as numbers: cardiothoracic ratio, left and right effusion."""
    left = patient.effusion if patient.effusion_left else 0.0
    return patient.ctr, left, patient.effusion - left


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


def _fluid(patient: Patient, rng: np.random.Generator) -> str:
    size = "small" if patient.effusion < 0.2 else "moderate" if patient.effusion < 0.32 else "large"
    text = _pick(rng, _FLUID).format(size=size, side="left" if patient.effusion_left else "right")
    return text[0].upper() + text[1:]


def corpus() -> Iterator[str]:
    """Every sentence that a report can hold, for the tokenizer to learn its merges from."""
    for sentences in _HEART.values():
        yield from sentences
    yield from (sentence for sentence in _CLEAR if sentence)
    for template in _FLUID:
        for size in ("small", "moderate", "large"):
            for side in ("left", "right"):
                yield template.format(size=size, side=side)
