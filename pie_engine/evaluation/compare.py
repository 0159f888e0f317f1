"""PIE against baselines: each method's measures, and how PIE and they differ where they have come equally far."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pie_engine import __version__
from pie_engine.errors import ConfigError, InputError, use
from pie_engine.evaluation.compare_plot import draw_comparison
from pie_engine.evaluation.compare_tables import frames_csv, means_csv
from pie_engine.evaluation.measures import CLIP_I, CONFIDENCE, STRUCTURE, Measured, measure_run
from pie_engine.evaluation.results import MEANS, check_results, write_results
from pie_engine.evaluation.runs import Run, find_runs, read_structures
from pie_engine.evaluation.summary import describe_clip, describe_models, differing, summarise
from pie_engine.metrics.bootstrap import mean_interval
from pie_engine.metrics.classifier import read_classifiers
from pie_engine.metrics.clip import ClipEncoder
from pie_engine.metrics.matching import Matched, match_curves

log = logging.getLogger(__name__)
TABLE = "compare.csv"
PIE = "pie"
SSIM = "ssim_inside"
# Of each method's own summary.
_KEPT = ("patients", "runs", "final", "rounds", "monotonicity", "unevenness")


def compare(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    classifiers: Sequence[str | Path],
    clip: str | Path | None = None,
    structures: str | Path | None = None,
    by: Sequence[str] = (),
    figures: str = "png",
    trust: bool = False,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Compare runs by their methods, and write tables, a plot and a summary into `output`, whole or not at all.

    Args:
        folders: runs' folders, or folders that hold some: PIE's, and a baseline's at least, of the same patients.
        output: an earlier comparison in it is replaced; a folder that holds anything else is refused.
        classifiers: JSON files that declare classifiers, at least one.
        clip: folder of a CLIP checkpoint: CLIP-I is matched too.
        structures: folder of a map per run, ITEM_ID.png: what is kept of the patient's own structure is matched too.
        by: settings, as provenance names them: runs of one method that differ in these are several methods. Every
            PIE is compared with every baseline.
        figures: plots are PNG files; "svg" or "pdf" writes them as that too.
        trust: whether models in TorchScript are loaded, which are programs (SECURITY.md); ONNX needs no trust.
        seed: of the bootstrap.
        on_run: called with each run's name before it is measured.

    Returns:
        summary.json's content: "methods" (by name: patients, runs, and means with intervals of every measure in the
        last round, "final", and per round, "rounds", how evenly they rise, "monotonicity" and "unevenness", and the
        values of `by`, "settings"), "matched" (see
        `match_methods`), "differ", "models" and "files".

    Raises:
        InputError: a folder is not a run's or damaged, PIE or a baseline is missing, or a run's map is missing, does
            not fit, or shows what its input hardly does. ConfigError: no classifier, `by` names no setting, or
            `figures` is unknown. ConfigError, CheckpointError, BackendError: a classifier or the CLIP checkpoint cannot
            be used, or a package is missing. OutputError: `output` cannot be written.
    """
    output = Path(output)
    if not classifiers:
        raise ConfigError(
            f"no classifier is given, so there is no confidence to compare; pass {use('classifiers', 'JSON')}",
            field="classifiers",
        )
    check_results(output, figures)
    runs = find_runs(folders)
    names = label_methods(runs, by)
    if {_is_pie(name) for name in names} != {True, False}:
        raise InputError(
            f"the runs are of {'; '.join(dict.fromkeys(names))} alone; pass PIE's and a baseline's "
            f"({use('method', 'NAME')})"
        )
    patients = [{run.patient for run, name in zip(runs, names, strict=True) if _is_pie(name) == pie} for pie in (0, 1)]
    if patients[0].isdisjoint(patients[1]):
        raise InputError(
            "no patient has runs of both PIE and a baseline, so there is nothing to compare; pass runs on the same "
            "input files"
        )
    maps = read_structures(structures, runs)
    read = read_classifiers(classifiers, trust=trust)
    encoder = None if clip is None else ClipEncoder(clip)
    methods: dict[str, list[Measured]] = {name: [] for name in sorted(set(names), key=_rank)}
    for run, name, structure in zip(runs, names, maps, strict=True):
        on_run(run.name)
        methods[name].append(measure_run(run, encoder, read, structure=structure))
    in_names = _settings_in_names(runs, by)
    summary = _summarise(methods, by, in_names, seed)
    for line in _warnings(summary, [name for name in by if name not in in_names]):
        log.warning("%s", line)
    summary["models"] = {"classifiers": describe_models(read), "clip": describe_clip(clip)}
    summary["version"] = __version__
    tables = {TABLE: frames_csv(methods), MEANS: means_csv(summary)}
    write_results(output, summary, {**tables, **draw_comparison(summary, figures)})
    return summary


