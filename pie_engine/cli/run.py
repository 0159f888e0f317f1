"""`pie-engine run`: one patient's image -> frames, animation, contact sheet, provenance."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.method import add_method_options, method_from
from pie_engine.cli.outputs import add_output_options, outputs_from
from pie_engine.cli.patient import (
    add_finding_option,
    add_patient_options,
    add_region_options,
    reading_from,
    regions_from,
)
from pie_engine.cli.shared import add_checkpoint_options
from pie_engine.config import (
    DTYPES,
    INVERSIONS,
    NOISES,
    SEMANTICS,
    STEP_KERNELS,
    RoundSchedule,
    RunConfig,
    RuntimeConfig,
    check_interpolation,
)
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.engine import PieEngine
    from pie_engine.imaging import Region
    from pie_engine.imaging.item import Item


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
    output.add_argument("--json", action="store_true", help="print the result as one JSON object")
    output.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def add_model_options(model: Any) -> None:
    """The options that say what is loaded, on which backend."""
    model.add_argument("--engine", metavar="BUNDLE", help="bundle that pie-engine build wrote")
    add_checkpoint_options(model)
    model.add_argument(
        "--backend", default="auto", metavar="NAME",
        help="auto, tensorrt, tensorrt-rtx, torch, openvino or onnxruntime (auto)",
    )  # fmt: skip
    model.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if it can be used)")
    model.add_argument("--dtype", choices=DTYPES, help="precision (default: fp32, or the bundle's own)")
    model.add_argument("--threads", type=int, help="processor threads (default: the backend's choice)")


def add_progression_options(settings: Any) -> None:
    """The options of `RunConfig`, but for those of the image and its region."""
    default = RunConfig()
    settings.add_argument("--steps", type=int, default=default.steps, help=f"N, rounds ({default.steps})")
    settings.add_argument(
        "--strength",
        type=float,
        default=default.strength,
        help=f"gamma, share of the schedule per round ({default.strength})",
    )
    settings.add_argument(
        "--num-inference-steps", type=int, default=default.num_inference_steps, metavar="T",
        help=f"denoising steps of a full schedule ({default.num_inference_steps})",
    )  # fmt: skip
    settings.add_argument(
        "--guidance-scale", type=float, default=default.guidance_scale, metavar="G",
        help=f"classifier-free guidance; off at 1 and below ({default.guidance_scale})",
    )  # fmt: skip
    settings.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what guidance steers away from (empty)"
    )
    settings.add_argument(
        "--beta1", type=float, default=default.beta1, help=f"blend outside the region ({default.beta1})"
    )
    settings.add_argument(
        "--beta2", type=float, default=default.beta2, help=f"blend inside the region ({default.beta2})"
    )
    settings.add_argument(
        "--scheduler", metavar="NAME", help="ddim, pndm, euler, dpm++, unipc or a diffusers class "
        "(engine: ddim; official: the checkpoint's own)",
    )  # fmt: skip
    settings.add_argument(
        "--inversion", choices=INVERSIONS, default="noise", help="how a round enters the noise (noise)"
    )
    settings.add_argument("--noise", choices=NOISES, help="one noise for all rounds, or a fresh one for each (shared)")
    settings.add_argument(
        "--schedule", metavar="FILE", help="JSON: prompt, strength and guidance of single rounds (docs/usage.md)"
    )
    settings.add_argument("--no-composite", action="store_true", help="write decoded frames as they are")
    settings.add_argument(
        "--semantics", choices=SEMANTICS, default="engine", help="engine, or what the published code computes (engine)"
    )
    settings.add_argument("--seed", type=int, default=0, help="(0)")
    settings.add_argument("--resolution", type=int, metavar="PIXELS", help="side of the square (default: the model's)")


def add_runtime_options(group: Any) -> None:
    """The options of `RuntimeConfig`."""
    group.add_argument(
        "--fused-step", choices=STEP_KERNELS, default="auto", help="what runs between U-Net evaluations (auto)"
    )
    group.add_argument("--no-fused-step", dest="fused_step", action="store_const", const="eager", help="eager PyTorch")
    group.add_argument(
        "--no-fused-blocks", action="store_true", help="PyTorch's own norms in half precision on a GPU (torch backend)"
    )
    group.add_argument("--no-autotune", action="store_true", help="cuDNN's first guess of an algorithm (torch backend)")
    group.add_argument("--no-cuda-graph", action="store_true", help="launch every step anew instead of replaying it")
    group.add_argument("--no-overlap", action="store_true", help="decode each frame before the next round begins")
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False,
        help="compile the U-Net with torch.compile, which takes minutes at full size (torch backend; off)",
    )  # fmt: skip


def runtime_from(arguments: argparse.Namespace) -> RuntimeConfig:
    """The optimisations that the options leave on."""
    return RuntimeConfig(
        fused_step=arguments.fused_step,
        fused_blocks=not arguments.no_fused_blocks,
        autotune=not arguments.no_autotune,
        cuda_graph=not arguments.no_cuda_graph,
        overlap=not arguments.no_overlap,
        compile=arguments.compile,
    )


def config_from(arguments: argparse.Namespace) -> RunConfig:
    """The settings that the options ask for, validated."""
    return RunConfig(
        steps=arguments.steps,
        strength=arguments.strength,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        negative_prompt=arguments.negative_prompt,
        beta1=arguments.beta1,
        beta2=arguments.beta2,
        scheduler=arguments.scheduler,
        inversion=arguments.inversion,
        noise=arguments.noise,
        composite=False if arguments.no_composite else None,
        semantics=arguments.semantics,
        seed=arguments.seed,
        resolution=arguments.resolution,
        fit=arguments.fit,
        feather=arguments.feather,
        schedule=None if arguments.schedule is None else RoundSchedule.read(arguments.schedule),
    )


def _prompt_from(arguments: argparse.Namespace, config: RunConfig, regions: list[Region]) -> str:
    """--prompt, which is not needed where each region or each round has its own. Raises ConfigError."""
    if arguments.prompt is None and regions and all(region.prompt is not None for region in regions):
        return ""
    scheduled = [own.prompt for own in config.rounds]
    last = scheduled[-1]
    if None not in scheduled and last is not None:
        if arguments.prompt is not None:
            raise ConfigError("prompt is read in no round, for the schedule gives each its own; leave out --prompt")
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
    from pie_engine.cli.progress import say

    engine = PieEngine.load(
        arguments.engine,
        checkpoint=arguments.checkpoint,
        unet=arguments.unet,
        lora=[LoraSpec.parse(text) for text in arguments.lora],
        backend=arguments.backend,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        runtime=runtime_from(arguments),
        on_component=(lambda line: None) if arguments.quiet else say,
    )
    if not arguments.quiet:
        say(f"backend: {engine.chosen}")
    return engine


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import Progress
    from pie_engine.files import check_folder
    from pie_engine.imaging import read_stored
    from pie_engine.imaging.item import check_findings, check_item
    from pie_engine.outputs import check_outputs, check_source

    # Everything that can be refused cheaply is refused before a model is loaded.
    config, method, outputs = config_from(arguments), method_from(arguments), outputs_from(arguments)
    method.check(config)
    check_outputs(outputs)
    check_interpolation(arguments.interpolate, rounds=method.is_pie)
    check_folder(arguments.output, replaceable="provenance.json")
    item = item_from(arguments, config)
    check_findings([item], method)
    check_item(item, config)
    if outputs.native_size or outputs.dicom:
        check_source(read_stored(item.image, reading=item.reading), config, outputs)
    engine = engine_from(arguments)
    progress = Progress(config.steps, quiet=arguments.quiet)
    result = engine.run(item, config, method=method, on_progress=progress, interpolate=arguments.interpolate)
    written = result.save(arguments.output, outputs)
    if arguments.json:
        sys.stdout.write(json.dumps({**written, "change": result.change.to_dict()}) + "\n")
    else:
        look = written.get("report", written["sheet"])
        sys.stdout.write(
            f"{written['output']}: {config.steps} simulated frame{'s' * (config.steps != 1)}; look at {look}\n"
        )
    return 0
