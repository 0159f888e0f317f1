"""The tables of docs/evaluation.md and docs/demo-domains.md, made from what `simulation` keeps of its studies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pie_engine.benchmarks.report_rows import ReportError
from pie_engine.benchmarks.report_tables import markdown
from pie_engine.benchmarks.simulation import RESULTS, SSIM, Values, confidence_of
from pie_engine.demo.pacing import BY_CLASSIFIER, CONSTANT, EVEN
from pie_engine.evaluation.align_summary import label, to_line
from pie_engine.evaluation.measures import STRUCTURE

_ROUNDS = (0, 1, 2, 3, 5, 10)
_NAMES = {SSIM: "SSIM inside", STRUCTURE: "own structure", "change_inside": "change inside"}
LEAKAGE = "leakage before compositing"


def study(name: str, table: str, file: Path = RESULTS) -> str:
    """One table of a study, and the command that measures it again.

    Raises:
        ReportError: there is no such table.
    """
    if table not in TABLES:
        raise ReportError(f"table {table!r} is unknown; pass one of {', '.join(TABLES)}")
    studies = json.loads(file.read_text())["studies"]
    if name not in studies:
        return f"*Not measured yet; run `python benchmarks/simulation.py {name}`.*"
    origin = f"<sub>`python benchmarks/simulation.py {name}`; revision {studies[name]['revision']}</sub>"
    return f"{TABLES[table](studies[name])}\n\n{origin}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(head, rows, keep_empty=True)


def _cell(estimate: Values | None, digits: int = 3) -> str:
    """A mean and its interval."""
    if estimate is None:
        return ""
    text = f"{estimate['mean']:.{digits}g}"
    return text if estimate["low"] is None else f"{text} [{estimate['low']:.{digits}g}, {estimate['high']:.{digits}g}]"


def _measures(measured: Values) -> list[str]:
    """The columns of tables: confidence, similarities, change."""
    return [confidence_of(measured), SSIM, *([STRUCTURE] if STRUCTURE in measured else []), "change_inside"]


def _heads(measured: Values) -> list[str]:
    return ["confidence", *(_NAMES[name] for name in _measures(measured)[1:])]


def methods_table(values: Values) -> str:
    """Each method's last frame."""
    finals = {name: method["final"] for name, method in values["methods"].items()}
    rows = [
        [name, *(_cell(final[one]) for one in (*_measures(final), "decoded_leakage")),
         str(values["methods"][name]["patients"])]
        for name, final in finals.items()
    ]  # fmt: skip
    return _table(["method", *_heads(next(iter(finals.values()))), LEAKAGE, "n"], rows)


def matched_table(values: Values) -> str:
    """PIE less each baseline where both have come equally far."""
    rows = [
        [row["method"], _NAMES[row["similarity_measure"]],
         _cell(row["confidence"]["mean"]), _cell(row["confidence"]["end"]),
         f"{row['confidence']['defined']} of {row['patients']}",
         _cell(row["similarity"]["mean"]), f"{row['similarity']['defined']} of {row['patients']}"]
        for row in values["matched"]
    ]  # fmt: skip
    head = ["baseline", "similarity", "confidence at equal similarity, PIE less the baseline", "as far as both come",
            "n", "similarity at equal confidence, PIE less the baseline", "n"]  # fmt: skip
    return _table(head, rows)


def rounds_table(values: Values) -> str:
    """PIE over N."""
    rounds = values["methods"]["pie"]["rounds"]
    series = [{one["round"]: one for one in rounds[name]} for name in _measures(rounds)]
    return _table(["N", *_heads(rounds)], [[str(n or "input"), *(_cell(one[n]) for one in series)] for n in _ROUNDS])


def settings_table(values: Values) -> str:
    """A line per setting of PIE: where it ends, and what it keeps at equal confidence less what each baseline keeps."""
    kept = {
        (row["pie"], row["method"]): row["similarity"]
        for row in values["matched"]
        if row["similarity_measure"] == STRUCTURE
    }
    against = list(dict.fromkeys(row["method"] for row in values["matched"]))
    rows = []
    for name in (*dict.fromkeys(row["pie"] for row in values["matched"]), *against):
        final, cells = values["methods"][name]["final"], []
        for baseline in against:
            difference = kept.get((name, baseline))
            mean = f"{_cell(difference['mean'])}, " if difference and difference["mean"] else ""
            cells.append(f"{mean}n = {difference['defined']}" if difference else "")
        rows.append([name, _cell(final[confidence_of(final)]), _cell(final[STRUCTURE]), *cells])
    return _table(["settings", "confidence", "own structure", *(f"PIE's less {one}'s" for one in against)], rows)


def tuning_table(methods: Values) -> str:
    """A line per setting: where it ends."""
    rows = []
    for name, method in methods.items():
        final, start = method["final"], method["rounds"][confidence_of(method["rounds"])][0]
        shown = [final[one]["mean"] for one in (confidence_of(final), STRUCTURE, SSIM, "decoded_leakage")]
        means = [f"{one:.3g}" for one in shown]
        still = name == "previous"
        rows.append(["input", f"{start['mean']:.3g}", "1", "1", ""] if still else [name.removeprefix("pie, "), *means])
    return _table(["settings", "confidence", "own structure", "SSIM inside", LEAKAGE], rows)


