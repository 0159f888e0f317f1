"""How near rounds in a box are to whole ones, measured: `python -m pie_engine.demo.boxes --domain chest --output DIR`.

Held-out phantoms towards the disease with noising, the region as the domain has it and a small one within: each run
twice, whole and in a box. The domains' networks are too small to gain by it; what is measured is how far off it is.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pie_engine import Item, PieEngine, Result, RunConfig, RuntimeConfig
from pie_engine.demo import DOMAINS
from pie_engine.demo.domain import Domain, load_domain
from pie_engine.files import write_file
from pie_engine.metrics.classifier import Classifier

log = logging.getLogger(__name__)
MARKER = "boxes.json"
OWN, SMALL = "the domain's region", "a small region"
_SIDE = 40  # of the small region's square, in pixels of 128


def regions(domain: Domain, phantom: Any) -> dict[str, NDArray[np.uint8]]:
    """Masks by name: all of the region, and what of it lies in a square around its middle."""
    mask = domain.roi_mask(phantom)
    rows, columns = (int(axis.mean()) for axis in np.nonzero(mask))
    small = np.zeros_like(mask)
    top, left = max(0, rows - _SIDE // 2), max(0, columns - _SIDE // 2)
    small[top : top + _SIDE, left : left + _SIDE] = mask[top : top + _SIDE, left : left + _SIDE]
    return {OWN: mask, SMALL: small}


def compare(whole: Result, boxed: Result, mask: NDArray[np.uint8], classifier: Classifier) -> dict[str, Any]:
    """How far the frames of a run in boxes are from those of whole rounds.

    Returns:
        "psnr" of rounds 1 to N inside the region in dB, None where not a pixel differs; "grey_levels", the most that a
        pixel differs; "confidence", the most that the classifier's does; "outside", whether pixels there are the same;
        "whole", how many rounds were; "estimate", the run's own of its last frame.
    """
    inside, one, two = mask > 0, whole.frames.astype(float), boxed.frames.astype(float)
    squares = np.square(one[1:, inside] - two[1:, inside]).mean((1, 2))
    facts = boxed.provenance["regional"]
    confidences = [classifier.confidence(result.frames) for result in (whole, boxed)]
    return {
        "psnr": [10 * float(np.log10(255**2 / value)) if value else None for value in squares],
        "grey_levels": float(np.abs(one - two).max()),
        "confidence": float(np.abs(confidences[0] - confidences[1]).max()),
        "outside": bool((whole.frames[:, ~inside] == boxed.frames[:, ~inside]).all()),
        "whole": len(facts["whole"]) if facts["used"] else whole.config.steps,
        "estimate": facts.get("grey_levels"),
        "share": None if not facts["used"] else _share(facts),
    }


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over patients: the worst of each round, the worst of all, means of what a run does."""
    rounds = zip(*(row["psnr"] for row in rows), strict=True)
    by_round = [[value for value in column if value is not None] for column in rounds]
    worst = [min(values) if values else None for values in by_round]
    told = [value for value in worst if value is not None]
    return {
        "psnr": [None if value is None else round(value, 1) for value in worst],
        "worst": round(min(told), 1) if told else None,
        "grey_levels": max(row["grey_levels"] for row in rows),
        "confidence": max(row["confidence"] for row in rows),
        "outside": all(row["outside"] for row in rows),
        "whole": float(np.mean([row["whole"] for row in rows])),
        "estimate": max(row["estimate"] or 0.0 for row in rows),
        "share": float(np.mean([row["share"] for row in rows if row["share"] is not None] or [1.0])),
    }


def evaluate_boxes(
    output: Path, name: str, patients: int = 20, backend: str = "onnxruntime", **settings: Any
) -> dict[str, Any]:
    """Run both ways on the first `patients` held-out phantoms of a domain.

    Writes `boxes.json` into the folder `output`, and below `phantoms/` what was measured of each: a study that was
    stopped goes on with the phantom that it was at.

    Args:
        settings: of `RunConfig`, beside the domain's own.

    Raises:
        OutputError: the folder cannot be written. BackendError: onnxruntime is not installed.
    """
    domain, kept = load_domain(name), output / "phantoms"
    kept.mkdir(parents=True, exist_ok=True)
    config = replace(domain.defaults.run_config(), inversion="noise", **settings)
    engines = [
        PieEngine.load(checkpoint=domain.checkpoint, backend=backend, runtime=RuntimeConfig(regional=mode))
        for mode in ("off", "on")
    ]
    classifier = Classifier(domain.classifier)
    for index in range(patients):
        file = kept / f"{domain.item_id(index)}.json"
        if file.exists():
            continue
        write_file(file, json.dumps(run_case(engines, domain, index, config, classifier)) + "\n")
        log.info("%s: phantom %d of %d", name, index + 1, patients)
    found = [json.loads((kept / f"{domain.item_id(index)}.json").read_text()) for index in range(patients)]
    report = {
        "domain": name, "patients": patients, "backend": backend, "steps": config.steps,
        "regions": {region: summarise([rows[region] for rows in found]) for region in (OWN, SMALL)},
    }  # fmt: skip
    write_file(output / MARKER, json.dumps(report, indent=1) + "\n")
    return report


def run_case(
    engines: Sequence[PieEngine], domain: Domain, index: int, config: RunConfig, classifier: Classifier
) -> dict[str, dict[str, Any]]:
    """What `compare` gives of one phantom, by region."""
    phantom, found = domain.phantom(index), {}
    for region, mask in regions(domain, phantom).items():
        item = Item(domain.render(phantom), domain.defaults.prompt, mask, item_id=domain.item_id(index))
        whole, boxed = (engine.run(item, replace(config, feather=2)) for engine in engines)
        found[region] = compare(whole, boxed, mask, classifier)
    return found


def _share(facts: dict[str, Any]) -> float:
    """Of the picture that the box is."""
    box, (height, width) = facts["box"], facts["latents"]
    return float(box["height"] * box["width"] / (height * width))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--domain", choices=DOMAINS, default="chest")
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("demo-boxes"))
    parser.add_argument("--backend", default="onnxruntime", help="onnxruntime, openvino or torch")
    parser.add_argument("--guidance-scale", type=float, help="instead of the domain's")
    parser.add_argument("--strength", type=float, help="instead of the domain's")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pie_engine.rounds").setLevel(logging.WARNING)
    logging.getLogger("pie_engine.imaging").setLevel(logging.ERROR)
    given = {name: getattr(arguments, name) for name in ("guidance_scale", "strength")}
    settings = {name: value for name, value in given.items() if value is not None}
    evaluate_boxes(arguments.output, arguments.domain, arguments.patients, arguments.backend, **settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
