"""A grid of settings over patients: simulated, measured, and put into one table, one summary and its plots."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine import __version__
from pie_engine.config.checks import integer, one_of
from pie_engine.errors import ConfigError, use
from pie_engine.evaluation.measures import CLIP_I, Measured, measure_run
from pie_engine.evaluation.results import MEANS, SUMMARY, check_plots
from pie_engine.evaluation.runs import find_runs
from pie_engine.evaluation.summary import describe_clip, describe_interval, describe_models
from pie_engine.evaluation.sweep.cells import LEAKAGE, CellSummary, front, ranges_by_axis, summarise_cell
from pie_engine.evaluation.sweep.design import Design, PlannedRun
from pie_engine.evaluation.sweep.grid import AXES, SEED, Cell, show
from pie_engine.evaluation.sweep.recipes import conclude
from pie_engine.evaluation.sweep.runs import KEY, OnProgress, simulate
from pie_engine.evaluation.sweep.store import is_done, open_output
from pie_engine.evaluation.sweep.tradeoff_plot import draw_plots
from pie_engine.evaluation.tables import ESTIMATE, column_names, estimate_cells, to_csv
from pie_engine.files import write_file
from pie_engine.imaging.item import PreparedItem, prepare_item
from pie_engine.metrics.classifier import Classifier, read_classifiers
from pie_engine.metrics.clip import ClipEncoder
from pie_engine.metrics.similarity import measure_similarity
from pie_engine.metrics.tradeoff import Stable
from pie_engine.outputs.figure import FORMATS, SUFFIXES
from pie_engine.outputs.frames import STATEMENT
from pie_engine.rounds.schedule import build_schedule

if TYPE_CHECKING:
    from pie_engine.engine import PieEngine

log = logging.getLogger(__name__)
TABLE = "sweep.csv"
SSIM = "ssim_inside"
# Where no other is given. Conventions: what counts as the same patient is for the study to say.
LEAST_SIMILARITY = {CLIP_I: 0.9, SSIM: 0.7}


@dataclass(frozen=True)
class Evaluators:
    """What measures confidence and similarity.

    Attributes:
        classifiers: at least one; plots show the first, a stable cell has to convince all.
        encoder: of CLIP-I; without one, similarity is SSIM inside the region.
    """

    classifiers: Sequence[Classifier]
    encoder: ClipEncoder | None = None
    clip: Path | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls, classifiers: Sequence[str | Path], clip: str | Path | None = None, *, trust: bool = False
    ) -> Evaluators:
        """Load them from their JSON files, and the folder of a CLIP checkpoint.

        Args:
            trust: whether classifiers in TorchScript are loaded, which are programs (SECURITY.md).

        Raises:
            ConfigError: no classifier is given. ConfigError, CheckpointError, BackendError: one cannot be used.
        """
        if not classifiers:
            raise ConfigError(
                f"a sweep needs the confidence of a classifier, and none is given; pass {use('classifiers', 'JSON')}",
                field="classifiers",
            )
        encoder = None if clip is None else ClipEncoder(clip)
        return cls(read_classifiers(classifiers, trust=trust), encoder, None if clip is None else Path(clip))

    @property
    def similarity(self) -> str:
        """The measure of similarity to the input."""
        return SSIM if self.encoder is None else CLIP_I

    def try_on(self, image: np.ndarray) -> None:
        """Measure one picture, [H, W, 3] uint8, so that nothing is refused after hours. Raises what measuring does."""
        for one in self.classifiers:
            one.confidence(image[None])
        if self.encoder is not None:
            self.encoder.features(image[None])
        measure_similarity(image, image)

    def describe(self) -> dict[str, Any]:
        """Names and hashes, for summary.json."""
        return {"classifiers": describe_models(self.classifiers), "clip": describe_clip(self.clip)}


def sweep(
    engine: PieEngine,
    design: Design,
    evaluators: Evaluators,
    output: str | Path,
    *,
    limits: Stable | None = None,
    recipe: str | None = None,
    batch: int = 1,
    figures: str = "png",
    seed: int = 0,
    on_start: Callable[[Sequence[PlannedRun]], None] = lambda missing: None,
    on_progress: OnProgress = lambda progress: None,
    on_run: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Simulate what is missing in the folder `output`, measure all of it, and write table, summary and plots.

    Every run is a folder as `Result.save` writes it, `runs/CELL/ID_seed=SEED`, complete or not there: a sweep that was
    stopped goes on where it was. A run in its place that is of another image, region, prompt, setting, model, backend
    or version is refused.

    Args:
        limits: of the stable region; None: confidence 0.5, similarity as in `LEAST_SIMILARITY`.
        recipe: a name of `RECIPES`, whose question the verdict answers; its grid is not added here.
        batch: patients that are simulated at once.
        figures: plots are PNG files; "svg" or "pdf" writes them as that too.
        seed: of the bootstrap.
        on_start: called with the runs that are missing.
        on_progress: called after each evaluation of the U-Net.
        on_run: called with each run's folder before it is measured.

    Returns:
        summary.json's content.

    Raises:
        OutputError: `output` holds something else, or runs that are not these. InputError, ConfigError, BackendError:
            an image, a setting or a model cannot be used.
    """
    integer("batch", batch, 1, 256, f"pass {use('batch', 4)}")
    one_of("figures", figures, FORMATS)
    check_plots()
    output = Path(output)
    limits = limits or Stable(similarity=LEAST_SIMILARITY[evaluators.similarity])
    runs, prepared = _prepare(engine, design)
    evaluators.try_on(np.asarray(next(iter(prepared.values())).image))
    open_output(output, engine)
    if len(design.prompts) > 1:
        log.warning("the runs differ in prompt (%d prompts): a cell's means mix them", len(design.prompts))
    missing = [run for run in runs if not is_done(run, output, prepared[run.variant].facts)]
    on_start(missing)
    patients = {run.patient.item_id: prepared[(run.patient.item_id,)] for run in runs}
    simulate(
        engine, missing, output, batch=batch, on_progress=on_progress,
        prepared=lambda run: patients[run.patient.item_id],
    )  # fmt: skip
    measured: list[tuple[PlannedRun, Measured]] = []
    for run in runs:
        on_run(run.folder)
        mask = patients[run.patient.item_id].mask
        measured.append((run, _measure(output / run.folder, evaluators, None if mask is None else mask.pixels)))
    cells = [
        summarise_cell(cell, [one for run, one in measured if run.cell is cell], evaluators.similarity, limits, seed)
        for cell in design.cells
    ]
    summary = _summarise(design, evaluators, limits, recipe, seed, measured, cells)
    plots = draw_plots(design.grid, cells, front(cells), evaluators.similarity, limits, figures)
    _write(output, summary, {TABLE: _sweep_csv(design, measured), MEANS: _means_csv(design, cells), **plots})
    return summary


