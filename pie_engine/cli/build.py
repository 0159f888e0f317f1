"""`pie-engine build`: checkpoint -> ONNX -> bundle."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from pie_engine.cli import refit
from pie_engine.cli.shared import add_checkpoint_options, report
from pie_engine.config import ENGINE_WEIGHTS, FLAVOURS, PRECISIONS, BuildConfig, EngineConfig
from pie_engine.errors import ConfigError


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "build",
        help="export a checkpoint and write an engine bundle",
        description="Bring a Stable Diffusion v1.x checkpoint into ONNX graphs, compile them if a backend is named, "
        "and write an engine bundle. Components and engines are cached by content: a new --unet makes only the U-Net.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", metavar="CHECKPOINT", help="the same as --checkpoint")
    add_checkpoint_options(parser)
    parser.add_argument("--output", type=Path, help="bundle folder to write (default: NAME.pie in this folder)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of weights and activations (fp32; TensorRT: fp16)")
    parser.add_argument("--opset", type=int, help="ONNX opset (20; TensorRT: 23, which keeps attention whole)")
    parser.add_argument(
        "--cache-dir", type=Path, help="component cache (default: $PIE_ENGINE_CACHE or ~/.cache/pie-engine)"
    )
    parser.add_argument(
        "--regional",
        action="store_true",
        help="graphs for regional rounds too (default: the first such run makes them)",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hold every graph to PyTorch by one small evaluation (on)",
    )
    parser.add_argument("--refit", metavar="BUNDLE", help="put the new weights into this bundle's graphs and engines")
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def add_engine_options(parser: Any) -> None:
    """Options that say which engines are compiled."""
    engines = parser.add_argument_group("engines")
    engines.add_argument(
        "--backend", choices=("onnxruntime", *FLAVOURS), default="onnxruntime", help="what to compile for (onnxruntime)"
    )
    engines.add_argument("--resolution", metavar="LIST", help="sides in pixels, such as 512,768 (default: the model's)")
    engines.add_argument("--batch", metavar="LIST", help="items that run at once, such as 1,4 (1)")
    engines.add_argument(
        "--compute-capability", metavar="LIST",
        help="GPUs to compile for, such as 8.6,8.9,12.0 (tensorrt-rtx; default: the GPU at hand)",
    )  # fmt: skip
    engines.add_argument(
        "--weights", choices=ENGINE_WEIGHTS,
        help="fixed or refittable (default: refittable where the GPU is at hand, else fixed)",
    )  # fmt: skip
    engines.add_argument("--optimisation-level", type=int, metavar="0-5", help="longer builds, faster engines")
    engines.add_argument("--workspace", type=float, metavar="GIB", help="most scratch memory on the GPU (all)")


def engine_config(arguments: argparse.Namespace) -> EngineConfig | None:
    """The engines that the options ask for, validated; None for none."""
    if arguments.backend == "onnxruntime":
        for option, value in (
            ("resolution", arguments.resolution), ("batch", arguments.batch), ("weights", arguments.weights),
            ("compute-capability", arguments.compute_capability), ("workspace", arguments.workspace),
            ("optimisation-level", arguments.optimisation_level),
        ):  # fmt: skip
            if value is not None:
                raise ConfigError(
                    f"--{option} is for compiled engines, and ONNX Runtime takes every size; leave it out, or pass "
                    "--backend tensorrt or tensorrt-rtx"
                )
        return None
    return EngineConfig(
        arguments.backend,
        resolutions=_numbers("resolution", arguments.resolution, "512,768"),
        batches=_numbers("batch", arguments.batch, "1,4") or (1,),
        capabilities=tuple(part.strip() for part in (arguments.compute_capability or "").split(",") if part.strip()),
        weights=arguments.weights,
        optimisation_level=arguments.optimisation_level,
        workspace=arguments.workspace,
    )


def _numbers(option: str, text: str | None, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers; pass --{option} {example}") from None


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.checkpoint import LoraSpec, load_checkpoint
    from pie_engine.cli.terminal import say
    from pie_engine.files import check_folder
    from pie_engine.model.bundle import MANIFEST

    if arguments.folder is not None:
        if arguments.checkpoint is not None:
            raise ConfigError(
                f"{arguments.folder} and --checkpoint {arguments.checkpoint} both name the checkpoint; pass one of "
                "them; a fine-tuned U-Net over a base is --unet"
            )
        arguments.checkpoint = arguments.folder
    if arguments.refit is not None:
        return refit.from_build(arguments)
    if arguments.checkpoint is None and arguments.unet is None:
        raise ConfigError("nothing to build from; pass --checkpoint DIR, or --unet CKPT")
    config = BuildConfig(
        precision=arguments.precision or "",
        opset=0 if arguments.opset is None else arguments.opset,
        cache_dir=arguments.cache_dir,
        regional=arguments.regional,
        check=arguments.check,
        engines=engine_config(arguments),
    )
    output = arguments.output or Path(f"{Path(arguments.unet or arguments.checkpoint).stem}.pie")
    check_folder(output, replaceable=MANIFEST)
    if config.engines is not None:
        from pie_engine.bundling.target import check_machine

        check_machine(config.engines)
    loras = [LoraSpec.parse(text) for text in arguments.lora]
    say("loading the checkpoint")
    checkpoint = load_checkpoint(arguments.checkpoint, unet=arguments.unet, lora=loras)

    from pie_engine.bundling import build_bundle

    say("making the graphs (a full-size U-Net of an unknown architecture takes about two minutes)")
    bundle = build_bundle(
        checkpoint,
        output,
        config,
        build_command=_command(arguments, config, output),
        on_component=lambda line: say(f"  {line}"),
    )
    report(bundle, arguments)
    return 0


def _command(arguments: argparse.Namespace, config: BuildConfig, output: Path) -> str:
    words = ["pie-engine", "build"]
    for option in ("checkpoint", "unet"):
        if getattr(arguments, option) is not None:
            words += [f"--{option}", getattr(arguments, option)]
    for lora in arguments.lora:
        words += ["--lora", lora]
    words += ["--precision", config.precision, "--opset", str(config.opset)]
    if config.engines is not None:
        words += ["--backend", arguments.backend]
        for option in (
            "resolution", "batch", "compute_capability", "weights", "optimisation_level", "workspace"
        ):  # fmt: skip
            if getattr(arguments, option) is not None:
                words += ["--" + option.replace("_", "-"), str(getattr(arguments, option))]
    words += ["--regional"] if config.regional else []
    words += [] if config.check else ["--no-check"]
    if arguments.cache_dir is not None:
        words += ["--cache-dir", str(arguments.cache_dir)]
    return shlex.join([*words, "--output", str(output)])
