"""PIE against baselines: each method's figures, and how PIE and they differ where they have come equally far."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pie_engine import __version__
from pie_engine.errors import ConfigError, InputError
from pie_engine.evaluation.measure import CLIP_I, CONFIDENCE, Measured, measure_run
from pie_engine.evaluation.plots import check_plots
from pie_engine.evaluation.runs import Run, find_runs
from pie_engine.evaluation.summary import describe_clip, describe_judges, differing, summarise
from pie_engine.files import check_folder, new_folder
from pie_engine.metrics.bootstrap import mean_interval
from pie_engine.metrics.matching import Matched, match_curves

log = logging.getLogger(__name__)
SUMMARY, TABLE, PLOT = "summary.json", "compare.csv", "compare.png"
PIE = "pie"
SSIM = "ssim_inside"


def compare(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    classifiers: Sequence[str | Path],
    clip: str | Path | None = None,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Compare runs by their methods, and write figures and a plot into the folder `output`, whole or not at all.

    Args:
        folders: runs' folders, or folders that hold some: PIE's, and a baseline's at least, of the same patients.
        output: an earlier comparison in it is replaced; a folder that holds anything else is refused.
        classifiers: JSON files that declare classifiers, at least one.
        clip: folder of a CLIP checkpoint: CLIP-I is matched too.
        seed: of the bootstrap.
        on_run: called with each run's name before it is measured.

    Returns:
        summary.json's content: "methods" (by name: patients, runs, and means with intervals of every measure in the
        last round, "final", and per round, "rounds"), "matched" (see `match_methods`), "differ", "models" and "files".

    Raises:
        InputError: a folder is not a run's or damaged, or PIE or a baseline is missing. ConfigError: no classifier.
            ConfigError, CheckpointError, BackendError: a classifier or the CLIP checkpoint cannot be used, or a package
            is missing. OutputError: `output` cannot be written.
    """
    from pie_engine.evaluation.comparison_plot import draw
    from pie_engine.metrics.classifier import read_classifiers
    from pie_engine.metrics.clip import ClipEncoder

    output = Path(output)
    if not classifiers:
        raise ConfigError("no classifier is given, and confidence is what is compared; pass --classifier JSON")
    check_folder(output, replaceable=SUMMARY)
    check_plots()
    runs = find_runs(folders)
    names = label_methods(runs)
    if PIE not in names or len(set(names)) < 2:
        raise InputError(
            f"the runs are of {', '.join(dict.fromkeys(names))} alone; pass PIE's and a baseline's (run --method NAME)"
        )
    judges = read_classifiers(classifiers)
    encoder = None if clip is None else ClipEncoder(clip)
    methods: dict[str, list[Measured]] = {name: [] for name in sorted(set(names), key=_rank)}
    for run, name in zip(runs, names, strict=True):
        on_run(run.name)
        methods[name].append(measure_run(run, encoder, judges))
    summary = _summarise(methods, seed)
    for line in _warnings(summary):
        log.warning("%s", line)
    summary["models"] = {"classifiers": describe_judges(judges), "clip": describe_clip(clip)}
    summary |= {"version": __version__, "files": [TABLE, PLOT, SUMMARY]}
    picture = draw(summary)
    with new_folder(output, replaceable=SUMMARY) as folder:
        (folder / TABLE).write_text(_to_csv(methods), encoding="utf-8")
        (folder / PLOT).write_bytes(picture)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def label_methods(runs: Sequence[Run]) -> list[str]:
    """The name of each run's method; with its total strength where runs of one method differ in that.

    Raises:
        InputError: provenance names no method that there is.
    """
    found: list[tuple[str, float | None]] = []
    for run in runs:
        method = run.provenance.get("method", {"name": PIE})
        try:
            name, strength = str(method["name"]), method.get("total_strength")
            found.append((name, None if strength is None else float(strength)))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{run.name} does not say which method made it ({type(error).__name__}); run pie-engine run again"
            ) from error
    strengths: dict[str, set[float | None]] = {}
    for name, strength in found:
        strengths.setdefault(name, set()).add(strength)
    several = {name for name, values in strengths.items() if len(values) > 1}
    return [f"{name} {strength:g}" if name in several and strength is not None else name for name, strength in found]