def label_methods(runs: Sequence[Run], by: Sequence[str] = ()) -> list[str]:
    """The name of each run's method; with its total strength, and the settings `by`, where its runs differ in them.

    Raises:
        InputError: provenance names an unknown method. ConfigError: one of `by` is not a setting of every run.
    """
    known = sorted(set.intersection(*({*run.settings} for run in runs)))
    for setting in by:
        if setting not in known:
            raise ConfigError(f"by {setting!r} is not a setting of the runs; pass one of {', '.join(known)}")
    by_name: dict[str, list[dict[str, Any]]] = {}
    found = [_method(run) | {setting: run.settings[setting] for setting in by} for run in runs]
    for facts in found:
        by_name.setdefault(facts["name"], []).append(facts)
    return [_label(facts, by_name[facts["name"]]) for facts in found]


def _method(run: Run) -> dict[str, Any]:
    """Its name and its total strength."""
    method = run.provenance.get("method", {"name": PIE})
    try:
        name, strength = str(method["name"]), method.get("total_strength")
        return {"name": name, "total_strength": None if strength is None else float(strength)}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{run.name} does not say which method made it ({type(error).__name__}); run pie-engine run again"
        ) from error


def _label(facts: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    differs = [name for name in facts if any(other[name] != facts[name] for other in others)]
    strength = facts["total_strength"]
    label = f"{facts['name']} {strength:g}" if "total_strength" in differs and strength is not None else facts["name"]
    parts = [f"{name.replace('_', ' ')} {_as_text(facts[name])}" for name in differs if name != "total_strength"]
    return ", ".join([label, *parts])


def _as_text(value: Any) -> str:
    """1 and 1.0 are one setting."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


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


def _summarise(
    methods: dict[str, list[Measured]], by: Sequence[str], in_names: Sequence[str], seed: int
) -> dict[str, Any]:
    """`in_names`: those of `by` that stand in the methods' names."""
    measured = [one for group in methods.values() for one in group]
    confidences = [name for name in measured[0].series if name.startswith(CONFIDENCE)]
    similarities = [name for name in (CLIP_I, SSIM, STRUCTURE) if name in measured[0].series]
    summary: dict[str, Any] = {"methods": {}, "matched": []}
    for name, group in methods.items():
        found = summarise(group, seed)
        summary["methods"][name] = {key: found[key] for key in _KEPT}
        if by:
            summary["methods"][name]["settings"] = {one: group[0].run.settings[one] for one in by}
        summary["interval"] = found["interval"]
    pies = [name for name in methods if _is_pie(name)]
    for pie, name in itertools.product(pies, methods):
        if name in pies:
            continue
        for confidence in confidences:
            for similarity in similarities:
                rows = match_methods(methods[pie], methods[name], confidence, similarity)
                summary["matched"].append(
                    {
                        "pie": pie,
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
    towards = [run for run in runs if run.provenance.get("method", {}).get("name") != "control"]
    summary["differ"] = [
        name
        for name in differing(runs)
        if name not in ("method", *in_names) and (name != "prompt" or name in differing(towards))
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


def _settings_in_names(runs: Sequence[Run], by: Sequence[str]) -> list[str]:
    """Those of the settings `by` that runs of one method differ in: they stand in the methods' names."""
    values: dict[tuple[str, str], set[Any]] = {}
    for run, setting in itertools.product(runs, by):
        values.setdefault((setting, _method(run)["name"]), set()).add(run.settings[setting])
    return [setting for (setting, _), some in values.items() if len(some) > 1]


def _estimate(rows: list[dict[str, Any]], what: str, seed: int) -> dict[str, Any]:
    """Means over patients with intervals, paired: each patient's own difference is what is drawn."""
    defined = [row[what] for row in rows if row[what] is not None]
    return {
        "defined": len(defined),
        **{
            name: mean_interval([one[name] for one in defined], seed=seed).to_dict() if defined else None
            for name in ("mean", "end")
        },
    }


def _warnings(summary: dict[str, Any], idle: Sequence[str]) -> list[str]:
    lines = [f"by {name}: no method's runs differ in it" for name in idle]
    if summary["differ"]:
        lines.append(f"the runs differ in {', '.join(summary['differ'])} beside the method: the comparison mixes them")
    shared = {(row["pie"], row["method"]): row["patients"] for row in summary["matched"]}
    for pair, patients in shared.items():
        if patients < max(summary["methods"][name]["patients"] for name in pair):
            pie, name = ("PIE" if pair[0] == PIE else pair[0]), pair[1]
            lines.append(f"patients with runs of both {pie} and {name}: {patients}; the others are not matched")
    return lines


def _is_pie(label: str) -> bool:
    return label.split(",")[0] == PIE


def _rank(label: str) -> tuple[bool, str]:
    return not _is_pie(label), label
