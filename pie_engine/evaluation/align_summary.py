"""Similarities of texts and frames as one summary: means over patients with intervals, and the test of the prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pie_engine.evaluation.align_texts import EMPTY, LINE, NEGATED, OTHER, OWN, SHUFFLED, Aligned
from pie_engine.evaluation.summary import describe_interval, differing, over_patients
from pie_engine.evaluation.tables import ESTIMATE, Table, estimate_cells, interval_text, to_csv
from pie_engine.metrics.permutation import permutation_test

NAMES = {
    OWN: "own prompt",
    OTHER: "other runs' prompts",
    SHUFFLED: "own, words shuffled",
    NEGATED: "own, negated",
    EMPTY: "empty text",
}


def similarities_csv(aligned: Sequence[Aligned]) -> str:
    """One line per run, text and round."""
    return to_csv(
        ["run", "item_id", "patient", "prompt", "role", "text", "round", "similarity"],
        (
            [*one.run.labels, one.prompt, line.role, line.text, index, float(value)]
            for one in aligned
            for line in one.lines
            for index, value in enumerate(line.values)
        ),
    )


def means_csv(summary: dict[str, Any]) -> str:
    """One line per kind of text: its mean rise, and by how much the own prompt's rise exceeds it."""
    rows = [
        [one["role"], one["text"], measure, *estimate_cells(one[measure])]
        for one in summary["rises"]
        for measure in ("rise", "own_minus")
        if one[measure] is not None
    ]
    return to_csv(["role", "text", *ESTIMATE], rows)


def summarise(
    aligned: Sequence[Aligned], prompts: Sequence[str], lines: Sequence[str], *, permutations: int, seed: int
) -> dict[str, Any]:
    """Means over patients with bootstrap intervals, and the test; JSON.

    Several runs of one patient are averaged first.

    Args:
        prompts: of the runs, each once. lines: further texts.

    Returns:
        "runs", "patients", "prompts", "interval", "differ" (settings that the runs do not have in common);
        "rises" (by kind of text: rise of the similarity from the input to the last round, and own_minus, by how much
        the own prompt's rise exceeds it in the same runs);
        "matrix" (mean rise: a row per prompt that runs were made with, a column per prompt they are compared with);
        "rounds" (by prompt: mean similarity of each text in each round), and "test", see `_test`.
    """

    def over(value: Callable[[Aligned], float | None], some: Iterable[Aligned] = aligned) -> dict[str, Any] | None:
        found = over_patients(((one.run.patient, value(one)) for one in some), seed)
        return None if found is None else found.to_dict()

    def rise(role: str, text: str | None) -> Callable[[Aligned], float | None]:
        def mean(one: Aligned) -> float | None:
            rises = [line.rise for line in one.lines if line.role == role and text in (None, line.text)]
            return float(np.mean(rises)) if rises else None

        return mean

    def gap(role: str, text: str | None) -> Callable[[Aligned], float | None]:
        other = rise(role, text)
        return lambda one: None if (found := other(one)) is None else one.lines[0].rise - found

    kinds: list[tuple[str, str | None]] = [(OWN, None), (OTHER, None), *((LINE, line) for line in lines)]
    kinds += [(SHUFFLED, None), (NEGATED, None), (EMPTY, None)]
    rises = [
        {
            "role": role,
            "text": text,
            "rise": found,
            "own_minus": None if role == OWN else over(gap(role, text)),
        }
        for role, text in kinds
        if (found := over(rise(role, text))) is not None
    ]
    made = {prompt: [one for one in aligned if one.prompt == prompt] for prompt in prompts}
    return {
        "runs": len(aligned),
        "patients": len({one.run.patient for one in aligned}),
        "prompts": list(prompts),
        "interval": describe_interval(seed),
        "differ": [name for name in differing([one.run for one in aligned]) if name != "prompt"],
        "test": _test(aligned, prompts, permutations, seed),
        "rises": rises,
        "matrix": [
            [over(lambda one, prompt=prompt: one.rise(prompt), some) for prompt in prompts]  # type: ignore[misc]
            for some in made.values()
        ],
        "rounds": [{"prompt": prompt, "texts": _rounds(some)} for prompt, some in made.items()],
    }


def _rounds(aligned: Sequence[Aligned]) -> list[dict[str, Any]]:
    """Runs of one prompt: per text the mean over patients in each round, of the runs that have it."""
    most = max(one.run.rounds for one in aligned)
    found = []
    for number, line in enumerate(aligned[0].lines):  # runs of one prompt have the same texts in the same order
        values = []
        for index in range(most + 1):
            by_patient: dict[str, list[float]] = {}
            for one in aligned:
                if index <= one.run.rounds:
                    by_patient.setdefault(one.run.patient, []).append(float(one.lines[number].values[index]))
            values.append(float(np.mean([np.mean(some) for some in by_patient.values()])))
        found.append({"role": line.role, "text": line.text, "similarity": values})
    return found