def sweep_table(values: Values) -> str:
    """A line per cell, and the verdict."""
    rows = [
        [", ".join(cell["values"].values()),
         *(_cell(cell["final"][one]) for one in (confidence_of(cell["final"]), SSIM, "decoded_leakage")),
         _cell(cell["increment_ratio"]), "yes" if cell["stable"] else "; ".join(cell["not_stable"])]
        for cell in values["cells"]
    ]  # fmt: skip
    head = [", ".join(values["grid"]), "confidence", "SSIM inside", LEAKAGE, "increment ratio", "stable"]
    limits = values["stable"]["limits"]
    note = (
        f"n = {values['patients']}. Stable: confidence from {limits['confidence']:g}, SSIM from "
        f"{limits['similarity']:g}, increments that shrink, each at the unfavourable end of its interval."
    )
    # What the table says is left out; "ssim_inside" is the column's name elsewhere.
    parts = values["verdict"].rpartition("? ")[2].split(". ")
    verdict = ". ".join(part for part in parts if not part.startswith("With ")).rstrip(".")
    return f"{_table(head, rows)}\n\n{note} {verdict.replace('ssim_inside', 'SSIM inside')}."


def regression_table(values: Values) -> str:
    """A line per setting."""
    rows = [
        [one["name"], f"{one['ratio'][0]:.3f} to {one['ratio'][-1]:.3f}", _cell(one["change"]), _cell(one["error"]),
         f"{one['normal']} of {one['change']['n']}", f"{one['confidence'][0]:.3f} to {one['confidence'][-1]:.3f}",
         _cell(one["twin_distance"])]
        for one in values["settings"]
    ]  # fmt: skip
    head = ["settings", "ratio, input to last round", "its change", "error against the healthy twin", "normal",
            "confidence", "grey levels from the twin"]  # fmt: skip
    return _table(head, rows)


def align_table(values: Values) -> str:
    """The rises by kind of text, and the test."""
    rows = [[label(one["role"], one["text"]), _cell(one["rise"]), _cell(one["own_minus"])] for one in values["rises"]]
    test = to_line(values["test"])
    table = _table(["text", "rise of its similarity", "own prompt's rise less it"], rows)
    return f"{table}\n\n{values['runs']} runs, n = {values['patients']}. {test[0].upper()}{test[1:]}."


def pacing_table(values: Values) -> str:
    """A line per way: how evenly it goes, how sharp it is half-way, where it ends, and what it costs."""
    kept = next(iter(values["ways"].values()))["structure_end"] is not None
    rows = [
        [name, _cell(way["off_the_way"]), _cell(way["rho"]), _cell(way["linearity"]), _cell(way["logit_linearity"]),
         _cell(way["sharpness_half_way"]), *([_cell(way["structure_half_way"])] if kept else []), _cell(way["end"]),
         _cell(way["confidence_end"]), _cell(way["severity_end"]), f"{way['evaluations']['mean']:.0f}"]
        for name, way in values["ways"].items()
    ]  # fmt: skip
    head = ["way", "displacement off n/N", "rho", "R2", "R2 of the logit", "sharpness half-way",
            *(["own structure half-way"] if kept else []), "displacement, last frame", "confidence, last frame",
            f"{values['measured']}, last frame", "evaluations"]  # fmt: skip
    found = values["ways"][BY_CLASSIFIER]["followed"]
    note = f"n = {values['patients']}; the classifier rises along {found} of the runs that are even in displacement."
    return f"{_table(head, rows)}\n\n{note}"


def pacing_frames_table(values: Values) -> str:
    """A line per frame: means over patients, of the paper's rounds and of an even pace."""
    ways = {name: values["ways"][name] for name in (CONSTANT, EVEN, BY_CLASSIFIER)}
    what = ("displacement", "confidence", "severity")
    count = len(ways["constant"]["displacement"])
    rows = [[str(n or "input"), *(f"{way[one][n]:.3f}" for one in what for way in ways.values())] for n in range(count)]
    names = {"displacement": "displacement", "confidence": "confidence", "severity": values["measured"]}
    return _table(["frame", *(f"{names[one]}, {name}" for one in what for name in ways)], rows)


def regional_table(values: Values) -> str:
    """A line per region: how near rounds in its box are to whole ones, in the worst patient."""

    def decibels(value: float | None) -> str:
        return "the same" if value is None else f"{value:.1f}"

    count = values["steps"]
    shown = [number for number in _ROUNDS[1:] if number <= count]
    rows = [
        [name, f"{found['share']:.2f}", *(decibels(found["psnr"][number - 1]) for number in shown),
         decibels(found["worst"]), f"{found['grey_levels']:.0f}", f"{found['estimate']:.2f}",
         f"{found['confidence']:.4f}", f"{found['whole']:.1f}", "the same" if found["outside"] else "not the same"]
        for name, found in values["regions"].items()
    ]  # fmt: skip
    head = ["region", "box, of the picture", *(f"round {number}" for number in shown), "worst round",
            "grey levels at most", "its own estimate", "confidence off by", f"whole rounds of {count}",
            "pixels outside"]  # fmt: skip
    note = f"n = {values['patients']}, {values['backend']}; PSNR in dB inside the region, of the worst patient."
    return f"{_table(head, rows)}\n\n{note}"


TABLES = {
    "methods": methods_table,
    "matched": matched_table,
    "rounds": rounds_table,
    "settings": settings_table,
    "tuning": lambda values: tuning_table(values["tuning"]),
    "tuning-back": lambda values: tuning_table(values["tuning-back"]),
    "sweep": sweep_table,
    "regression": regression_table,
    "pacing": pacing_table,
    "pacing-frames": pacing_frames_table,
    "align": align_table,
    "regional": regional_table,
}
