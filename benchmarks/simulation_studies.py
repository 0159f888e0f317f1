"""The studies of `benchmarks/simulation.py`: their commands, the figures that are kept, the tables made of those."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.demo.assets import load_defaults
from pie_engine.evaluation.align_summary import label, to_line

WORK = Path("build/simulation")  # in the repository, as all paths here
_DEMO = Path("pie_engine/demo")
_DEFAULTS = load_defaults()
# Not the demo's CLIP for similarity: it has learnt findings and no patients (docs/demo-model.md).
_JUDGE = ["--classifier", str(_DEMO / "severity.json")]
_CLIP = ["--clip", str(_DEMO / "clip")]
_MODEL = ["--checkpoint", str(_DEMO / "checkpoint"), "--guidance-scale", f"{_DEFAULTS.guidance_scale:g}"]
_CONFIDENCE = "confidence: enlarged heart"
_METHODS = ("pie", "one-shot", "walk", "vae", "previous", "control")
_ROUNDS = (0, 1, 2, 3, 5, 10)
Figures = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Commands, run one after the other, and the figures that are kept of what they write into `WORK`."""

    commands: Sequence[Sequence[str]]
    collect: Callable[[Path], Figures]


def _read(path: Path) -> Figures:
    return json.loads(path.read_text(encoding="utf-8"))


def _sweep(patients: str, output: str, *words: str) -> list[str]:
    return ["pie-engine", "sweep", *_MODEL, "--patients", str(WORK / patients / "patients.csv"), *words, *_JUDGE,
            "--output", str(WORK / output)]  # fmt: skip


def _phantoms(count: int, *words: str, output: str = "phantoms") -> list[str]:
    return ["pie-engine", "demo", "--phantoms", str(count), *words, "--output", str(WORK / output)]


def _collect_methods(work: Path) -> Figures:
    found = _read(work / "compare" / "summary.json")
    for row in found["matched"]:
        del row["by_patient"]
    kept = (_CONFIDENCE, "ssim_inside", "change_inside", "decoded_leakage")
    for own in found["methods"].values():
        own["final"] = {name: own["final"][name] for name in kept}
        own["rounds"] = {name: own["rounds"][name] for name in kept[:3]}
    return {name: found[name] for name in ("methods", "matched", "interval", "models")}


def _collect_sweep(name: str) -> Callable[[Path], Figures]:
    def collect(work: Path) -> Figures:
        found = _read(work / name / "summary.json")
        kept = (_CONFIDENCE, "ssim_inside", "decoded_leakage")
        for cell in found["cells"]:
            cell["final"] = {measure: cell["final"][measure] for measure in kept}
            del cell["by_round"]
        return {key: found[key] for key in ("grid", "patients", "stable", "verdict", "cells", "similarity", "interval")}

    return collect


def _collect_regression(work: Path) -> Figures:
    return _read(work / "regression" / "regression.json")


def _collect_align(work: Path) -> Figures:
    found = _read(work / "align" / "summary.json")
    return {name: found[name] for name in ("runs", "patients", "prompts", "test", "rises", "matrix", "interval")}


STUDIES = {
    "methods": Study(
        [
            _phantoms(20),
            _sweep("phantoms", "methods", "--grid", f"method={','.join(_METHODS)}",
                   "--healthy-prompt", _DEFAULTS.healthy_prompt),
            ["pie-engine", "compare", str(WORK / "methods"), *_JUDGE, "--output", str(WORK / "compare")],
        ],
        _collect_methods,
    ),
    "strength": Study([_phantoms(10, output="ten"), _sweep("ten", "strength", "--recipe", "strength")],
                      _collect_sweep("strength")),
    "mask": Study([_phantoms(20), _sweep("phantoms", "mask", "--recipe", "mask")], _collect_sweep("mask")),
    "regression": Study(
        [["python", "-m", "pie_engine.demo.regression", "--patients", "10", "--output", str(WORK / "regression")]],
        _collect_regression,
    ),
    "align": Study(
        [
            _phantoms(10, "--findings", output="findings"),
            _sweep("findings", "prompts", "--recipe", "healthy"),
            ["pie-engine", "align", str(WORK / "prompts"), *_CLIP, "--output", str(WORK / "align")],
        ],
        _collect_align,
    ),
}  # fmt: skip


