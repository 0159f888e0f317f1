"""`pie-engine build`: checkpoint -> ONNX -> bundle."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from pie_engine.config import PRECISIONS


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "build",
        help="export a checkpoint and write an engine bundle",
        description="Export a Stable Diffusion v1.x checkpoint to ONNX and write an engine bundle. "
        "Components are cached by content: a new --unet exports only the U-Net.",
        allow_abbrev=False,
    )
    add_checkpoint_options(parser)
    parser.add_argument("--output", type=Path, help="bundle folder to write (default: NAME.pie in this folder)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of weights and activations (fp32)")
    parser.add_argument("--opset", type=int, default=20, help="ONNX opset (20)")
    parser.add_argument(
        "--cache-dir", type=Path, help="component cache (default: $PIE_ENGINE_CACHE or ~/.cache/pie-engine)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def add_checkpoint_options(parser: Any) -> None:
    """Options that name a checkpoint; shared with `run`."""
    parser.add_argument(
        "--checkpoint", metavar="DIR|FILE|HUB_ID",
        help="diffusers folder, single .safetensors file, or hub id in the local cache (also: --base)",
    )  # fmt: skip
    parser.add_argument("--unet", metavar="DIR|FILE", help="fine-tuned U-Net that replaces the checkpoint's")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="LoRA to fuse; may be given several times"
    )


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.bundle import MANIFEST
    from pie_engine.checkpoint import LoraSpec, load_checkpoint
    from pie_engine.cli.progress import say
    from pie_engine.config import BuildConfig
    from pie_engine.errors import ConfigError
    from pie_engine.files import check_folder

    if arguments.checkpoint is None and arguments.unet is None:
        raise ConfigError("nothing to build from; pass --checkpoint DIR, or --unet CKPT")
    config = BuildConfig(precision=arguments.precision, opset=arguments.opset, cache_dir=arguments.cache_dir)
    output = arguments.output or Path(f"{Path(arguments.unet or arguments.checkpoint).stem}.pie")
    check_folder(output, replaceable=MANIFEST)
    loras = [LoraSpec.parse(text) for text in arguments.lora]
    say("loading the checkpoint")
    checkpoint = load_checkpoint(arguments.checkpoint, unet=arguments.unet, lora=loras)

    from pie_engine.build import build_bundle

    say("exporting (a full-size U-Net takes about two minutes)")
    bundle = build_bundle(
        checkpoint,
        output,
        config,
        build_command=_command(arguments, output),
        on_component=lambda line: say(f"  {line}"),
    )
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    if arguments.json:
        result = {"bundle": str(output), "bytes": size, "components": bundle.manifest["components"]}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(f"{output}: {size / 1e6:.1f} MB, {config.precision}\n")
    return 0


def _command(arguments: argparse.Namespace, output: Path) -> str:
    words = ["pie-engine", "build"]
    for option in ("checkpoint", "unet"):
        if getattr(arguments, option) is not None:
            words += [f"--{option}", getattr(arguments, option)]
    for lora in arguments.lora:
        words += ["--lora", lora]
    words += ["--precision", arguments.precision, "--opset", str(arguments.opset)]
    if arguments.cache_dir is not None:
        words += ["--cache-dir", str(arguments.cache_dir)]
    return shlex.join([*words, "--output", str(output)])
