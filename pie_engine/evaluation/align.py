"""Do frames move towards the prompt that they were made with? Runs in, a matrix of prompts by rounds and a test out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pie_engine import __version__
from pie_engine.errors import InputError
from pie_engine.evaluation.align_plot import draw_alignment
from pie_engine.evaluation.align_summary import summarise, to_csv
from pie_engine.evaluation.align_texts import Texts, prompt_of
from pie_engine.evaluation.rounds_plot import check_plots
from pie_engine.evaluation.runs import find_runs
from pie_engine.evaluation.summary import describe_clip
from pie_engine.files import check_folder, new_folder
from pie_engine.metrics.permutation import PERMUTATIONS

log = logging.getLogger(__name__)
TABLE, SUMMARY, PLOT = "align.csv", "summary.json", "align.png"


def align(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    clip: str | Path,
    prompts: Sequence[str] = (),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Compare the frames of runs with their prompts; write the figures into the folder `output`, whole or not at all.

    Args:
        folders: runs' folders, or folders that hold some; the test needs two different prompts among them.
        output: an earlier result in it is replaced; a folder that holds anything else is refused.
        clip: folder of a CLIP checkpoint with its tokenizer.
        prompts: further texts to compare every run with.
        permutations: of the test.
        seed: of the bootstrap, the test and the orders of words.
        on_run: called with each run's name before it is measured.

    Returns:
        summary.json's content, see `summarise`; with "models" (hashes of what judged) and "files".

    Raises:
        InputError: a folder is not a run's, or damaged, or `permutations` is below 1. CheckpointError: the CLIP
            checkpoint cannot be used. OutputError: `output` cannot be written, or matplotlib is not installed.
    """
    from pie_engine.metrics.clip import ClipEncoder

    output = Path(output)
    check_folder(output, replaceable=SUMMARY)
    check_plots()
    if permutations < 1:
        raise InputError(f"{permutations} permutations are too few; pass at least 1")
    runs = find_runs(folders)
    encoder = ClipEncoder(clip)
    texts = Texts(encoder, list(dict.fromkeys(prompt_of(run) for run in runs)), prompts, seed)
    aligned = []
    for run in runs:
        on_run(run.name)
        aligned.append(texts.compare(run))
    summary = summarise(aligned, texts.prompts, texts.lines, permutations=permutations, seed=seed)
    if summary["differ"]:
        log.warning("the runs differ in %s: their means mix them", ", ".join(summary["differ"]))
    summary |= {
        "truncated": texts.truncated(runs),
        "models": {"clip": describe_clip(clip)},
        "version": __version__,
        "files": [TABLE, PLOT, SUMMARY],
    }
    picture = draw_alignment(summary)
    with new_folder(output, replaceable=SUMMARY) as folder:
        (folder / TABLE).write_text(to_csv(aligned), encoding="utf-8")
        (folder / PLOT).write_bytes(picture)
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
