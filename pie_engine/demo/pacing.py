"""How evenly each way of pacing progresses, measured: `python -m pie_engine.demo.pacing --domain chest --output DIR`.

Held-out phantoms towards the disease: the paper's rounds, an even pace by displacement and by the classifier's logit,
and what they are compared with. A phantom's disease is measured in its pixels, by no network.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pie_engine import Item, PieEngine, Result, RunConfig
from pie_engine.demo import DOMAINS
from pie_engine.demo.domain import Domain, load_domain
from pie_engine.equality import ByContent
from pie_engine.files import write_file
from pie_engine.metrics.bootstrap import mean_interval
from pie_engine.metrics.change import unevenness
from pie_engine.metrics.classifier import Classifier
from pie_engine.metrics.severity import Severity
from pie_engine.metrics.similarity import monotonicity, sharpness
from pie_engine.metrics.structure import structure_kept
from pie_engine.outputs.frames import png_metadata

log = logging.getLogger(__name__)
MARKER = "pacing.json"
CONSTANT, EVEN, BY_CLASSIFIER = "constant", "even", "even, by the classifier"


@dataclass(frozen=True, eq=False)
class Case(ByContent):
    """One phantom: what it is run with, and what its frames are measured by."""

    item: Item
    mask: NDArray[np.uint8]
    structure: NDArray[np.float32] | None


def ways(domain: Domain) -> dict[str, tuple[RunConfig, str]]:
    """Settings and method by name."""
    config = domain.defaults.run_config()
    even = replace(config, pace="even")
    noising = replace(config, inversion="noise")  # a walk inverts once, whatever the rounds do
    return {
        CONSTANT: (config, "pie"),
        EVEN: (even, "pie"),
        "interpolation": (config, "interpolation"),
        BY_CLASSIFIER: (replace(config, pace=f"even:{domain.classifier}"), "pie"),
        "one-shot": (config, "one-shot"),
        "walk": (noising, "walk"),
    }


def displacements(result: Result, mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """|m (z_n - z0)| after rounds 1 to N, [N]; m is the region's share of each latent."""
    height, width = result.original_latent.shape[1:]
    blocks = mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width)
    weight = (blocks > 0).mean((1, 3))
    moved = weight * (result.latents - result.original_latent)
    return np.asarray(np.sqrt(np.square(moved, dtype=np.float64).sum((1, 2, 3))))