def _prepare(engine: PieEngine, design: Design) -> tuple[list[PlannedRun], dict[tuple[object, ...], PreparedItem]]:
    """The runs with their resolution filled in, and by variant the images and regions, read once each.

    Schedules of all settings are made too, so that none is refused after hours.
    """
    model = engine.backend.model
    resolution = engine.resolve_resolution(design.base.resolution)
    runs = [replace(run, config=replace(run.config, resolution=resolution)) for run in design.runs]
    prepared: dict[tuple[object, ...], PreparedItem] = {}
    for run in runs:
        if run.variant not in prepared:
            prepared[run.variant] = prepare_item(run.item, run.config, model.vae_scale)
        if (patient := (run.patient.item_id,)) not in prepared:
            prepared[patient] = prepare_item(run.patient, run.config, model.vae_scale)
    for config in {
        (c.scheduler, c.num_inference_steps, c.denoising_steps): c for c in (run.config for run in runs)
    }.values():
        build_schedule(
            model.scheduler_config,
            name=config.scheduler or (None if config.semantics == "official" else "ddim"),
            num_inference_steps=config.num_inference_steps,
            denoising_steps=config.denoising_steps,
        )
    return runs, prepared


def _measure(folder: Path, evaluators: Evaluators, region: np.ndarray | None) -> Measured:
    """A run against its input, inside and outside the patient's region as it was given."""
    (run,) = find_runs([folder])
    measured = measure_run(run, evaluators.encoder, evaluators.classifiers, region=region)
    outside = run.provenance.get(KEY, {}).get("decoded_outside")
    if outside is not None:
        measured.series[LEAKAGE] = [None, *outside]
    return measured


