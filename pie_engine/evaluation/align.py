"""Do frames move towards the prompt that they were made with? Runs in, a matrix of prompts by rounds and a test out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pie_engine import __version__
from pie_engine.errors import InputError
from pie_engine.evaluation.align_plot import draw_alignment
from pie_engine.evaluation.align_summary import means_csv, similarities_csv, summarise
from pie_engine.evaluation.align_texts import Texts, prompt_of
from pie_engine.evaluation.results import MEANS, check_results, write_results
from pie_engine.evaluation.runs import find_runs
from pie_engine.evaluation.summary import describe_clip
from pie_engine.metrics.clip import ClipEncoder
from pie_engine.metrics.permutation import PERMUTATIONS

log = logging.getLogger(__name__)
TABLE = "align.csv"


def align(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    clip: str | Path,
    prompts: Sequence[str] = (),
    permutations: int = PERMUTATIONS,
    figures: str = "png",
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Compare runs' frames with their prompts; write tables, a plot and a summary into `output`, whole or not at all.

    Args:
        folders: runs' folders, or folders that hold some; the test needs two different prompts among them.
        output: an earlier result in it is replaced; a folder that holds anything else is refused.
        clip: folder of a CLIP checkpoint with its tokenizer.
        prompts: further texts to compare every run with.
        permutations: of the test.
        figures: plots are PNG files; "svg" or "pdf" writes them as that too.
        seed: of the bootstrap, the test and the orders of words.
        on_run: called with each run's name before it is measured.

    Returns:
        summary.json's content, see `summarise`; with "models" (hashes of what measured) and "files".

    Raises:
        InputError: a folder is not a run's, or damaged, or `permutations` is below 1. CheckpointError: the CLIP
            checkpoint cannot be used. ConfigError: `figures` is unknown. OutputError: `output` cannot be written, or
            matplotlib is not installed.
    """
    output = Path(output)
    check_results(output, figures)
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
    }
    tables = {TABLE: similarities_csv(aligned), MEANS: means_csv(summary)}
    write_results(output, summary, {**tables, **draw_alignment(summary, figures)})
    return summary