def measure(
    domain: Domain, result: Result, case: Case, classifier: Classifier, constant: NDArray[np.float64]
) -> dict[str, Any]:
    """Of one progression; lists hold a value per frame, the input's first.

    Args:
        constant: `displacements` of the constant run; the ways that have an end of their own are measured by that.
    """
    inside, frames = case.mask > 0, result.frames
    way = displacements(result, case.mask)
    confidence = classifier.confidence(frames)
    severity = [domain.measure(frame, case.mask) for frame in frames]
    kept = None if case.structure is None else structure_kept(frames, case.structure, inside)
    sharp, half = [sharpness(frame, inside) for frame in frames], (len(frames) - 1) // 2
    logits = Severity.of(classifier).scale(confidence)  # as the pace takes them
    trend = monotonicity(severity) if np.isfinite(severity).all() else None
    return {
        "displacement": [0.0, *(way / way[-1]).tolist()],
        "confidence": confidence.tolist(),
        "severity": [float(value) for value in severity],
        "off_the_way": unevenness(way.tolist()),
        "end": float(way[-1] / constant[-1]),
        "rho": None if trend is None else trend.rho,
        "linearity": None if trend is None else trend.linearity,
        "logit_linearity": monotonicity(logits.tolist()).linearity,
        "sharpness_half_way": sharp[half] / sharp[0],
        "sharpness_end": sharp[-1] / sharp[0],
        "structure_half_way": None if kept is None else float(kept[half]),
        "structure_end": None if kept is None else float(kept[-1]),
        "confidence_end": float(confidence[-1]),
        "severity_end": float(severity[-1]),
        "evaluations": result.provenance["schedule"]["unet_evaluations"],
        "followed": result.provenance.get("pace", {}).get("severity", {}).get("followed"),
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over patients with bootstrap intervals; of lists, the mean of each frame."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        if not values:
            found[name] = None
        elif isinstance(values[0], list):
            found[name] = [round(float(value), 4) for value in np.nanmean(values, axis=0)]
        elif name == "followed":
            found[name] = sum(values)
        else:
            finite = [value for value in values if np.isfinite(value)]
            found[name] = {**mean_interval(finite).to_dict(), "least": min(finite), "most": max(finite)}
    return found


def evaluate_pacing(
    output: Path, name: str, patients: int = 20, backend: str = "onnxruntime", steps: int | None = None
) -> dict[str, Any]:
    """Run every way on the first `patients` held-out phantoms of a domain.

    Writes `pacing.json` into the folder `output`, and below `phantoms/` what was measured of each and `pacing.png` (the
    first one, a way a row): a study that was stopped goes on with the phantom that it was at.

    Args:
        steps: rounds; None for the demo's.

    Raises:
        OutputError: the folder cannot be written. BackendError: onnxruntime is not installed.
    """
    domain, classifier, kept = load_domain(name), None, output / "phantoms"
    kept.mkdir(parents=True, exist_ok=True)
    engine = None
    for index in range(patients):
        file = kept / f"{domain.item_id(index)}.json"
        if file.exists():
            continue
        engine = engine or PieEngine.load(checkpoint=domain.checkpoint, backend=backend)
        classifier = classifier or Classifier(domain.classifier)
        rows = run_case(engine, domain, make_case(domain, index), classifier, steps, kept if index == 0 else None)
        write_file(file, json.dumps(rows) + "\n")
        log.info("%s: phantom %d of %d", name, index + 1, patients)
    found = [json.loads((kept / f"{domain.item_id(index)}.json").read_text()) for index in range(patients)]
    report = {
        "domain": name, "patients": patients, "backend": backend, "measured": domain.measured,
        "ways": {way: summarise([rows[way] for rows in found]) for way in ways(domain)},
    }  # fmt: skip
    write_file(output / MARKER, json.dumps(report, indent=1) + "\n")
    return report


def make_case(domain: Domain, index: int) -> Case:
    """One of the held-out phantoms."""
    phantom = domain.phantom(index)
    mask, structure = domain.roi_mask(phantom), domain.structure
    item = Item(domain.render(phantom), domain.defaults.prompt, mask, item_id=domain.item_id(index))
    return Case(item, mask, None if structure is None else structure(phantom))


def run_case(
    engine: PieEngine, domain: Domain, case: Case, classifier: Classifier, steps: int | None, drawn: Path | None
) -> dict[str, dict[str, Any]]:
    """What `measure` gives of each way, by name; and their frames as a picture, into the folder `drawn`."""
    found: dict[str, dict[str, Any]] = {}
    constant, rows = None, []
    for way, (config, method) in ways(domain).items():
        result = engine.run(case.item, config if steps is None else replace(config, steps=steps), method=method)
        constant = displacements(result, case.mask) if constant is None else constant
        found[way] = measure(domain, result, case, classifier, constant)
        rows.append(np.concatenate(list(result.frames), axis=1))
    if drawn is not None:
        Image.fromarray(np.concatenate(rows)).save(drawn / "pacing.png", pnginfo=png_metadata(simulated=True))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--domain", choices=DOMAINS, default="chest")
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("demo-pacing"))
    parser.add_argument("--backend", default="onnxruntime", help="onnxruntime or torch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pie_engine.rounds").setLevel(logging.WARNING)
    evaluate_pacing(arguments.output, arguments.domain, arguments.patients, arguments.backend)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
