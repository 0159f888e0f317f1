"""Figures of several runs as one summary: means over patients, with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, DISTANCE, STRUCTURE, Measured
from pie_engine.files import sha256_file
from pie_engine.metrics.bootstrap import LEVEL, RESAMPLES, Estimate, mean_interval

if TYPE_CHECKING:
    from pie_engine.evaluation.runs import Run
    from pie_engine.metrics.classifier import Classifier
    from pie_engine.metrics.perceptual import PictureDistance

# Settings in which runs may differ and still be averaged without a word: they say where, not what.
_FREE = ("seed",)
_SHOWN = (CLIP_I, STRUCTURE, "ssim_inside", "change_inside", "decoded_leakage", "increment_inside")


def to_csv(measured: Sequence[Measured]) -> str:
    """One line per run and round; a cell is empty where a measure is not defined."""
    names = _names(measured)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "item_id", "patient", "round", *names])
    for one in measured:
        for index in range(one.run.rounds + 1):
            values = [one.series[name][index] for name in names]
            writer.writerow([one.run.name, one.run.provenance.get("item_id", ""), one.run.patient[:12], index, *values])
    return text.getvalue()


def summarise(measured: Sequence[Measured], seed: int) -> dict[str, Any]:
    """Means over patients with bootstrap intervals; JSON.

    Several runs of one patient are averaged first. Each figure says over how many patients it is (n): runs can differ
    in rounds, and a measure may not be defined in all of them.

    Returns:
        "patients", "runs", "runs_by_round" (how many have come so far), "interval", "differ" (what the runs do not
        have in common), "final" (last rounds) and "rounds" (a list by measure), and "monotonicity" (share of rising
        rounds, and Spearman's rho, by measure).
    """

    def over(value: Callable[[Measured], float | None]) -> dict[str, Any] | None:
        found = over_patients(((one.run.patient, value(one)) for one in measured), seed)
        return None if found is None else found.to_dict()

    def at(name: str, index: int) -> Callable[[Measured], float | None]:
        return lambda one: one.series[name][index] if index <= one.run.rounds else None

    def trend(name: str, figure: str) -> Callable[[Measured], float | None]:
        return lambda one: getattr(one.trends[name], figure) if name in one.trends else None

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
            }
            for name in trends
        },
        "rounds": {
            name: [{"round": index, **found} for index in range(most + 1) if (found := over(at(name, index)))]
            for name in names
        },
    }


def differing(runs: Sequence[Run]) -> list[str]:
    """What the runs do not have in common, so that their means mix it: settings, the prompt, the model, the method, and
    the region of interest where it differs between runs of one patient.
    """
    seen: dict[str, set[str]] = {}
    regions: dict[str, set[str]] = {}
    for run in runs:
        provenance = run.provenance
        facts = {
            **provenance["settings"],
            "prompt": provenance.get("simulated", {}).get("prompt"),
            "model": sorted(provenance.get("model", {}).get("hashes", {}).items()),
            "method": provenance.get("method", {"name": "pie"}),
        }
        for name, value in facts.items():
            if name not in _FREE:
                seen.setdefault(name, set()).add(repr(value))
        regions.setdefault(run.patient, set()).add(_region(provenance["input"].get("roi")))
    found = [name for name, values in seen.items() if len(values) > 1]
    found += ["region of interest"] * any(len(values) > 1 for values in regions.values())
    return sorted(found)


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


def describe_judges(judges: Sequence[Classifier | PictureDistance]) -> dict[str, dict[str, str]]:
    """The files that judged, by the judges' names, with their hashes; for summary.json."""
    return {one.name: {"file": one.file.name, "sha256": sha256_file(one.file)} for one in judges}


def describe_clip(folder: str | Path | None) -> dict[str, str] | None:
    """Hashes of a CLIP checkpoint's weights, by file; for summary.json."""
    if folder is None:
        return None
    return {one.name: sha256_file(one) for one in sorted(Path(folder).glob("*.safetensors"))}


def to_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each as lines of plain text, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def to_table(summary: dict[str, Any]) -> str:
    """The summary's main figures as plain text, one line per round."""
    rounds = summary["rounds"]
    shown = [name for name in rounds if name.startswith((CONFIDENCE, DISTANCE)) or name in _SHOWN]
    shown = [name for name in shown if rounds[name]]
    last = max(entry["round"] for name in shown for entry in rounds[name])
    # Said where they differ: later rounds are then of other runs, not of runs that have changed.
    counts = summary["runs_by_round"]
    uneven = min(counts) < max(counts)
    rows = [["round", *shown, *["runs"] * uneven]]
    for index in range(last + 1):
        cells = [next((_cell(e) for e in rounds[name] if e["round"] == index), "") for name in shown]
        rows.append(["input" if index == 0 else str(index), *cells, *[str(counts[index])] * uneven])
    lines = to_columns(rows)
    runs, patients = summary["runs"], summary["patients"]
    head = f"{runs} run{'s' * (runs != 1)} of {patients} patient{'s' * (patients != 1)}; mean"
    head += " [95 % interval, bootstrap over patients]" if patients > 1 else ", no interval with one patient"
    for name, trend in summary["monotonicity"].items():
        rho = trend["rho"]
        lines.append(
            f"{name}: rises in {trend['rising']['mean']:.0%} of rounds, Spearman's rho "
            + ("not defined" if rho is None else f"{rho['mean']:.2f}")
        )
    return "\n".join([head, *lines])


def _cell(entry: dict[str, Any]) -> str:
    text = f"{entry['mean']:.4g}"
    return text if entry["low"] is None else f"{text} [{entry['low']:.4g}, {entry['high']:.4g}]"


def _names(measured: Sequence[Measured]) -> list[str]:
    """Every measure, in the first run's order; all runs are measured alike."""
    return list(measured[0].series)


def over_patients(values: Iterable[tuple[str, float | None]], seed: int) -> Estimate | None:
    """The mean over patients of each one's mean; None where no run has a value."""
    own: dict[str, list[float]] = {}
    for patient, value in values:
        if value is not None:
            own.setdefault(patient, []).append(value)
    return mean_interval([sum(some) / len(some) for some in own.values()], seed=seed) if own else None