def match_methods(
    pie: Sequence[Measured], other: Sequence[Measured], confidence: str, similarity: str
) -> list[dict[str, Any]]:
    """PIE minus a baseline for each patient that both have, by `match_curves`.

    Several runs of a patient: each of PIE's against each of the baseline's, averaged.

    Returns:
        Per patient, "patient", "confidence" (at equal similarity) and "similarity" (at equal confidence), each with the
        `Matched` fields, or None where it is not defined.
    """

    def matched(x: str, y: str, patient: str, *, falling: bool) -> dict[str, Any] | None:
        pairs = [
            match_curves(_curve(a, x, y), _curve(b, x, y), falling=falling)
            for a in pie
            for b in other
            if a.run.patient == b.run.patient == patient
        ]
        return _average([pair for pair in pairs if pair is not None])

    return [
        {
            "patient": patient[:12],
            "confidence": matched(similarity, confidence, patient, falling=True),
            "similarity": matched(confidence, similarity, patient, falling=False),
        }
        for patient in dict.fromkeys(one.run.patient for one in pie)
        if any(one.run.patient == patient for one in other)
    ]


def _curve(one: Measured, x: str, y: str) -> list[tuple[float, float]]:
    """The frames after the input."""
    points = zip(one.series[x][1:], one.series[y][1:], strict=True)
    return [(a, b) for a, b in points if a is not None and b is not None]


def _average(found: list[Matched]) -> dict[str, Any] | None:
    if not found:
        return None
    rows = [one.to_dict() for one in found]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _summarise(methods: dict[str, list[Measured]], seed: int) -> dict[str, Any]:
    measured = [one for group in methods.values() for one in group]
    judged = [name for name in measured[0].series if name.startswith(CONFIDENCE)]
    similarities = [name for name in (CLIP_I, SSIM) if name in measured[0].series]
    summary: dict[str, Any] = {"methods": {}, "matched": []}
    for name, group in methods.items():
        found = summarise(group, seed)
        summary["methods"][name] = {key: found[key] for key in ("patients", "runs", "final", "rounds")}
        summary["interval"] = found["interval"]
    for name, group in methods.items():
        if name == PIE:
            continue
        for confidence in judged:
            for similarity in similarities:
                rows = match_methods(methods[PIE], group, confidence, similarity)
                summary["matched"].append(
                    {
                        "method": name,
                        "classifier": confidence.removeprefix(CONFIDENCE),
                        "similarity_measure": similarity,
                        "patients": len(rows),
                        "confidence": _estimate(rows, "confidence", seed),
                        "similarity": _estimate(rows, "similarity", seed),
                        "by_patient": rows,
                    }
                )
    runs = [one.run for one in measured]
    # A control has another prompt on purpose.
    asked = [run for run in runs if run.provenance.get("method", {}).get("name") != "control"]
    summary["differ"] = [
        name for name in differing(runs) if name != "method" and (name != "prompt" or name in differing(asked))
    ]
    # Of one method's runs; the total strength is in its name.
    summary["differ"] += [
        option.replace("_", " ")
        for option in ("start_prompt", "healthy_prompt")
        if any(
            len({one.run.provenance.get("method", {}).get(option) for one in group}) > 1 for group in methods.values()
        )
    ]
    return summary


def _estimate(rows: list[dict[str, Any]], what: str, seed: int) -> dict[str, Any]:
    """Means over patients with intervals, paired: each patient's own difference is what is drawn."""
    defined = [row[what] for row in rows if row[what] is not None]
    return {
        "defined": len(defined),
        **{
            figure: mean_interval([one[figure] for one in defined], seed=seed).to_dict() if defined else None
            for figure in ("mean", "end")
        },
    }


def _warnings(summary: dict[str, Any]) -> list[str]:
    lines = []
    if summary["differ"]:
        lines.append(f"the runs differ in {', '.join(summary['differ'])} beside the method: the comparison mixes them")
    own = summary["methods"][PIE]["patients"]
    shared = {row["method"]: row["patients"] for row in summary["matched"]}
    for name, patients in shared.items():
        if patients < max(own, summary["methods"][name]["patients"]):
            lines.append(f"patients with runs of both PIE and {name}: {patients}; the others are not matched")
    return lines


def _rank(name: str) -> tuple[bool, str]:
    return name != PIE, name


def _to_csv(methods: dict[str, list[Measured]]) -> str:
    """One line per run and round; a cell is empty where a measure is not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(next(iter(methods.values()))[0].series)
    writer.writerow(["method", "run", "item_id", "patient", "round", *names])
    for name, group in methods.items():
        for one in group:
            about = [name, one.run.name, one.run.provenance.get("item_id", ""), one.run.patient[:12]]
            for index in range(one.run.rounds + 1):
                writer.writerow([*about, index, *(one.series[measure][index] for measure in names)])
    return text.getvalue()
