"""`pie-engine run`: one patient's image -> frames, animation, contact sheet, provenance."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.method import add_method_options, method_from
from pie_engine.cli.options import add_settings, settings_from
from pie_engine.cli.outputs import add_output_options, outputs_from
from pie_engine.cli.patient import (
    add_finding_option,
    add_patient_options,
    add_region_options,
    reading_from,
    regions_from,
)
from pie_engine.cli.repeat import KEY, add_from_option, check_inputs, check_model
from pie_engine.cli.settings_file import add_config_options, to_mapping, to_text
from pie_engine.cli.shared import add_checkpoint_options
from pie_engine.cli.terminal import print_json, print_lines, say
from pie_engine.config import Placement, RunConfig, RuntimeConfig, check_interpolation
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.config import MethodConfig, OutputConfig
    from pie_engine.engine import PieEngine
    from pie_engine.imaging import Region
    from pie_engine.imaging.item import Item
    from pie_engine.outputs import Result
    from pie_engine.outputs.partial import Partial
    from pie_engine.rounds.resuming import Interrupted


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "run",
        help="simulate one progression",
        description="Simulate a disease progression in one image. Outputs are synthetic, for research use only. "
        "The published script's spellings (--guidance_scale, --step, --image_path, ...) are accepted.",
        allow_abbrev=False,
    )
    add_model_options(parser.add_argument_group("model"))
    patient = parser.add_argument_group("patient")
    add_patient_options(patient)
    add_region_options(patient)
    add_finding_option(patient)
    patient.add_argument("--prompt", metavar="TEXT", help="the finding to progress towards")
    patient.add_argument("--item-id", default="0", metavar="ID", help="names the item in its noise's seed (0)")

    add_progression_options(parser.add_argument_group("progression"))
    add_method_options(parser.add_argument_group("method"))
    add_runtime_options(parser.add_argument_group("optimisations (the results agree up to rounding)"))

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=Path("pie-output"),
        metavar="DIR",
        help="folder; an earlier result in it is replaced (pie-output)",
    )
    add_output_options(output)
    output.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in --output; the other options as before"
    )
    output.add_argument("--json", action="store_true", help="print the result as one JSON object")
    output.add_argument("--quiet", action="store_true", help="no progress")
    files = parser.add_argument_group("settings as a file")
    add_config_options(files)
    add_from_option(files)
    return parser


def add_model_options(model: Any) -> None:
    """The options that say what is loaded, on which backend."""
    model.add_argument("--engine", metavar="BUNDLE", help="bundle that pie-engine build wrote")
    add_checkpoint_options(model)
    add_settings(model, Placement, but=("runtime",))


# Those that stand among the options of the image and its region.
PATIENT_SETTINGS = ("fit", "feather")


def add_progression_options(group: Any) -> None:
    """The options of `RunConfig`, but for those of the image and its region."""
    add_settings(group, RunConfig, but=PATIENT_SETTINGS)


def add_runtime_options(group: Any) -> None:
    """The options of `RuntimeConfig`."""
    add_settings(group, RuntimeConfig)
    group.add_argument("--no-fused-step", dest="fused_step", action="store_const", const="eager", help="eager PyTorch")


def runtime_from(arguments: argparse.Namespace) -> RuntimeConfig:
    """The optimisations that the options leave on."""
    return settings_from(arguments, RuntimeConfig)


def config_from(arguments: argparse.Namespace) -> RunConfig:
    """The settings that the options ask for, validated."""
    return settings_from(arguments, RunConfig)


def _prompt_from(arguments: argparse.Namespace, config: RunConfig, regions: list[Region]) -> str:
    """--prompt, which is not needed where each region or each round has its own. Raises ConfigError."""
    if arguments.prompt is None and regions and all(region.prompt is not None for region in regions):
        return ""
    scheduled = [settings.prompt for settings in config.rounds]
    last = scheduled[-1]
    if None not in scheduled and last is not None:
        if arguments.prompt is not None:
            raise ConfigError("prompt is never used: the schedule gives every round its own; leave out --prompt")
        return last
    if arguments.prompt is None and config.schedule is not None:
        silent = 1 + scheduled.index(None)
        raise ConfigError(f"the schedule has no prompt in round {silent}; write one there, or pass --prompt")
    if arguments.prompt is None:
        raise ConfigError("the following arguments are required: --prompt; see pie-engine run --help")
    return str(arguments.prompt)


def item_from(arguments: argparse.Namespace, config: RunConfig) -> Item:
    """The item that the options name, validated; nothing is read."""
    from pie_engine.imaging.item import Item

    regions = regions_from(arguments.mask, "mask")
    return Item(
        arguments.image,
        _prompt_from(arguments, config, regions or []),
        regions,
        arguments.item_id,
        reading_from(arguments),
        keep=regions_from(arguments.keep, "keep"),
        dilate=arguments.dilate,
        shift=arguments.shift,
        components=arguments.mask_components,
    )


def engine_from(arguments: argparse.Namespace) -> PieEngine:
    """The engine that the options name, loaded; says on stderr what it is doing, unless it is to be quiet."""
    from pie_engine import PieEngine
    from pie_engine.checkpoint import LoraSpec

    engine = PieEngine.load(
        arguments.engine,
        checkpoint=arguments.checkpoint,
        unet=arguments.unet,
        lora=[LoraSpec.parse(text) for text in arguments.lora],
        placement=settings_from(arguments, Placement, runtime=runtime_from(arguments)),
        on_component=(lambda line: None) if arguments.quiet else say,
    )
    if not arguments.quiet:
        say(f"backend: {engine.chosen}")
    return engine


def _partial(arguments: argparse.Namespace, config: RunConfig, method: MethodConfig, item: Item) -> Partial | None:
    """The interrupted run that --resume goes on with, held to what is known before a model is loaded."""
    from pie_engine.outputs.partial import read_partial

    if not arguments.resume:
        return None
    partial = read_partial(arguments.output)
    if partial is None:
        if not arguments.quiet:
            say(f"{arguments.output} holds no interrupted run; starting anew")
        return None
    settings = config.to_dict()
    if config.resolution is None:
        del settings["resolution"]  # the model's, which is not loaded yet
    partial.check({"settings": settings, "method": method.to_dict(), "item_id": item.item_id})
    if not arguments.quiet:
        say(f"going on after round {partial.finished.rounds} of {config.steps}")
    return partial


def _with_options(result: Result, arguments: argparse.Namespace, method: MethodConfig, outputs: OutputConfig) -> Result:
    """The result with the options that made it in its provenance, for --from."""
    options = to_mapping(arguments, (result.config, method, runtime_from(arguments), outputs))
    backend = result.provenance["backend"]  # what was taken, where it was left open
    options |= {"backend": backend["name"], "device": backend["device"]}
    return replace(result, provenance={**result.provenance, KEY: options})


def _keep(
    interrupt: Interrupted,
    arguments: argparse.Namespace,
    method: MethodConfig,
    outputs: OutputConfig,
    partial: Partial | None,
) -> KeyboardInterrupt:
    """Write the rounds that are finished. Returns what to raise: the interrupt, with what was done about it in words.

    A whole result that lies in the folder stays, as it would had the run been interrupted in its first round.
    """
    number = (interrupt.args or (signal.SIGINT,))[0]
    output = arguments.output
    result = _with_options(interrupt.results[0], arguments, method, outputs)
    rounds, steps = len(result.latents), result.config.steps
    if partial is not None and rounds <= partial.finished.rounds:
        return KeyboardInterrupt(number, f"interrupted; {output} stays as it was")
    folder = output
    if partial is None and output.is_dir() and any(output.iterdir()):
        folder = output.with_name(f"{output.name}.partial")
    # What leaves this machine (a series, native frames) is made of whole runs alone.
    result.save(folder, replace(outputs, mp4=False, native_size=False, dicom=False, dicom_same_study=False))
    return KeyboardInterrupt(
        number,
        f"interrupted after round {rounds} of {steps}; these are in {folder}, and the same command with --resume "
        f"--output {shlex.quote(str(folder))} goes on from there",
    )


def _standing_still(result: Result, method: MethodConfig) -> str:
    """Where a tolerance ended the rounds; or that their last half is one picture, and what spreads the change."""
    from pie_engine.metrics.change import late_change
    from pie_engine.outputs.provenance import say_stopped

    config, steps = result.config, result.config.steps
    if "stopped" in result.provenance:
        return say_stopped(result.provenance["stopped"], steps)
    settling = config.noise == "shared" or config.inversion == "ddim"
    if method.name != "pie" or config.semantics != "engine" or config.pace != "constant" or not settling:
        return ""
    if steps < 4 or late_change(result.frames, result.mask) >= 1:
        return ""
    return (
        f"rounds {steps // 2 + 1} to {steps} change less than a grey level inside the region; --pace even spreads the "
        "change over all of them"
    )


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import show_rounds
    from pie_engine.files import check_folder
    from pie_engine.imaging import read_stored
    from pie_engine.imaging.item import check_findings, check_item
    from pie_engine.outputs import check_outputs, check_source
    from pie_engine.outputs.provenance import say_regional
    from pie_engine.rounds.resuming import Interrupted
    from pie_engine.rounds.severity import choose_severity

    # Everything that can be refused cheaply is refused before a model is loaded.
    config, method, outputs = config_from(arguments), method_from(arguments), outputs_from(arguments)
    if arguments.print_config:
        sys.stdout.write(to_text(arguments, (config, method, runtime_from(arguments), outputs)))
        return 0
    method.check(config)
    check_outputs(outputs)
    check_interpolation(arguments.interpolate, rounds=method.is_pie)
    check_folder(arguments.output, replaceable="provenance.json")
    origin = None if arguments.from_ is None else Path(arguments.from_).resolve().parent
    if origin == arguments.output.resolve() and not arguments.resume:
        raise ConfigError(f"{arguments.output} holds the run that is to run again; pass another --output")
    item = item_from(arguments, config)
    check_findings([item], method)
    check_item(item, config)
    severity = choose_severity(config)
    if arguments.from_ is not None:
        check_inputs(arguments, item, config)
    if outputs.native_size or outputs.dicom:
        check_source(read_stored(item.image, reading=item.reading), config, outputs)
    partial = _partial(arguments, config, method, item)
    engine = engine_from(arguments)
    if arguments.from_ is not None:
        check_model(arguments, engine.backend.model.hashes)
    try:
        with show_rounds(config.steps, quiet=arguments.quiet) as on_progress:
            result = engine.run(
                item,
                config,
                method=method,
                on_progress=on_progress,
                interpolate=arguments.interpolate,
                severity=severity,
                resume=None if partial is None else arguments.output,
            )
    except Interrupted as interrupt:
        raise _keep(interrupt, arguments, method, outputs, partial) from None
    for line in (say_regional(result.provenance["regional"], config.steps), _standing_still(result, method)):
        if line and not arguments.quiet:
            say(line)
    written = _with_options(result, arguments, method, outputs).save(arguments.output, outputs)
    if arguments.json:
        print_json({**written, "change": result.change.to_dict()})
    else:
        look = written.get("report", written["sheet"])
        print_lines(f"{written['output']}: {config.steps} simulated frame{'s' * (config.steps != 1)}; look at {look}")
    return 0
