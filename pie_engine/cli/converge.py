"""`pie-engine converge`: do the rounds of a run converge, and as beta predicts?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.errors import InputError, OutputError

if TYPE_CHECKING:
    from pie_engine.evaluation.converge import CheckedRun
    from pie_engine.metrics.convergence import Comparison
    from pie_engine.metrics.decay import Decay

_SUFFIXES = (".svg", ".png")
# Rows of the table; more rounds are shown at even distances.
_MOST_ROWS = 12


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "converge",
        help="check whether a run's rounds converge, and as beta predicts",
        description="Fit a geometric decay to the change of each round inside the region of interest, compare it with "
        "what beta2 predicts for a constant edit, and the displacement outside with what beta1 predicts. Reads the "
        "folder that pie-engine run or demo wrote; with --save-latents only latents wholly inside the region count.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that pie-engine run or demo wrote")
    parser.add_argument("--output", type=Path, metavar="FILE.svg|FILE.png", help="write a plot of the increments")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.evaluation.converge import check_run
    from pie_engine.files import check_file, write_file

    output: Path | None = arguments.output
    if output is not None:
        if output.suffix not in _SUFFIXES:
            raise OutputError(f"{output} does not end in {' or '.join(_SUFFIXES)}; pass another name")
        check_file(output, suffix=output.suffix)
    run = check_run(arguments.folder)
    if output is not None:
        write_file(output, _plot(run, arguments.folder, output.suffix))
    if arguments.json:
        sys.stdout.write(json.dumps({**run.to_dict(), "plot": None if output is None else str(output)}) + "\n")
        return 0
    sys.stdout.write("\n".join([*_table(run), "", *_findings(run)]) + "\n")
    if output is not None:
        sys.stdout.write(f"look at {output}\n")
    return 0


def _plot(run: CheckedRun, folder: Path, suffix: str) -> bytes:
    from pie_engine.evaluation.semilog import Curve, draw_semilog

    increments, decay = run.found.rounds.increments, run.found.trend.decay
    if not any(increments):
        raise InputError(f"{folder} has no change to plot in any round; leave out --output")
    numbers = range(1, len(increments) + 1)
    curves = [Curve("measured", list(zip(numbers, increments, strict=True)), marked=True)]
    if decay is not None:
        points = [(n, decay.start * decay.rate**n) for n in range(decay.first, decay.last + 1)]
        curves.append(Curve(f"fitted: r = {decay.rate:.3f} ({decay.low:.3f} to {decay.high:.3f})", points))
    if run.found.inside is not None:
        beta, first = run.found.inside.beta, increments[0]
        name = f"constant edit: beta2^n, beta2 = {beta:g}" if run.betas else "constant edit, no mask"
        curves.append(Curve(name, [(n, first * beta ** (n - 1)) for n in numbers]))
    title = f"Change per round inside the region of interest, {run.noise}"
    title += " noise" if run.noise != "inversion" else ""
    return draw_semilog(title, "increment, root mean square of latents", curves, len(increments), suffix)


def _table(run: CheckedRun) -> list[str]:
    rounds, inside = run.found.rounds, run.found.inside
    count = len(rounds.increments)
    shown = sorted({round(1 + (count - 1) * row / (_MOST_ROWS - 1)) for row in range(_MOST_ROWS)})
    lines = ["round   increment   ratio   constant edit   displacement" + ("   outside" if rounds.outside else "")]
    for number in shown:
        increment, before = rounds.increments[number - 1], rounds.increments[number - 2] if number > 1 else 0.0
        ratio = f"{increment / before:.3f}" if before else ""
        edit = f"{rounds.increments[0] * inside.beta ** (number - 1):.3e}" if inside is not None else ""
        outside = f"   {rounds.outside[number - 1]:.1e}" if rounds.outside else ""
        displacement = rounds.displacement[number - 1]
        lines.append(f"{number:>5}   {increment:.3e}   {ratio:>5}   {edit:>13}   {displacement:>12.4f}{outside}")
    return lines


def _findings(run: CheckedRun) -> list[str]:
    found, trend = run.found, run.found.trend
    lines = [f"verdict     {trend.verdict}: {trend.reason}"]
    if trend.rounds_needed is not None:
        lines.append(f"            about --steps {trend.rounds_needed} would decide, if it goes on like this")
    lines += [f"{name:<12}{_decay(own)}" for name, own in (("rate", trend.decay), ("late rate", trend.late)) if own]
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
        rates = ", ".join("none" if own.decay is None else f"{own.decay.rate:.3f}" for own in found.channels)
        lines.append(f"channels    rates {rates}")
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