def _cell(own: Figures | None, digits: int = 3) -> str:
    """A mean and its interval."""
    if own is None:
        return ""
    text = f"{own['mean']:.{digits}g}"
    return text if own["low"] is None else f"{text} [{own['low']:.{digits}g}, {own['high']:.{digits}g}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods_table(found: Figures) -> str:
    """Each method's last frame."""
    rows = [
        [name, _cell(own["final"][_CONFIDENCE]), _cell(own["final"]["ssim_inside"]),
         _cell(own["final"]["change_inside"]), _cell(own["final"]["decoded_leakage"]), str(own["patients"])]
        for name, own in found["methods"].items()
    ]  # fmt: skip
    return _table(["method", "confidence", "SSIM inside", "change inside", "leakage before compositing", "n"], rows)


def matched_table(found: Figures) -> str:
    """PIE less each baseline where both have come equally far."""
    rows = []
    for row in found["matched"]:
        at_similarity, at_confidence = row["confidence"], row["similarity"]
        rows.append(
            [row["method"], _cell(at_similarity["mean"]), _cell(at_similarity["end"]),
             f"{at_similarity['defined']} of {row['patients']}",
             _cell(at_confidence["mean"]), f"{at_confidence['defined']} of {row['patients']}"]
        )  # fmt: skip
    head = ["baseline", "confidence at equal SSIM, PIE less the baseline", "as far as both come", "n",
            "SSIM at equal confidence, PIE less the baseline", "n"]  # fmt: skip
    return _table(head, rows)


def rounds_table(found: Figures) -> str:
    """PIE over N."""
    own = found["methods"]["pie"]["rounds"]
    series = [{one["round"]: one for one in own[name]} for name in (_CONFIDENCE, "ssim_inside", "change_inside")]
    rows = [["input" if n == 0 else str(n), *(_cell(one[n]) for one in series)] for n in _ROUNDS]
    return _table(["N", "confidence", "SSIM inside", "change inside"], rows)


def sweep_table(found: Figures) -> str:
    """A line per cell, and the verdict."""
    rows = [
        [", ".join(cell["values"].values()), _cell(cell["final"][_CONFIDENCE]), _cell(cell["final"]["ssim_inside"]),
         _cell(cell["final"]["decoded_leakage"]), _cell(cell["increment_ratio"]),
         "yes" if cell["stable"] else "; ".join(cell["not_stable"])]
        for cell in found["cells"]
    ]  # fmt: skip
    head = [
        ", ".join(found["grid"]),
        "confidence",
        "SSIM inside",
        "leakage before compositing",
        "increment ratio",
        "stable",
    ]
    limits = found["stable"]["limits"]
    note = f"n = {found['patients']}. Stable: confidence from {limits['confidence']:g}, SSIM from "
    note += f"{limits['similarity']:g}, increments that shrink, each at the unfavourable end of its interval."
    return "\n\n".join([_table(head, rows), f"{note} {found['verdict']}"])


def regression_table(found: Figures) -> str:
    """A line per setting."""
    rows = []
    for own in found["settings"]:
        change, ratio, confidence = own["change"], own["ratio"], own["confidence"]
        rows.append(
            [own["name"], f"{ratio[0]:.3f} to {ratio[-1]:.3f}", _cell(change), _cell(own["error"]),
             f"{own['normal']} of {change['n']}", f"{confidence[0]:.3f} to {confidence[-1]:.3f}", _cell(own["apart"])]
        )  # fmt: skip
    head = ["settings", "ratio, input to last round", "its change", "error against the healthy twin", "normal",
            "confidence", "grey levels from the twin"]  # fmt: skip
    return _table(head, rows)


def align_table(found: Figures) -> str:
    """The rises by kind of text, and the test."""
    rows = [[label(one["role"], one["text"]), _cell(one["rise"]), _cell(one["own_minus"])] for one in found["rises"]]
    line = to_line(found["test"])
    head = ["text", "rise of its similarity", "own prompt's rise less it"]
    return "\n\n".join(
        [_table(head, rows), f"{found['runs']} runs, n = {found['patients']}. {line[0].upper()}{line[1:]}."]
    )


# By the name that a block of the document asks for.
TABLES: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "methods": ("methods", methods_table),
    "matched": ("methods", matched_table),
    "rounds": ("methods", rounds_table),
    "strength": ("strength", sweep_table),
    "mask": ("mask", sweep_table),
    "regression": ("regression", regression_table),
    "align": ("align", align_table),
}
