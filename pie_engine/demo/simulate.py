"""The main job on an embedded checkpoint: one held-out phantom, ten rounds towards the disease, or back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from pie_engine.demo.domain import Domain, load_domain
from pie_engine.engine import Item, PieEngine
from pie_engine.metrics.classifier import Classifier
from pie_engine.outputs import Result


@dataclass(frozen=True)
class Demo:
    """What the demo gives.

    Attributes:
        domain: what was simulated, and by which checkpoint.
        result: the progression.
        confidence: the classifier's confidence that the disease is there, one per frame, N + 1 values.
        measured: `domain.measured`, from each frame's pixels; None where it was not found.
    """

    domain: Domain
    result: Result
    confidence: list[float]
    measured: list[float | None]

    def captions(self) -> list[str]:
        """A label per frame: its number and the classifier's confidence."""
        names = ["input", *(f"round {n}" for n in range(1, len(self.confidence)))]
        return [f"{name}   {value:.2f}" for name, value in zip(names, self.confidence, strict=True)]

    def save(self, output: str | Path) -> dict[str, Any]:
        """`Result.save`, with the confidence in the contact sheet and the report."""
        note = f"(numbers: a classifier's confidence {self.domain.condition})"
        confidence = {self.domain.condition: self.confidence}
        return self.result.save(output, captions=self.captions(), note=note, confidence=confidence)


def simulate(
    *,
    domain: str = "chest",
    patient: int = 0,
    steps: int | None = None,
    backend: str = "onnxruntime",
    regress: bool = False,
    pace: str = "even",
    on_component: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Demo:
    """Run the demo.

    Args:
        domain: one of `pie_engine.demo.DOMAINS`.
        patient: number of a held-out phantom; none of them was seen in training.
        steps: rounds; None for the validated default.
        pace: "even", so that every round shows another stage; or the paper's, "constant".
        regress: start from the same patient with the disease, and go towards the healthy prompt.

    Raises:
        ConfigError: there is no such domain or patient.
        BackendError: onnxruntime, which the classifier runs on, is not installed.
    """
    chosen = load_domain(domain)
    classifier = Classifier(chosen.classifier)
    config = chosen.defaults.regression_config() if regress else chosen.defaults.run_config()
    config = replace(config, steps=steps or config.steps, pace=pace, leakage=True)
    prompt = chosen.defaults.healthy_prompt if regress else chosen.defaults.prompt
    phantom, name = chosen.phantom(patient, diseased=regress), chosen.item_id(patient, diseased=regress)
    engine = PieEngine.load(checkpoint=chosen.checkpoint, backend=backend, on_component=on_component)
    mask = chosen.roi_mask(phantom)
    result = engine.run(Item(chosen.render(phantom), prompt, mask, item_id=name), config, on_progress=on_progress)
    measured = [chosen.measure(frame, mask) for frame in result.frames]
    confidence = [round(float(value), 4) for value in classifier.confidence(result.frames)]
    return Demo(chosen, result, confidence, [None if isnan(value) else round(value, 4) for value in measured])
