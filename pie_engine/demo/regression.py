"""The way back, measured: `python -m pie_engine.demo.regression --output DIR`.

Phantoms with an enlarged heart, towards the healthy prompt, under several settings. What the right answer looks like is
known: the same phantom with a usual heart.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pie_engine import Item, PieEngine, Result, RunConfig
from pie_engine.demo.assets import CHECKPOINT, SEVERITY_JSON, DemoDefaults, load_defaults
from pie_engine.demo.cardiothoracic import ratio_or_nan
from pie_engine.demo.domain import load_domain
from pie_engine.demo.phantom import Patient, render, roi_mask
from pie_engine.files import new_folder
from pie_engine.metrics.bootstrap import Estimate, mean_interval
from pie_engine.metrics.classifier import Classifier
from pie_engine.outputs.frames import png_metadata

log = logging.getLogger(__name__)
MARKER = "regression.json"
# Prompts "normal" and "borderline" meet at this ratio in the demo's reports.
NORMAL_UP_TO = 0.49


@dataclass(frozen=True)
class Regression:
    """One setting over P patients. Frame lists have N + 1 values (0 = input).

    Attributes:
        ratio, confidence: means per frame.
        change: of the measured ratio, last frame minus input.
        error: distance of the last frame's ratio from the healthy twin's true one.
        normal: patients whose last frame measures as normal.
        input_twin_distance, twin_distance: mean absolute difference in grey levels from the twin's picture, inside the
            region: of the input, and of the last frame.
        unmeasured: patients in whose first or last frame no heart was found; the ratio's values leave them out.
    """

    name: str
    config: RunConfig
    ratio: list[float]
    confidence: list[float]
    change: Estimate
    error: Estimate
    normal: int
    input_twin_distance: Estimate
    twin_distance: Estimate
    unmeasured: int

    def to_dict(self) -> dict[str, Any]:
        estimates = {
            name: getattr(self, name).to_dict() for name in ("change", "error", "input_twin_distance", "twin_distance")
        }
        return {**self.__dict__, "config": self.config.to_dict(), **estimates}


def settings_of(defaults: DemoDefaults) -> dict[str, RunConfig]:
    """What is compared: more guidance or strength, the demo's own, no pull of the input, and away from the disease."""
    config = defaults.regression_config()
    return {
        f"guidance {config.guidance_scale:g}, the default of a regression": config,
        f"guidance {config.guidance_scale:g}, strength 0.6": replace(config, strength=0.6),
        f"guidance {defaults.guidance_scale:g}": defaults.run_config(),
        f"guidance {defaults.guidance_scale:g}, beta2 1": replace(defaults.run_config(), beta2=1.0),
        f"guidance {defaults.guidance_scale:g}, negative prompt": replace(
            defaults.run_config(), negative_prompt=defaults.prompt
        ),
        f"guidance {config.guidance_scale:g}, negative prompt": replace(config, negative_prompt=defaults.prompt),
    }


def measure_regression(
    name: str, results: Sequence[Result], twins: Sequence[Patient], classifier: Classifier
) -> Regression:
    """Judge regressions of one setting against the patients' healthy twins."""
    ratio = np.array([[ratio_or_nan(frame) for frame in one.frames] for one in results])  # [P, N + 1]
    confidence = np.array([classifier.confidence(one.frames) for one in results])
    measured = np.isfinite(ratio[:, [0, -1]]).all(axis=1)
    last, truth = ratio[measured, -1], np.array([twin.ctr for twin in twins])[measured]
    return Regression(
        name=name,
        config=results[0].config,
        ratio=_round(np.nanmean(ratio[measured], axis=0)),
        confidence=_round(confidence.mean(axis=0)),
        change=mean_interval(last - ratio[measured, 0]),
        error=mean_interval(np.abs(last - truth)),
        normal=int((last <= NORMAL_UP_TO).sum()),
        input_twin_distance=mean_interval(
            [_twin_distance(one, 0, twin) for one, twin in zip(results, twins, strict=True)]
        ),
        twin_distance=mean_interval([_twin_distance(one, -1, twin) for one, twin in zip(results, twins, strict=True)]),
        unmeasured=int((~measured).sum()),
    )


