"""Measures of several runs as one summary: means over patients, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, DISTANCE, STRUCTURE, Measured
from pie_engine.evaluation.runs import Run
from pie_engine.evaluation.tables import ESTIMATE, Table, column_names, interval_text, means_of, to_csv
from pie_engine.files import sha256_file
from pie_engine.metrics.bootstrap import LEVEL, RESAMPLES, Estimate, mean_interval
from pie_engine.metrics.classifier import Classifier
from pie_engine.metrics.perceptual import PictureDistance

# Settings in which runs may differ and still be averaged without a word: they say where, not what.
_FREE = ("seed",)
_SHOWN = (CLIP_I, STRUCTURE, "ssim_inside", "change_inside", "decoded_leakage", "increment_inside")


def metrics_csv(measured: Sequence[Measured]) -> str:
    """One line per run and round; a cell is empty where a measure is not defined."""
    names = _names(measured)
    return to_csv(
        ["run", "item_id", "patient", "round", *column_names(names)],
        (
            [*one.run.labels, index, *(one.series[name][index] for name in names)]
            for one in measured
            for index in range(one.run.rounds + 1)
        ),
    )


def means_csv(summary: dict[str, Any]) -> str:
    """One line per round and measure: its mean over patients, the interval, and over how many patients it is."""
    return to_csv(["round", *ESTIMATE], means_of(summary["rounds"]))


def summarise(measured: Sequence[Measured], seed: int) -> dict[str, Any]:
    """Means over patients with bootstrap intervals; JSON.

    Several runs of one patient are averaged first. Each mean says over how many patients it is (n): runs can differ in
    rounds, and a measure may not be defined in all of them.

    Returns:
        "patients", "runs", "runs_by_round" (how many have come so far), "interval", "differ" (what the runs do not
        have in common), "final" (last rounds) and "rounds" (a list by measure), "monotonicity" (share of rising
        rounds, Spearman's rho, and R squared of a straight line, by measure) and "unevenness" of the displacement.
    """

    def over(value: Callable[[Measured], float | None]) -> dict[str, Any] | None:
        found = over_patients(((one.run.patient, value(one)) for one in measured), seed)
        return None if found is None else found.to_dict()

    def at(name: str, index: int) -> Callable[[Measured], float | None]:
        return lambda one: one.series[name][index] if index <= one.run.rounds else None

    def trend(name: str, statistic: str) -> Callable[[Measured], float | None]:
        return lambda one: getattr(one.trends[name], statistic) if name in one.trends else None

    names, most = _names(measured), max(one.run.rounds for one in measured)
    trends = list(dict.fromkeys(name for one in measured for name in one.trends))
    return {
        "patients": len({one.run.patient for one in measured}),
        "runs": len(measured),
        "runs_by_round": [sum(index <= one.run.rounds for one in measured) for index in range(most + 1)],
        "interval": describe_interval(seed),
        "differ": differing([one.run for one in measured]),
        "final": {name: over(at(name, -1)) for name in names},
        "monotonicity": {
            name: {
                "rising": over(trend(name, "rising")),
                "rho": over(trend(name, "rho")),
                "linearity": over(trend(name, "linearity")),
            }
            for name in trends
        },
        "unevenness": over(lambda one: one.unevenness),
        "rounds": {
            name: [{"round": index, **found} for index in range(most + 1) if (found := over(at(name, index)))]
            for name in names
        },
    }


def differing(runs: Sequence[Run]) -> list[str]:
    """What the runs do not have in common, so that their means mix it: settings, the prompt, the model, the method, and
    the region of interest where it differs between runs of one patient.

    Settings are compared as they were resolved: 3 is 3.0, and a scheduler that was left open is the one that it became.
    """
    seen: dict[str, set[str]] = {}
    regions: dict[str, set[str]] = {}
    for run in runs:
        provenance = run.provenance
        facts = {
            **run.settings,
            "prompt": provenance.get("simulated", {}).get("prompt"),
            "model": sorted(provenance.get("model", {}).get("hashes", {}).items()),
            "method": provenance.get("method", {"name": "pie"}),
        }
        for name, value in facts.items():
            if name not in _FREE:
                seen.setdefault(name, set()).add(_comparable(value))
        regions.setdefault(run.patient, set()).add(_region(provenance["input"].get("roi")))
    found = [name for name, values in seen.items() if len(values) > 1]
    found += ["region of interest"] * any(len(values) > 1 for values in regions.values())
    return sorted(found)


def _comparable(value: Any) -> str:
    """The same text for equal values, whether a number is written as 3 or 3.0."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: numbers(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [numbers(part) for part in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return json.dumps(numbers(value), sort_keys=True)


def _region(roi: dict[str, Any] | None) -> str:
    """What was drawn, and how it was moved; how many pixels it has may differ with the slice or the resolution."""
    if roi is None:
        return ""
    parts = [*roi["regions"], None, *roi.get("keep", ())]
    drawn = [one and {name: value for name, value in one.items() if name != "pixels"} for one in parts]
    return repr((drawn, roi.get("dilate"), roi.get("shift")))


def describe_interval(seed: int) -> dict[str, Any]:
    """How intervals were computed, for summary.json."""
    return {"level": LEVEL, "method": "bootstrap over patients, percentile", "resamples": RESAMPLES, "seed": seed}


def describe_models(models: Sequence[Classifier | PictureDistance]) -> dict[str, dict[str, str]]:
    """The files of what measured, by its names, with their hashes; for summary.json."""
    return {model.name: {"file": model.file.name, "sha256": sha256_file(model.file)} for model in models}


def describe_clip(folder: str | Path | None) -> dict[str, str] | None:
    """Hashes of a CLIP checkpoint's weights, by file; for summary.json."""
    if folder is None:
        return None
    return {one.name: sha256_file(one) for one in sorted(Path(folder).glob("*.safetensors"))}


def to_table(summary: dict[str, Any]) -> Table:
    """The summary's main measures, one row per round."""
    rounds = summary["rounds"]
    shown = [name for name in rounds if name.startswith((CONFIDENCE, DISTANCE)) or name in _SHOWN]
    shown = [name for name in shown if rounds[name]]
    last = max(entry["round"] for name in shown for entry in rounds[name])
    # Said where they differ: later rounds are then of other runs, not of runs that have changed.
    counts = summary["runs_by_round"]
    uneven = min(counts) < max(counts)
    rows = []
    for index in range(last + 1):
        entries = [next((entry for entry in rounds[name] if entry["round"] == index), None) for name in shown]
        cells = [interval_text(entry, ".4g") for entry in entries]
        rows.append(["input" if index == 0 else str(index), *cells, *[str(counts[index])] * uneven])
    runs, patients = summary["runs"], summary["patients"]
    heading = f"{runs} run{'s' * (runs != 1)} of {patients} patient{'s' * (patients != 1)}; mean"
    heading += " [95 % interval, bootstrap over patients]" if patients > 1 else ", no interval with one patient"
    notes = []
    for name, trend in summary["monotonicity"].items():
        rho, line = (
            "not defined" if trend[what] is None else f"{trend[what]['mean']:.2f}" for what in ("rho", "linearity")
        )
        rises = f"{trend['rising']['mean']:.0%} of rounds"
        notes.append(f"{name}: rises in {rises}, Spearman's rho {rho}, R2 of a straight line {line}")
    if (uneven_by := summary["unevenness"]) is not None:
        notes.append(f"displacement: at most {interval_text(uneven_by, '.2g')} of the way from n/N")
    return Table(["round", *shown, *["runs"] * uneven], rows, heading, notes)


def _names(measured: Sequence[Measured]) -> list[str]:
    """Every measure, in the first run's order; all runs are measured alike."""
    return list(measured[0].series)


def over_patients(values: Iterable[tuple[str, float | None]], seed: int) -> Estimate | None:
    """The mean over patients of each one's mean; None where no run has a value."""
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        if value is not None:
            by_patient.setdefault(patient, []).append(value)
    means = [sum(some) / len(some) for some in by_patient.values()]
    return mean_interval(means, seed=seed) if means else None
