"""Short reports that match a fundus phantom. All stay far below CLIP's 77 tokens."""

from collections.abc import Iterator

import numpy as np

from pie_engine.demo.domains.fundus import Eye
from pie_engine.demo.domains.severity import grades
from pie_engine.demo.wording import pick

_DOMAIN = ("Fundus photograph.", "Colour fundus photograph.", "Photograph of the fundus.")
_GRADES = {
    "none": (
        "Normal retina. No diabetic retinopathy.",
        "No diabetic retinopathy.",
        "Normal fundus. No haemorrhages or exudates.",
        "No signs of diabetic retinopathy. The retina is normal.",
        "The macula and the vessels are normal. No diabetic retinopathy.",
    ),
    "mild": (
        "Mild diabetic retinopathy. Few microaneurysms.",
        "Mild diabetic retinopathy.",
        "Mild diabetic retinopathy. A few small haemorrhages.",
        "Early diabetic retinopathy. Few microaneurysms and small haemorrhages.",
        "A few dot haemorrhages. Mild diabetic retinopathy.",
    ),
    "moderate": (
        "Moderate diabetic retinopathy. Some haemorrhages and hard exudates.",
        "Moderate diabetic retinopathy.",
        "Several haemorrhages and some hard exudates. Moderate diabetic retinopathy.",
        "Moderate diabetic retinopathy with several haemorrhages and exudates.",
        "Moderate diabetic retinopathy. Several hard exudates and haemorrhages at the macula.",
    ),
    "severe": (
        "Severe diabetic retinopathy. Many haemorrhages and hard exudates.",
        "Severe diabetic retinopathy.",
        "Many haemorrhages and clusters of hard exudates. Severe diabetic retinopathy.",
        "Severe diabetic retinopathy with numerous haemorrhages and exudates.",
        "Advanced diabetic retinopathy. Numerous hard exudates and haemorrhages around the macula.",
    ),
}


def report(p: Eye, rng: np.random.Generator) -> str:
    """One report, worded at random."""
    fitting = grades(p.severity, tuple(_GRADES))
    return f"{pick(rng, _DOMAIN)} {pick(rng, _GRADES[pick(rng, fitting)])}"


def corpus() -> Iterator[str]:
    """Every sentence that a report can hold, for the tokenizer to learn its merges from."""
    yield from _DOMAIN
    for wordings in _GRADES.values():
        yield from wordings