def _test(aligned: Sequence[Aligned], prompts: Sequence[str], permutations: int, seed: int) -> dict[str, Any]:
    """Are rises larger with the right prompts than with prompts exchanged among the runs?

    The statistic is the mean over patients of s(last round, prompt) - s(input, prompt), each patient the mean of its
    runs. The unit is what one patient's runs with one prompt give together: seeds are averaged first. A patient with
    several prompts exchanges them among its own runs, so that no patient is compared with another; those with one
    prompt each exchange theirs among one another. Equal prompts change nothing.

    Returns:
        `Permutation` as a dict with "statistic" (what it is), "per_patient" (patients that exchange among their own
        runs), "between" (those that exchange with one another), "seed"; or {"undefined": why}.
    """
    cells: dict[tuple[str, str], list[Aligned]] = {}
    for one in aligned:
        cells.setdefault((one.run.patient, one.prompt), []).append(one)
    number = {patient: index for index, patient in enumerate(dict.fromkeys(patient for patient, _ in cells))}
    counts = {patient: sum(one == patient for one, _ in cells) for patient in number}
    scores = np.array([[np.mean([one.rise(text) for one in some]) for text in prompts] for some in cells.values()])
    weights = np.array([1 / (len(number) * counts[patient]) for patient, _ in cells])
    found = permutation_test(
        scores * weights[:, None],
        [prompts.index(prompt) for _, prompt in cells],
        [number[patient] if counts[patient] > 1 else -1 for patient, _ in cells],
        permutations=permutations,
        seed=seed,
    )
    if found is None:
        why = "all runs have one prompt" if len(prompts) < 2 else "no patient's prompt can change places with another"
        return {"undefined": f"{why}; add runs towards another prompt"}
    several = sum(count > 1 for count in counts.values())
    return {
        **found.to_dict(),
        "statistic": "mean over patients of the rise of similarity to the own prompt, from the input to the last round",
        "per_patient": several,
        "between": len(counts) - several,
        "seed": seed,
    }


def to_table(summary: dict[str, Any]) -> Table:
    """The summary's rises by text; the test, and what was not read, below them."""
    runs, patients, prompts = summary["runs"], summary["patients"], len(summary["prompts"])
    heading = f"{runs} run{'s' * (runs != 1)} of {patients} patient{'s' * (patients != 1)} towards {prompts} "
    heading += f"prompt{'s' * (prompts != 1)}; rise of the similarity from the input to the last round, mean"
    heading += " [95 % interval, bootstrap over patients]" if patients > 1 else ", no interval with one patient"
    rows = [
        [label(one["role"], one["text"]), *(interval_text(one[measure], ".4f") for measure in ("rise", "own_minus"))]
        for one in summary["rises"]
    ]
    notes = [to_line(summary["test"]), *_say_truncated(summary["truncated"])]
    return Table(["text", "rise", "own prompt's rise minus it"], rows, heading, notes)


def label(role: str, text: str | None, width: int = 48) -> str:
    """What a table or a plot calls a text."""
    shown = textwrap.shorten(text or "", width, placeholder=" ...")
    return NAMES.get(role, f'"{shown}"')


def to_line(test: dict[str, Any]) -> str:
    """The test in one sentence."""
    if "undefined" in test:
        return f"right prompts against exchanged ones: not tested, as {test['undefined']}"
    how = f"all {test['arrangements']:,}" if test["exact"] else f"{test['counted'] - 1:,} random"
    within = test["per_patient"]
    where = [f"within each of {within} patients" if within > 1 else "within one patient"] if within else []
    where += [f"among {test['between']} patients"] if test["between"] > 1 else []
    line = f"right prompts against exchanged ones: rise {test['observed']:.4f}, with exchanged prompts "
    line += f"{test['expected']:.4f} on average; p = {test['p']:.2g} ({how} exchanges, {' and '.join(where)})"
    if test["arrangements"] < 20:
        line += f"; so few runs give no p below {1 / test['arrangements']:.2g}"
    return line


def _say_truncated(truncated: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for one in truncated:
        if one["cut_off_by_clip"]:
            needs = f"{one['tokens']} tokens, CLIP reads {one['limit']}"
            lines.append(f"{label(LINE, one['text'])} ({needs}): CLIP did not read {one['cut_off_by_clip']!r}")
        if one["cut_off_by_model"]:
            lines.append(f"{label(LINE, one['text'])}: the model did not read {one['cut_off_by_model']!r}")
    return lines or ["every prompt was read in full, by CLIP and by the model"]
