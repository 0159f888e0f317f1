"""`pie-engine demo`: the main job on the checkpoint that ships with the package."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.terminal import print_json, print_lines, say
from pie_engine.config.run import PACES
from pie_engine.demo import DOMAINS

if TYPE_CHECKING:
    from pie_engine.config import RunConfig


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        help="simulate a progression on the embedded demo checkpoint",
        description="Build engines from an embedded checkpoint and simulate a disease (an enlarging heart, diabetic "
        "retinopathy, melanoma) in a procedural phantom that was held out of its training. Two minutes or less on two "
        "cores. With --regress, the way back. With --phantoms, write such phantoms as files and run nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("--domain", choices=DOMAINS, default="chest", help="what kind of picture (chest)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder (demo-output, demo-regression or phantoms)")
    parser.add_argument("--patient", type=int, metavar="N", help="which held-out phantom, 0 to 999 (0)")
    parser.add_argument("--steps", "--rounds", type=int, metavar="N", help="rounds (10)")
    parser.add_argument("--backend", choices=("onnxruntime", "torch"), help="(onnxruntime)")
    parser.add_argument(
        "--pace", choices=PACES, help="even: every round shows another stage; constant: the paper's rounds (even)"
    )
    parser.add_argument("--regress", action="store_true", help="from the disease towards the healthy prompt")
    parser.add_argument(
        "--phantoms", type=int, metavar="N",
        help="write the first N held-out phantoms (images, masks, patients.csv) into DIR instead, and run nothing",
    )  # fmt: skip
    parser.add_argument("--diseased", action="store_true", help="--phantoms: the same patients with the disease")
    parser.add_argument(
        "--validation", action="store_true", help="--phantoms: those to choose settings on, for results on the others"
    )
    parser.add_argument(
        "--findings", action="store_true", help="--phantoms: a line for each finding that the chest's checkpoint knows"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.errors import ConfigError

    if arguments.phantoms is not None:
        for option in ("patient", "steps", "backend", "pace", "regress"):
            value = getattr(arguments, option)
            if value is not None and value is not False:  # 0 is a patient
                raise ConfigError(f"--{option} belongs to a run, and --phantoms runs nothing; leave one of them out")
        return _write_phantoms(arguments)
    for option in ("diseased", "findings", "validation"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option} belongs to phantoms that are written as files; pass --phantoms 20 too")
    return _simulate(arguments)


def _write_phantoms(arguments: argparse.Namespace) -> int:
    from pie_engine.demo.phantom_files import write_phantoms

    written = write_phantoms(
        arguments.output or Path("phantoms"), arguments.phantoms,
        domain=arguments.domain, diseased=arguments.diseased, each_finding=arguments.findings,
        validation=arguments.validation,
    )  # fmt: skip
    if arguments.json:
        print_json(written)
    else:
        count = f"{arguments.phantoms} held-out phantom{'s' * (arguments.phantoms != 1)}"
        print_lines(f"{written['patients']}: {count}, in {written['truth']} their true values")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import show_rounds
    from pie_engine.demo.domain import load_domain
    from pie_engine.errors import ConfigError
    from pie_engine.files import check_folder

    domain, patient, output = load_domain(arguments.domain), arguments.patient or 0, arguments.output
    if output is None:
        output = Path("demo-regression" if arguments.regress else "demo-output")
    domain.phantom(patient)  # refuses a number that there is not
    steps = domain.defaults.steps if arguments.steps is None else arguments.steps
    if not 1 <= steps <= 1000:
        raise ConfigError(f"steps {steps} is outside [1, 1000]; pass --steps 10")
    check_folder(output, replaceable="provenance.json")

    if not arguments.quiet:
        say("loading; the first run builds the model's graphs, later ones take them from the cache")
    from pie_engine.demo.simulate import simulate

    with show_rounds(steps, quiet=arguments.quiet) as on_progress:
        demo = simulate(
            domain=domain.name,
            patient=patient,
            steps=steps,
            backend=arguments.backend or "onnxruntime",
            regress=arguments.regress,
            pace=arguments.pace or "even",
            on_component=(lambda line: None) if arguments.quiet else (lambda line: say(f"  {line}")),
            on_progress=on_progress,
        )
    passed_over = demo.result.provenance["runtime"]["fused_step_note"]
    if passed_over and not arguments.quiet:
        say(f"going on without a faster step ({passed_over})")
    written = demo.save(output)
    if arguments.json:
        facts = {"confidence": demo.confidence, domain.measured.replace(" ", "_"): demo.measured}
        print_json({**written, **facts, "change": demo.result.change.to_dict()})
        return 0
    prompt = demo.result.provenance["simulated"]["prompt"]
    what, which = ("regression", domain.diseased) if arguments.regress else ("progression", domain.healthy)
    heading = f"confidence of {domain.diseased}"
    lines = [
        f'Simulated {what} of a held-out phantom ({which}) towards "{prompt}"',
        f"frame   {heading}   measured {domain.measured}",
    ]
    width = max(20, len(heading) - 11)
    for index, (confidence, value) in enumerate(zip(demo.confidence, demo.measured, strict=True)):
        name = "input" if index == 0 else str(index)
        measured = "not measurable" if value is None else f"{value:.3f}"
        lines.append(f"{name:>5}   {confidence:>10.2f} {'#' * round(20 * confidence):<{width}}   {measured}")
    # As it was called, so that the line works from a virtual environment that is not active.
    program = sys.argv[0] if Path(sys.argv[0]).name == "pie-engine" else "pie-engine"
    again = [program, "run", "--checkpoint", str(domain.checkpoint), "--image", written["frames"][0]]
    again += ["--mask", written["mask"], "--prompt", prompt]
    again += [*_settings(demo.result.config), "--item-id", demo.result.provenance["item_id"], "--output", "my-output"]
    look = [f"look at: {written['report']}", f"     or: {written['sheet']}", f"     or: {written['gif']}"]
    lines += [*look, f"try:     {shlex.join(again)}"]
    print_lines(*lines)
    return 0


def _settings(config: RunConfig) -> list[str]:
    """What differs from the defaults of `pie-engine run`, as its options; the resolution is the checkpoint's."""
    from pie_engine.config import RunConfig

    shown, usual = config.to_dict(), RunConfig().to_dict()
    words = []
    for name in ("steps", "strength", "guidance_scale", "inversion", "beta2", "pace"):
        if shown[name] != usual[name]:
            value = shown[name]
            words += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else f"{value:g}"]
    return words