def evaluate_regression(
    output: Path, patients: int = 10, backend: str = "onnxruntime", settings: Mapping[str, RunConfig] | None = None
) -> list[Regression]:
    """Run every setting on the first `patients` held-out phantoms with enlarged hearts.

    Writes `regression.json`, `regression.md` (tables) and `regression.png` (of the first setting, one patient a row:
    input, rounds, the healthy twin) into the folder `output`, whole or not at all.

    Args:
        settings: by name; None for `settings_of` the defaults.

    Raises:
        OutputError: the folder cannot be written. BackendError: onnxruntime is not installed.
    """
    defaults = load_defaults()
    settings = settings_of(defaults) if settings is None else settings
    with new_folder(output, replaceable=MARKER) as folder:
        classifier = Classifier(SEVERITY_JSON)
        engine = PieEngine.load(checkpoint=CHECKPOINT, backend=backend)
        chest = load_domain("chest")
        twins = [chest.phantom(index) for index in range(patients)]
        items = [
            Item(
                render(phantom), defaults.healthy_prompt, roi_mask(phantom), item_id=chest.item_id(index, diseased=True)
            )
            for index, phantom in enumerate(chest.phantom(index, diseased=True) for index in range(patients))
        ]
        regressions: list[Regression] = []
        for name, config in settings.items():
            results = engine.run(items, config)
            if not regressions:
                rows = [[*one.frames, render(twin)] for one, twin in zip(results[:4], twins, strict=False)]
                picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
                Image.fromarray(picture).save(folder / "regression.png", pnginfo=png_metadata(simulated=True))
            regressions.append(measure_regression(name, results, twins, classifier))
            log.info("%s: ratio %.3f to %.3f", name, regressions[-1].ratio[0], regressions[-1].ratio[-1])
        report = {
            "patients": patients,
            "backend": backend,
            "prompt": defaults.healthy_prompt,
            "negative_prompt": defaults.prompt,
            "settings": [one.to_dict() for one in regressions],
            "files": sorted(["regression.md", "regression.png", MARKER]),
        }
        (folder / MARKER).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "regression.md").write_text(to_markdown(regressions), encoding="utf-8")
    return regressions


def to_markdown(regressions: Sequence[Regression]) -> str:
    """Two tables: settings, and the rounds of the first of them."""
    lines = [
        "| settings | ratio, input to last round | its change | error against the healthy twin | normal | "
        "confidence | grey levels from the twin |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in regressions:
        count = one.change.n
        lines.append(
            f"| {one.name} | {one.ratio[0]:.3f} to {one.ratio[-1]:.3f} | {_cell(one.change, 3)} | "
            f"{_cell(one.error, 3)} | {one.normal} of {count} | {one.confidence[-1]:.3f} | "
            f"{_cell(one.twin_distance, 2)} |"
        )
    first = regressions[0]
    lines += [
        "",
        f"n = {first.twin_distance.n} [95 % bootstrap interval]; hearts not found: "
        f"{sum(one.unmeasured for one in regressions)}. "
        f"The input is {_cell(first.input_twin_distance, 2)} grey levels from the twin.",
        "",
        "| round | ratio | confidence |",
        "|---|---|---|",
    ]
    for number, (ratio, confidence) in enumerate(zip(first.ratio, first.confidence, strict=True)):
        lines.append(f"| {number or 'input'} | {ratio:.3f} | {confidence:.3f} |")
    return "\n".join(lines) + "\n"


def _twin_distance(result: Result, index: int, twin: Patient) -> float:
    assert result.mask is not None
    return float(np.abs(result.frames[index].astype(np.float64) - render(twin))[result.mask].mean())


def _cell(estimate: Estimate, digits: int) -> str:
    text = f"{estimate.mean:.{digits}f}"
    return text if estimate.low is None else f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _round(values: NDArray[np.floating], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("demo-regression-table"))
    parser.add_argument("--backend", default="onnxruntime", help="onnxruntime or torch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    regressions = evaluate_regression(arguments.output, arguments.patients, arguments.backend)
    log.info("%s", regressions[0].change)
    return 0 if (regressions[0].change.high or regressions[0].change.mean) < 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
