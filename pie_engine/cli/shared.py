"""What several commands share: the options that name a checkpoint, and what is said of a bundle that was written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pie_engine.cli.terminal import print_json, print_lines

if TYPE_CHECKING:
    from pie_engine.model.bundle import Bundle


def add_checkpoint_options(parser: Any) -> None:
    """Options that name a checkpoint."""
    parser.add_argument(
        "--checkpoint", "--base", metavar="DIR|FILE|HUB_ID",
        help="diffusers folder, single .safetensors file, or hub id in the local cache",
    )  # fmt: skip
    parser.add_argument("--unet", metavar="DIR|FILE", help="fine-tuned U-Net that replaces the checkpoint's")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:SCALE]", help="LoRA to fuse; may be given several times"
    )


def report(bundle: Bundle, arguments: argparse.Namespace) -> None:
    """Print what was written, on stdout."""
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    if arguments.json:
        components, engines = bundle.manifest["components"], bundle.engines()
        result = {"bundle": str(bundle.path), "bytes": size, "components": components, "engines": engines}
        print_json(result)
        return
    print_lines(f"{bundle.path}: {size / 1e6:.1f} MB, {bundle.precision}")
