"""`pie-engine refit`: other weights in a bundle, without exporting or compiling."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.shared import add_checkpoint_options, report
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    from pie_engine.bundling.refit import UNetWeights
    from pie_engine.checkpoint import Checkpoint, LoraSpec
    from pie_engine.model.bundle import Bundle


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "refit",
        help="put other fine-tuned weights into a bundle",
        description="Put a fine-tuned U-Net, a LoRA or a whole checkpoint of the same architecture into a bundle's "
        "graphs and engines, in seconds. Engines with fixed weights are compiled again.",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle that pie-engine build wrote")
    add_checkpoint_options(parser)
    parser.add_argument("--output", type=Path, help="bundle folder to write (default: NAME.pie in this folder)")
    parser.add_argument("--cache-dir", type=Path, help="component cache (default: as in build)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.checkpoint import LoraSpec
    from pie_engine.cli.terminal import say
    from pie_engine.files import check_folder
    from pie_engine.model.bundle import MANIFEST, open_bundle

    given = arguments.unet or arguments.checkpoint or (arguments.lora[0] if arguments.lora else None)
    if given is None:
        raise ConfigError("nothing to refit with; pass --unet CKPT or --checkpoint DIR, with or without --lora FILE")
    if arguments.unet is None and arguments.checkpoint is None:
        raise ConfigError(
            "a LoRA is fused into the weights that it was trained on, which a bundle may hold rounded or fused "
            "already; pass --unet CKPT or --checkpoint DIR beside --lora"
        )
    output = arguments.output or Path(f"{Path(given).stem}.pie")
    check_folder(output, replaceable=MANIFEST)
    loras = [LoraSpec.parse(text) for text in arguments.lora]
    bundle = open_bundle(arguments.bundle)
    say("loading the weights")
    weights = _load(arguments, bundle, loras)

    from pie_engine.bundling.refit import refit_bundle

    refitted = refit_bundle(
        bundle,
        weights,
        output,
        build_command=_command(arguments, bundle, output),
        cache_dir=arguments.cache_dir,
        on_component=lambda line: say(f"  {line}"),
    )
    report(refitted, arguments)
    return 0


def from_build(arguments: argparse.Namespace) -> int:
    """`pie-engine build --unet NEW --refit BUNDLE`: the bundle decides everything else."""
    for option in (
        "precision", "opset", "resolution", "batch", "compute_capability", "weights", "optimisation_level", "workspace"
    ):  # fmt: skip
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            raise ConfigError(f"--{name} is the refitted bundle's own; leave it out, or build without --refit")
    if arguments.regional:
        raise ConfigError("--regional takes an export, not a refit; leave it out, or build without --refit")
    if not arguments.check:
        raise ConfigError("a refit is held to PyTorch; leave --no-check out, or build without --refit")
    if arguments.backend != "onnxruntime":
        raise ConfigError("the refitted bundle decides its engines; leave --backend out, or build without --refit")
    arguments.bundle = arguments.refit
    return main(arguments)


def _load(arguments: argparse.Namespace, bundle: Bundle, loras: list[LoraSpec]) -> Checkpoint | UNetWeights:
    from pie_engine.checkpoint import load_checkpoint, load_unet_alone

    if arguments.checkpoint is not None:
        return load_checkpoint(arguments.checkpoint, unet=arguments.unet, lora=loras)
    from pie_engine.bundling.refit import UNetWeights

    config = bundle.manifest.get("architecture", {}).get("unet", {})
    return UNetWeights.for_bundle(bundle, *load_unet_alone(arguments.unet, config=config, lora=loras))


def _command(arguments: argparse.Namespace, bundle: Bundle, output: Path) -> str:
    """The build that gives the same bundle: with it, other engines can be asked for, which a refit cannot compile."""
    given = {"--unet": arguments.unet, "--checkpoint": arguments.checkpoint}
    # A LoRA was fused into weights that are replaced now.
    replaced = {"--lora", "--output", *(option for option, value in given.items() if value is not None)}
    words, dropping = [], False
    for word in shlex.split(bundle.build_command()):
        if dropping or word in replaced:
            dropping = not dropping
            continue
        words.append(word)
    for option, value in given.items():
        words += [] if value is None else [option, value]
    for lora in arguments.lora:
        words += ["--lora", lora]
    return shlex.join([*words, "--output", str(output)])
