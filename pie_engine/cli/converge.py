"""`pie-engine converge`: do the rounds of runs converge, and as beta predicts?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.studies import add_folders
from pie_engine.cli.terminal import print_json

if TYPE_CHECKING:
    from pie_engine.evaluation.converge import CheckedRun
    from pie_engine.evaluation.tables import Table
    from pie_engine.metrics.convergence import Comparison
    from pie_engine.metrics.decay import Decay

# Rows of the table; more rounds are shown at even distances.
_MOST_ROWS = 12


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "converge",
        help="check whether runs' rounds converge, and as beta predicts",
        description="Fit a geometric decay to the change of each round inside the region of interest, compare it with "
        "what beta2 predicts for a constant edit, and the displacement outside with what beta1 predicts. With "
        "--save-latents only latents wholly inside the region count. Several runs get a row each.",
        allow_abbrev=False,
    )
    add_folders(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE.svg|.png|.pdf", help="write a plot of the increments into this file"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.tables import show
    from pie_engine.evaluation.converge import check_runs
    from pie_engine.evaluation.converge_plot import save_plot
    from pie_engine.outputs.figure import check_figure

    output: Path | None = arguments.output
    if output is not None:
        check_figure(output)
    runs = check_runs(arguments.folders)
    if output is not None:
        save_plot(runs, output)
    if arguments.json:
        found = runs[0].to_dict() if len(runs) == 1 else {"runs": [run.to_dict() for run in runs]}
        print_json({**found, "plot": None if output is None else str(output)})
        return 0
    look = [] if output is None else [f"look at {output}"]
    if len(runs) == 1:
        show([_rounds(runs[0])], "", *_findings(runs[0]), *look)
    else:
        show([_overview(runs)], "", _verdicts(runs), *look)
    return 0


def _overview(runs: list[CheckedRun]) -> Table:
    """A row per run."""
    from pie_engine.evaluation.tables import Table

    columns = ["run", "rounds", "verdict", "rate", "late rate", "rate of beta2", "inside", "outside"]
    rows = []
    for run in runs:
        trend, inside, outside = run.found.trend, run.found.inside, run.found.outside
        rates = [
            "" if decay is None else f"{decay.rate:.3f} [{decay.low:.3f}, {decay.high:.3f}]"
            for decay in (trend.decay, trend.late)
        ]
        beta = "" if inside is None else f"{inside.beta:g}"
        agreement = ["not compared" if part is None else _answer(part) for part in (inside, outside)]
        rows.append([run.name, str(len(run.found.rounds.increments)), trend.verdict, *rates, beta, *agreement])
    notes = ["[95 % interval of one run's rate]; inside, outside: as beta2 and beta1 predict"]
    return Table(columns, rows, notes=notes)


def _verdicts(runs: list[CheckedRun]) -> str:
    """How many runs have each verdict."""
    verdicts = [run.found.trend.verdict for run in runs]
    counts = ", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    return f"{len(runs)} runs; {counts}"


def _rounds(run: CheckedRun) -> Table:
    """A row per round."""
    from pie_engine.evaluation.tables import Table

    rounds, inside = run.found.rounds, run.found.inside
    count = len(rounds.increments)
    shown = sorted({round(1 + (count - 1) * row / (_MOST_ROWS - 1)) for row in range(_MOST_ROWS)})
    columns = ["round", "increment", "ratio", "constant edit", "displacement", *["outside"] * bool(rounds.outside)]
    rows = []
    for number in shown:
        increment, before = rounds.increments[number - 1], rounds.increments[number - 2] if number > 1 else 0.0
        rows.append(
            [
                str(number),
                f"{increment:.3e}",
                f"{increment / before:.3f}" if before else "",
                f"{rounds.increments[0] * inside.beta ** (number - 1):.3e}" if inside is not None else "",
                f"{rounds.displacement[number - 1]:.4f}",
                *([f"{rounds.outside[number - 1]:.1e}"] if rounds.outside else []),
            ]
        )
    return Table(columns, rows)


def _findings(run: CheckedRun) -> list[str]:
    found, trend = run.found, run.found.trend
    lines = [f"verdict     {trend.verdict}: {trend.reason}"]
    if trend.rounds_needed is not None:
        lines.append(f"            about --steps {trend.rounds_needed} would decide, if it goes on like this")
    rates = (("rate", trend.decay), ("late rate", trend.late))
    lines += [f"{name:<12}{_decay(decay)}" for name, decay in rates if decay is not None]
    if trend.ratios is not None:
        lines.append(
            f"ratios      from {trend.ratios[0]:.3f} to {trend.ratios[1]:.3f}, one increment to the one before"
        )
    if found.remaining and trend.rising:
        lines.append("            the last two lie above the late rate: rounds to come may shrink more slowly")
    if found.remaining:
        lines.append(
            f"remaining   at most {found.remaining:.2g} after the last round, in latent units, if the rate holds"
        )
    lines += _inside(run)
    if run.official:
        lines.append("as beta     not compared: as published, the original is drawn anew in every round")
    elif found.outside is not None:
        lines.append(f"outside     as beta1 predicts: {_answer(found.outside)}, {_displacement(found.outside)}")
        lines.append(f"            (a displacement that does not add up stays at beta1 = {found.outside.beta:g})")
    if found.channels is not None:
        decays = [channel.decay for channel in found.channels]
        lines.append(
            f"channels    rates {', '.join('none' if decay is None else f'{decay.rate:.3f}' for decay in decays)}"
        )
    if run.noise == "fresh":
        lines.append("noise       fresh: another noise in each round moves the latents by itself (--noise shared)")
    lines.append(f"measured    {_REGION[run.source]}, {run.source}")
    return [*lines, "paper       its bound needs numbers that no run has (docs/convergence.md)"]


_REGION = {
    "latents.safetensors": "on latents wholly inside the region",
    "provenance.json": "on latents at least half inside the region (--save-latents tells more)",
}


def _inside(run: CheckedRun) -> list[str]:
    inside, found = run.found.inside, run.found
    if len(run.betas) > 1 and not run.official:
        betas = ", ".join(f"{beta:g}" for beta in run.betas)
        return [f"inside      not compared: the regions have several betas ({betas}), which predict no single rate"]
    if inside is None:
        return [] if run.official else ["inside      not compared: the first round shows no edit"]
    what = "as beta2 predicts" if run.betas else "as predicted without a mask, where nothing is blended"
    line = f"inside      {what}: {_answer(inside)}, {_displacement(inside)}"
    if found.trend.decay is not None:
        line += f"; rate {found.trend.decay.rate:.3f} against {inside.beta:g}"
    if found.carried is None:
        return [line]
    return [line, f"            so late rounds carry {found.carried:.3f} of a change into the next"]


def _displacement(comparison: Comparison) -> str:
    return f"displacement {comparison.measured:.4g} against {comparison.expected:.4g} times the edit"


def _answer(comparison: Comparison) -> str:
    return "yes" if comparison.agrees else "no"


def _decay(decay: Decay) -> str:
    half = "it does not shrink" if decay.half_life is None else f"half-life {decay.half_life:.2f} rounds"
    return (
        f"{decay.rate:.3f} (95 %: {decay.low:.3f} to {decay.high:.3f}) in rounds {decay.first} to {decay.last}, {half}"
    )
