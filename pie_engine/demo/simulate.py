"""The main job on the embedded checkpoint: one held-out phantom, ten rounds towards an enlarged heart, or back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.engine import Item, PieEngine

if TYPE_CHECKING:
    from pie_engine.outputs import Result


@dataclass(frozen=True)
class Demo:
    """What the demo gives.

    Attributes:
        result: the progression.
        confidence: the severity classifier's confidence that the heart is enlarged, one per frame, N + 1 values.
        cardiothoracic_ratio: measured from each frame's pixels; None where no heart border was found.
    """

    result: Result
    confidence: list[float]
    cardiothoracic_ratio: list[float | None]

    def captions(self) -> list[str]:
        """A label per frame: its number and the classifier's confidence."""
        names = ["input", *(f"round {n}" for n in range(1, len(self.confidence)))]
        return [f"{name}   {value:.2f}" for name, value in zip(names, self.confidence, strict=True)]

    def save(self, output: str | Path) -> dict[str, Any]:
        """`Result.save`, with the confidence in the contact sheet and the report."""
        note = "(numbers: a classifier's confidence that the heart is enlarged)"
        confidence = {"that the heart is enlarged": self.confidence}
        return self.result.save(output, captions=self.captions(), note=note, confidence=confidence)


def simulate(
    *,
    patient: int = 0,
    steps: int | None = None,
    backend: str = "onnxruntime",
    regress: bool = False,
    on_component: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Demo:
    """Run the demo.

    Args:
        patient: number of a held-out phantom; none of them was seen in training.
        steps: rounds; None for the validated default.
        regress: start from the same anatomy with an enlarged heart, and go towards the healthy prompt.

    Raises:
        BackendError: onnxruntime, which the severity classifier runs on, is not installed.
    """
    from pie_engine.demo.classifier import SeverityClassifier
    from pie_engine.demo.measure import ratio_or_nan
    from pie_engine.demo.phantom import render, roi_mask
    from pie_engine.demo.phantom_files import held_out, item_id

    classifier = SeverityClassifier()
    defaults = load_defaults()
    config = defaults.regression_config() if regress else defaults.run_config()
    config = replace(config, steps=steps or config.steps)
    prompt = defaults.healthy_prompt if regress else defaults.prompt
    phantom, name = held_out(patient, enlarged=regress), item_id(patient, enlarged=regress)
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend=backend, on_component=on_component)
    result = engine.run(Item(render(phantom), prompt, roi_mask(phantom), item_id=name), config, on_progress=on_progress)
    ratios = [ratio_or_nan(frame) for frame in result.frames]
    confidence = [round(float(value), 4) for value in classifier.confidence(result.frames)]
    return Demo(result, confidence, [None if isnan(ratio) else round(ratio, 4) for ratio in ratios])
