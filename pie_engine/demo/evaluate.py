"""Check what the demo claims, on phantoms that no stage has seen: `python -m pie_engine.demo.evaluate --output DIR`."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pie_engine import Item, PieEngine, Result, RunConfig
from pie_engine.demo.assets import CHECKPOINT, SEVERITY_JSON, DemoDefaults, load_defaults
from pie_engine.demo.cardiothoracic import measure_ctr, ratio_or_nan
from pie_engine.demo.data import cohort, healthy_cohort
from pie_engine.demo.phantom import Patient, render, roi_mask
from pie_engine.metrics.classifier import Classifier

log = logging.getLogger(__name__)
CTR_PHANTOMS = 200  # true phantoms on which the measurement's own error is stated


@dataclass(frozen=True)
class Check:
    """One claim: a measured value against its limit."""

    claim: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Progression:
    """Means over patients. Frame lists have N + 1 values (0 = input), round lists N."""

    prompt: str
    confidence: list[float]
    ctr: list[float]
    increment_inside: list[float]  # latent units, root mean square, per round
    leakage_before: list[float]  # grey levels against the decoded original, before compositing, per round
    leakage_latent: list[float]  # the same in latent units
    leakage_after: list[float]  # grey levels against the input, after compositing, per round
    unmeasured_frames: int  # where no ratio could be measured; left out of `ctr`


def run_progression(
    engine: PieEngine, patients: Sequence[Patient], prompt: str, config: RunConfig, classifier: Classifier
) -> tuple[Progression, list[Result]]:
    """Simulate one prompt for a cohort and measure every frame."""
    items = [
        Item(image=render(patient), mask=roi_mask(patient), prompt=prompt, item_id=str(patient.seed))
        for patient in patients
    ]
    results = engine.run(items, replace(config, leakage=True))
    frames = np.stack([result.frames for result in results])  # [P, N + 1, 128, 128, 3]
    confidence = np.stack([classifier.confidence(one) for one in frames])
    ratios = np.array([[ratio_or_nan(frame) for frame in one] for one in frames])
    changes = {
        name: np.array([getattr(result.change, name) for result in results])  # [P, N]
        for name in ("increment_inside", "decoded_outside", "displacement_outside", "frame_outside")
    }
    progression = Progression(
        prompt=prompt,
        confidence=_round(confidence.mean(0)),
        ctr=_round(np.nanmean(ratios, axis=0)),
        increment_inside=_round(changes["increment_inside"].mean(0), 5),
        leakage_before=_round(changes["decoded_outside"].mean(0)),
        leakage_latent=_round(changes["displacement_outside"].mean(0), 5),
        leakage_after=_round(changes["frame_outside"].max(0), 6),
        unmeasured_frames=int(np.isnan(ratios).sum()),
    )
    return progression, results


def _round(values: NDArray[np.floating], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


def ctr_error(count: int = CTR_PHANTOMS) -> dict[str, float]:
    """How far the measured ratio is from the true one, on phantoms without effusion."""
    errors = [measure_ctr(render(p)).ratio - p.ctr for p in cohort("test", count, effusion_rate=0.0)]
    return {
        "phantoms": count,
        "mean_absolute": round(float(np.mean(np.abs(errors))), 5),
        "bias": round(float(np.mean(errors)), 5),
        "largest": round(float(np.max(np.abs(errors))), 5),
    }


def check(enlarged: Progression, controls: Sequence[Progression]) -> list[Check]:
    """What the demo claims, each claim against its limit."""
    start, end = enlarged.confidence[0], enlarged.confidence[-1]
    rise = enlarged.ctr[-1] - enlarged.ctr[0]
    control = max(max(one.confidence) for one in controls)
    increments = enlarged.increment_inside
    growth = float(np.max(np.divide(increments[1:], increments[:-1])))
    leak = max(max(one.leakage_after) for one in (enlarged, *controls))
    return [
        Check("confidence of the input is below", start, 0.2, start < 0.2),
        Check("confidence of the last round is above", end, 0.8, end > 0.8),
        Check("cardiothoracic ratio rises by at least", round(rise, 4), 0.08, rise >= 0.08),
        Check("confidence with an empty or a healthy prompt stays below", control, 0.3, control < 0.3),
        Check("each increment inside the ROI over the one before is below", round(growth, 4), 1.0, growth < 1),
        Check("leakage outside the ROI after compositing is", leak, 0.0, leak == 0),
    ]


def evaluate(output: Path, defaults: DemoDefaults, patients: int = 20, backend: str = "torch") -> list[Check]:
    """Run the three prompts on `patients` of the test split; write tables and pictures to `output`."""
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend=backend)
    classifier = Classifier(SEVERITY_JSON)
    cohort_ = healthy_cohort("test", patients)
    config = defaults.run_config()
    output.mkdir(parents=True, exist_ok=True)
    progressions = []
    for name, prompt in (("enlarged", defaults.prompt), ("empty", ""), ("healthy", defaults.healthy_prompt)):
        progression, results = run_progression(engine, cohort_, prompt, config, classifier)
        log.info("%s: confidence %s, ratio %s", name, progression.confidence[-1], progression.ctr[-1])
        progressions.append(progression)
        rows = [np.concatenate(list(result.frames), axis=1) for result in results[:4]]
        Image.fromarray(np.concatenate(rows)).save(output / f"{name}.png")
    checks = check(progressions[0], progressions[1:])
    report = {
        "patients": patients,
        "backend": backend,
        "settings": config.to_dict(),
        "ctr_error": ctr_error(),
        "checks": [asdict(one) for one in checks],
        "progressions": [asdict(one) for one in progressions],
    }
    (output / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output / "evaluation.md").write_text(to_markdown(report, progressions, checks), encoding="utf-8")
    return checks


def to_markdown(report: dict, progressions: Sequence[Progression], checks: Sequence[Check]) -> str:
    """What was measured, as tables."""
    error = report["ctr_error"]
    lines = [
        f"{report['patients']} held-out healthy phantoms, {report['settings']['steps']} rounds, guidance "
        f"{report['settings']['guidance_scale']:g}, backend {report['backend']}. The cardiothoracic ratio is measured "
        f"without learning; on {error['phantoms']} true phantoms its mean absolute error is {error['mean_absolute']} "
        f"(largest {error['largest']}).",
        "",
        "| claim | limit | measured | |",
        "|---|---|---|---|",
        *(f"| {one.claim} | {one.limit:g} | {one.value:g} | {'pass' if one.passed else 'FAIL'} |" for one in checks),
    ]
    header = "| round | confidence | ratio | ROI increment | leakage before compositing | after |"
    for one in progressions:
        lines += ["", f"Prompt: `{one.prompt or '(empty)'}`", "", header, "|---|---|---|---|---|---|"]
        lines.append(f"| input | {one.confidence[0]:.3f} | {one.ctr[0]:.3f} | | | |")
        rounds = zip(
            one.confidence[1:], one.ctr[1:], one.increment_inside, one.leakage_before, one.leakage_after, strict=True
        )
        for number, (confidence, ratio, increment, before, after) in enumerate(rounds, start=1):
            lines.append(f"| {number} | {confidence:.3f} | {ratio:.3f} | {increment:.4f} | {before:.3f} | {after:g} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("demo-evaluation"))
    parser.add_argument("--backend", default="torch", help="torch or onnxruntime")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    checks = evaluate(arguments.output, load_defaults(), arguments.patients, arguments.backend)
    for one in checks:
        log.info("%s: %s %g: %g", "pass" if one.passed else "FAIL", one.claim, one.limit, one.value)
    return 0 if all(one.passed for one in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
