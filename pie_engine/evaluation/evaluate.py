"""Runs in, their measures as tables, a summary and a plot out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pie_engine import __version__
from pie_engine.errors import ConfigError, argument, use
from pie_engine.evaluation.measures import CLIP_I, Measured, measure_run
from pie_engine.evaluation.real_pictures import check_real_pictures, compare_with_real_pictures, find_pictures
from pie_engine.evaluation.results import MEANS, check_results, write_results
from pie_engine.evaluation.rounds_plot import draw_rounds
from pie_engine.evaluation.runs import find_runs, read_structures
from pie_engine.evaluation.summary import describe_clip, describe_models, means_csv, metrics_csv, summarise
from pie_engine.metrics.classifier import read_classifiers
from pie_engine.metrics.clip import ClipEncoder
from pie_engine.metrics.perceptual import read_distances
from pie_engine.outputs.report import add_measures

log = logging.getLogger(__name__)
METRICS = "metrics.csv"


def evaluate(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    clip: str | Path | None = None,
    classifiers: Sequence[str | Path] = (),
    distances: Sequence[str | Path] = (),
    real_pictures: str | Path | None = None,
    structures: str | Path | None = None,
    update_reports: bool = False,
    figures: str = "png",
    trust: bool = False,
    seed: int = 0,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Measure runs against their inputs; write tables, a plot and a summary into `output`, whole or not at all.

    Args:
        folders: runs' folders, or folders that hold some.
        output: an earlier evaluation in it is replaced; a folder that holds anything else is refused.
        clip: folder of a CLIP checkpoint, for CLIP-I.
        classifiers: JSON files that declare classifiers.
        distances: JSON files that declare distances of two pictures, such as LPIPS.
        real_pictures: a folder of them, which the inputs and the last frames are compared with, as distributions of
            CLIP's features (KID, FID); needs `clip`.
        structures: folder of a map per run, ITEM_ID.png: where features lie that the disease leaves alone
            (`pie_engine.metrics.structure`).
        update_reports: write confidence, CLIP-I and SSIM into each run's report.html and provenance.json too.
        figures: plots are PNG files; "svg" or "pdf" writes them as that too.
        trust: whether models in TorchScript are loaded, which are programs (SECURITY.md); ONNX needs no trust.
        seed: of the bootstrap.
        on_run: called with each run's name before it is measured.

    Returns:
        summary.json's content, see `summarise`; with "models" (hashes of what measured), "real_pictures" (see
        `compare_with_real_pictures`, or None) and "files".

    Raises:
        InputError: a folder is not a run's, or damaged, or the real pictures hold an input. ConfigError,
            CheckpointError, BackendError: `figures` is unknown, a classifier or the CLIP checkpoint cannot be used, or
            a package is missing. OutputError: `output` cannot be written.
    """
    output = Path(output)
    check_results(output, figures)
    if real_pictures is not None and clip is None:
        raise ConfigError(
            f"{argument('real_pictures')} compares features, and nothing computes them; pass {use('clip', 'DIR')} too",
            field="clip",
        )
    pictures = [] if real_pictures is None else find_pictures(real_pictures)
    runs = find_runs(folders)
    check_real_pictures(runs, pictures)
    maps = read_structures(structures, runs)
    read = read_classifiers(classifiers, trust=trust), read_distances(distances, trust=trust)
    encoder = None if clip is None else ClipEncoder(clip)
    measured = []
    for run, structure in zip(runs, maps, strict=True):
        on_run(run.name)
        measured.append(measure_run(run, encoder, *read, structure=structure))
    summary = summarise(measured, seed)
    if summary["differ"]:
        log.warning("the runs differ in %s: their means mix them", ", ".join(summary["differ"]))
    summary["models"] = {
        "classifiers": describe_models(read[0]),
        "distances": describe_models(read[1]),
        "clip": describe_clip(clip),
    }
    summary["real_pictures"] = None
    if encoder is not None and pictures:
        on_run(f"{len(pictures)} real pictures")
        summary["real_pictures"] = compare_with_real_pictures(runs, pictures, encoder, seed)
    summary["version"] = __version__
    tables = {METRICS: metrics_csv(measured), MEANS: means_csv(summary)}
    write_results(output, summary, {**tables, **draw_rounds(summary, figures)})
    if update_reports:
        for one in measured:
            add_measures(one.run.folder, one.confidence, _similarity(one))
    return summary


def _similarity(one: Measured) -> dict[str, list[float]]:
    """What a report shows of similarity, by its names there: measures that are defined in every round."""
    whole = one.series["ssim_outside"][0] is None
    names = {CLIP_I: "CLIP-I", "ssim_inside": "SSIM" if whole else "SSIM inside", "ssim_outside": "SSIM outside"}
    found = {label: [value for value in one.series.get(name, ()) if value is not None] for name, label in names.items()}
    return {label: values for label, values in found.items() if len(values) == one.run.rounds + 1}
