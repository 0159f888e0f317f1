"""The tables of docs/evaluation.md and docs/demo-domains.md, made from the figures that `simulation_studies` keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pie_engine.benchmarks.simulation_studies import SSIM, Figures, confidence_of
from pie_engine.demo import DOMAINS
from pie_engine.evaluation.align_summary import label, to_line
from pie_engine.evaluation.measures import STRUCTURE

_ROUNDS = (0, 1, 2, 3, 5, 10)
_NAMES = {SSIM: "SSIM inside", STRUCTURE: "own structure"}


def _cell(own: Figures | None, digits: int = 3) -> str:
    """A mean and its interval."""
    if own is None:
        return ""
    text = f"{own['mean']:.{digits}g}"
    return text if own["low"] is None else f"{text} [{own['low']:.{digits}g}, {own['high']:.{digits}g}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _measures(measures: Figures) -> list[str]:
    """The columns of tables: confidence, similarities, change."""
    return [confidence_of(measures), SSIM, *([STRUCTURE] if STRUCTURE in measures else []), "change_inside"]


def _heads(measures: Figures) -> list[str]:
    return ["confidence", *(_NAMES.get(name, "change inside") for name in _measures(measures)[1:])]


def methods_table(found: Figures) -> str:
    """Each method's last frame."""
    rows = [
        [name, *(_cell(own["final"][one]) for one in _measures(own["final"])), _cell(own["final"]["decoded_leakage"]),
         str(own["patients"])]
        for name, own in found["methods"].items()
    ]  # fmt: skip
    heads = _heads(next(iter(found["methods"].values()))["final"])
    return _table(["method", *heads, "leakage before compositing", "n"], rows)


def matched_table(found: Figures) -> str:
    """PIE less each baseline where both have come equally far."""
    rows = []
    for row in found["matched"]:
        at_similarity, at_confidence = row["confidence"], row["similarity"]
        rows.append(
            [row["method"], _NAMES[row["similarity_measure"]],
             _cell(at_similarity["mean"]), _cell(at_similarity["end"]),
             f"{at_similarity['defined']} of {row['patients']}",
             _cell(at_confidence["mean"]), f"{at_confidence['defined']} of {row['patients']}"]
        )  # fmt: skip
    head = ["baseline", "similarity", "confidence at equal similarity, PIE less the baseline", "as far as both come",
            "n", "similarity at equal confidence, PIE less the baseline", "n"]  # fmt: skip
    return _table(head, rows)


def rounds_table(found: Figures) -> str:
    """PIE over N."""
    own = found["methods"]["pie"]["rounds"]
    series = [{one["round"]: one for one in own[name]} for name in _measures(own)]
    rows = [["input" if n == 0 else str(n), *(_cell(one[n]) for one in series)] for n in _ROUNDS]
    return _table(["N", *_heads(own)], rows)


def _counted(difference: Figures) -> str:
    """Its mean over the range, and for how many patients there is one."""
    count = f"n = {difference['defined']}"
    return f"{_cell(difference['mean'])}, {count}" if difference["mean"] else count


def settings_table(found: Figures) -> str:
    """A line per setting of PIE: where it ends, and what it keeps at equal confidence less what each baseline keeps."""
    against = list(dict.fromkeys(row["method"] for row in found["matched"]))
    pies = list(dict.fromkeys(row["pie"] for row in found["matched"]))
    rows = []
    for name in (*pies, *against):
        final = found["methods"][name]["final"]
        own = {
            row["method"]: row["similarity"]
            for row in found["matched"]
            if row["pie"] == name and row["similarity_measure"] == STRUCTURE
        }
        kept = [_counted(own[one]) if one in own else "" for one in against]
        rows.append([name, _cell(final[confidence_of(final)]), _cell(final[STRUCTURE]), *kept])
    return _table(["settings", "confidence", "own structure", *(f"PIE's less {one}'s" for one in against)], rows)


def tuning_table(way: str) -> Callable[[Figures], str]:
    """A line per setting: where it ends."""

    def make(found: Figures) -> str:
        rows = []
        for name, own in found[way].items():
            final, start = own["final"], own["rounds"][confidence_of(own["rounds"])][0]
            shown = [final[confidence_of(final)], final[STRUCTURE], final[SSIM], final["decoded_leakage"]]
            if name == "previous":
                rows.append(["input", f"{start['mean']:.3g}", "1", "1", ""])
            else:
                rows.append([name.removeprefix("pie, "), *(f"{one['mean']:.3g}" for one in shown)])
        head = ["settings", "confidence", "own structure", "SSIM inside", "leakage before compositing"]
        return _table(head, rows)

    return make


def sweep_table(found: Figures) -> str:
    """A line per cell, and the verdict."""
    rows = [
        [", ".join(cell["values"].values()),
         *(_cell(cell["final"][one]) for one in (confidence_of(cell["final"]), SSIM)),
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
    # What the table says is left out; "ssim_inside" is the column's name elsewhere.
    answer = found["verdict"].rpartition("? ")[2]
    said = [part for part in answer.split(". ") if not part.startswith("With ")]
    verdict = ". ".join(said).rstrip(".").replace("ssim_inside", "SSIM inside")
    return "\n\n".join([_table(head, rows), f"{note} {verdict}."])


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
    **{
        f"{table}-{name}": (f"methods-{name}", make)
        for name in DOMAINS[1:]
        for table, make in (("methods", methods_table), ("matched", matched_table), ("rounds", rounds_table))
    },
    **{f"settings-{name}": (f"settings-{name}", settings_table) for name in DOMAINS[1:]},
    **{
        f"{way}-{name}": (f"tuning-{name}", tuning_table(way))
        for name in DOMAINS[1:]
        for way in ("tuning", "tuning-back")
    },
    "strength": ("strength", sweep_table),
    "mask": ("mask", sweep_table),
    "regression": ("regression", regression_table),
    "align": ("align", align_table),
}
