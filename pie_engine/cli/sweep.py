"""`pie-engine sweep`: a grid of settings over patients, as a table, a summary and plots."""

from __future__ import annotations

import argparse
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.method import add_baseline_options
from pie_engine.cli.patient import add_patient_options, add_region_options, reading_from
from pie_engine.cli.run import (
    add_model_options,
    add_progression_options,
    add_runtime_options,
    config_from,
    engine_from,
    item_from,
)
from pie_engine.cli.studies import add_study_output, end
from pie_engine.cli.terminal import say
from pie_engine.config.axes import AXES
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pie_engine.config import RunConfig
    from pie_engine.evaluation.sweep.design import PlannedRun
    from pie_engine.evaluation.sweep.runs import Progress
    from pie_engine.evaluation.tables import Table
    from pie_engine.imaging.item import Item

# Named here, so that --help needs none of the modules that know more about them.
RECIPES = ("healthy", "strength", "mask")


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "sweep",
        help="simulate a grid of settings, and plot confidence against similarity",
        description="Simulate every combination of the settings in --grid on every patient, measure confidence, "
        "similarity to the input and change outside the region, and mark where the progression is stable. A sweep "
        "that was stopped goes on where it was. The other options are those of run.",
        allow_abbrev=False,
    )
    grid = parser.add_argument_group("grid")
    axes = "; ".join(f"{name}: {axis.what}" for name, axis in AXES.items())
    grid.add_argument(
        "--grid", action="append", default=[], metavar="AXIS=VALUE,VALUE...",
        help=f"an axis and its values; may be given several times. {axes}",
    )  # fmt: skip
    grid.add_argument("--seeds", metavar="SEED,SEED...", help="repeat every cell; the same as --grid seed=")
    grid.add_argument(
        "--recipe", choices=RECIPES, help="a ready grid of the paper's first experiments, under --grid: a healthy "
        "image, strength 0.1 to 0.8, with and without the mask",
    )  # fmt: skip

    add_baseline_options(parser.add_argument_group("methods in the grid"))

    patients = parser.add_argument_group("patients")
    patients.add_argument("--patients", type=Path, metavar="FILE.csv", help="columns item_id, image, prompt and mask")
    add_patient_options(patients, required=False)
    add_region_options(patients)
    patients.add_argument("--prompt", metavar="TEXT", help="the finding to progress towards")
    patients.add_argument("--item-id", default="0", metavar="ID", help="names the item in its noise's seed (0)")

    evaluators = parser.add_argument_group("measures")
    evaluators.add_argument(
        "--classifier", type=Path, action="append", default=[], metavar="JSON",
        help="file that declares a classifier (docs/evaluation.md); may be given several times, the first is plotted",
    )  # fmt: skip
    evaluators.add_argument(
        "--trust", action="store_true", help="load models in TorchScript too: they are programs (SECURITY.md)"
    )
    evaluators.add_argument(
        "--clip", type=Path, metavar="DIR", help="folder of a CLIP checkpoint: similarity is CLIP-I instead of SSIM"
    )
    evaluators.add_argument(
        "--min-confidence", type=float, default=0.5, metavar="C", help="of a stable cell, every classifier's (0.5)"
    )
    evaluators.add_argument("--min-similarity", type=float, metavar="S", help="of a stable cell (SSIM 0.7, CLIP-I 0.9)")

    add_model_options(parser.add_argument_group("model"))
    add_progression_options(parser.add_argument_group("progression, where the grid does not say otherwise"))
    add_runtime_options(parser.add_argument_group("optimisations (the results agree up to rounding)"))

    output = parser.add_argument_group("output")
    add_study_output(output, "pie-sweep")
    output.add_argument("--batch", type=int, metavar="N", help="patients simulated at once (GPU: 4, processor: 1)")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import show_progress
    from pie_engine.config import METHOD_OPTIONS
    from pie_engine.config.checks import integer
    from pie_engine.evaluation.results import check_plots
    from pie_engine.evaluation.sweep.design import Design
    from pie_engine.evaluation.sweep.grid import parse_grid
    from pie_engine.evaluation.sweep.recipes import with_recipe
    from pie_engine.evaluation.sweep.store import check_output
    from pie_engine.evaluation.sweep.sweep import LEAST_SIMILARITY, Evaluators, sweep
    from pie_engine.metrics.tradeoff import Stable

    # Everything that can be refused cheaply is refused before a model is loaded.
    if arguments.batch is not None:
        integer("batch", arguments.batch, 1, 256, "pass --batch 4")
    grid = with_recipe(arguments.recipe, parse_grid(arguments.grid, arguments.seeds))
    if not grid and arguments.recipe is None:
        raise ConfigError("nothing is varied; pass --grid strength=0.1,0.3,0.5, --seeds or --recipe")
    check_output(arguments.output)
    config = config_from(arguments)
    options = {name: getattr(arguments, name) for name in METHOD_OPTIONS if getattr(arguments, name) is not None}
    design = Design(_patients(arguments, config), config, grid, options)
    design.check_patients()
    check_plots()
    evaluators = Evaluators.load(arguments.classifier, arguments.clip, trust=arguments.trust)
    least = arguments.min_similarity
    limits = Stable(arguments.min_confidence, LEAST_SIMILARITY[evaluators.similarity] if least is None else least)
    quiet = arguments.quiet
    if not quiet:
        say(_size(design))
    engine = engine_from(arguments)
    with _resumable(arguments.output), show_progress(quiet=quiet) as show:
        summary = sweep(
            engine,
            design,
            evaluators,
            arguments.output,
            limits=limits,
            recipe=arguments.recipe,
            figures=arguments.figures,
            batch=arguments.batch or (4 if engine.backend.device.type == "cuda" else 1),
            on_start=(lambda missing: None) if quiet else (lambda missing: _say_missing(design.runs, missing)),
            on_progress=lambda progress: show(*_where(progress)),
            on_run=(lambda name: None) if quiet else (lambda name: say(f"measuring {name}")),
        )
    return end(arguments, summary, [_table(summary)], "", summary["verdict"])