def _summarise(
    design: Design,
    evaluators: Evaluators,
    limits: Stable,
    recipe: str | None,
    seed: int,
    measured: Sequence[tuple[PlannedRun, Measured]],
    cells: Sequence[CellSummary],
) -> dict[str, Any]:
    return {
        "statement": STATEMENT,
        "version": __version__,
        "recipe": recipe,
        "grid": {name: [show(value) for value in values] for name, values in design.grid.items()},
        "settings": design.base.to_dict(),
        "patients": len({one.run.patient for _, one in measured}),
        "runs": len(measured),
        "interval": describe_interval(seed),
        "similarity": evaluators.similarity,
        "models": evaluators.describe(),
        "stable": {"limits": limits.to_dict(), "stable_ranges": ranges_by_axis(design.grid, cells)},
        "prompts": design.prompts,
        "verdict": conclude(recipe, design.grid, cells, evaluators.similarity, seed),
        "cells": [
            summary.to_dict() | {"front": on_front} for summary, on_front in zip(cells, front(cells), strict=True)
        ],
    }


def _write(output: Path, summary: dict[str, Any], files: dict[str, str | bytes]) -> None:
    """Write the files and the summary that lists them beside the runs; plots of an earlier grid go."""
    summary["files"] = [*files, SUMMARY]
    for path in output.iterdir():
        plot = path.suffix in SUFFIXES and path.name.startswith(("over-", "rounds", "pareto"))
        if plot and path.name not in files:
            path.unlink()
    for name, content in files.items():
        write_file(output / name, content)
    write_file(output / SUMMARY, json.dumps(summary, indent=2) + "\n")


def _sweep_csv(design: Design, measured: Sequence[tuple[PlannedRun, Measured]]) -> str:
    """A line per run and round: cell, axes, patient, seed, round, measures; empty where one is not defined."""
    axes, names = _axes(design), list(measured[0][1].series)
    return to_csv(
        ["cell", *column_names(axes), "item_id", "patient", "seed", "round", *column_names(names)],
        (
            [
                *_cell_labels(run.cell, axes), run.item.item_id, one.run.patient[:12], run.config.seed, index,
                *(one.series[name][index] for name in names),
            ]
            for run, one in measured
            for index in range(one.run.rounds + 1)
        ),
    )  # fmt: skip


def _means_csv(design: Design, cells: Sequence[CellSummary]) -> str:
    """A line per cell and measure, after the last round: its mean over patients, interval, number of patients."""
    axes = _axes(design)
    return to_csv(
        ["cell", *column_names(axes), *ESTIMATE],
        (
            [*_cell_labels(summary.cell, axes), column, *estimate_cells(estimate.to_dict())]
            for summary in cells
            for column, estimate in zip(column_names(list(summary.final)), summary.final.values(), strict=True)
            if estimate is not None
        ),
    )


def _axes(design: Design) -> list[str]:
    return [name for name in AXES if name in design.grid and name != SEED]


def _cell_labels(cell: Cell, axes: Sequence[str]) -> list[Any]:
    return [cell.name, *(show(cell.values[name]) for name in axes)]