def _patients(arguments: argparse.Namespace, config: RunConfig) -> Sequence[Item]:
    """The one patient of the options, or those of the file."""
    from dataclasses import replace

    from pie_engine.evaluation.sweep.patients import read_patients

    of_one_patient = ("image", "prompt", "mask", "keep")
    if arguments.patients is None:
        for name in of_one_patient[:2]:
            if getattr(arguments, name) is None:
                raise ConfigError(f"no --{name} is given; pass --image and --prompt, or --patients FILE.csv")
        return [item_from(arguments, config)]
    for name in of_one_patient:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--patients names every patient's own {name}; leave out --{name}")
    shared = {
        "reading": reading_from(arguments),
        "dilate": arguments.dilate,
        "shift": arguments.shift,
        "components": arguments.mask_components,
    }
    return [replace(item, **shared) for item in read_patients(arguments.patients)]


def _size(design: Any) -> str:
    """What a sweep is made of, in words."""
    from pie_engine.evaluation.sweep.design import evaluations

    images = {str(one.image) for one in design.patients}
    # Lines of one image, with several prompts or regions, are one patient's.
    what = "patient" if len(images) == len(design.patients) else "line"
    parts = [(len(design.cells), "cell"), (len(design.patients), what), (len(design.seeds), "seed")]
    counts = " x ".join(f"{number} {name}{'s' * (number != 1)}" for number, name in parts)
    return f"{counts}: {len(design.runs)} runs, {evaluations(design.runs):,} U-Net evaluations"


def _say_missing(runs: Sequence[PlannedRun], missing: Sequence[PlannedRun]) -> None:
    from pie_engine.evaluation.sweep.design import evaluations

    done = len(runs) - len(missing)
    if done:
        say(f"{done} of {len(runs)} runs are there already; {evaluations(missing):,} U-Net evaluations are left")


@contextlib.contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """An interrupt says that complete runs stay."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        number = (interrupt.args or (signal.SIGINT,))[0]
        said = f"interrupted; runs that are complete stay in {output}, and the same command goes on from there"
        raise KeyboardInterrupt(number, said) from None


def _where(progress: Progress) -> tuple[str, int, int]:
    """What a sweep's progress is shown as."""
    run = min(progress.runs + 1, progress.all_runs)
    return f"run {run}/{progress.all_runs}", progress.evaluations, progress.all_evaluations


def _table(summary: dict[str, Any]) -> Table:
    """A row per cell."""
    from pie_engine.evaluation.tables import Table, interval_text

    names = [*summary["models"]["classifiers"]]
    columns = ["cell", *(f"confidence: {name}" for name in names), summary["similarity"]]
    columns += ["leakage", "ratio", "unevenness", ""]
    rows = []
    for cell in summary["cells"]:
        final = cell["final"]
        estimates = [final[f"confidence: {name}"] for name in names]
        estimates += [final[summary["similarity"]], final["decoded_leakage"]]
        estimates += [cell["increment_ratio"], cell["unevenness"]]
        marks = " ".join(word for word, holds in (("stable", cell["stable"]), ("front", cell["front"])) if holds)
        rows.append([cell["cell"], *(interval_text(estimate, ".3g") for estimate in estimates), marks])
    return Table(columns, rows)
