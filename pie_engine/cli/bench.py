"""`pie-engine bench`: the engine beside eager PyTorch on this machine, the quick form of the benchmarks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pie_engine.cli.shared import add_checkpoint_options
from pie_engine.config import DTYPES


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "bench",
        help="time the engine against eager PyTorch on this machine",
        description="Time whole progressions on every backend that runs here, beside eager PyTorch, and hold them to "
        "what this machine reaches at best. The default, the demo model, takes minutes on a processor.",
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model (default: the embedded demo checkpoint)")
    model.add_argument("--engine", metavar="BUNDLE", help="bundle that pie-engine build wrote; runs no eager baseline")
    add_checkpoint_options(model)
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--backend", type=_names, metavar="NAME[,NAME...]",
        help="torch, onnxruntime, openvino, tensorrt, tensorrt-rtx (default: all that run here and compile nothing)",
    )  # fmt: skip
    what.add_argument(
        "--compare", type=_names, metavar="NAME[,NAME...]",
        help="eager baselines: published (fp32, as the published code computes), tuned (half precision), none "
        "(published); speed-ups refer to the first",
    )  # fmt: skip
    what.add_argument("--dtype", choices=DTYPES, help="of the engine (default: fp32, on a GPU fp16, or the bundle's)")
    what.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: a GPU if it can be used)")
    what.add_argument("--threads", type=int, help="processor threads of every library (default: all cores)")
    size = parser.add_argument_group("progression")
    size.add_argument(
        "--quick", action="store_true",
        help="one round of two steps, timed once, unless the options below say otherwise: does everything run here?",
    )  # fmt: skip
    size.add_argument("--rounds", "--steps", type=int, metavar="N", help="(3)")
    size.add_argument("--strength", type=float, help="share of a schedule of 50 steps per round (0.5)")
    size.add_argument("--resolution", type=int, metavar="PIXELS", help="side of the square (default: the model's)")
    size.add_argument("--batch", type=int, default=1, help="items that the engine runs at once; eager runs one (1)")
    size.add_argument("--repeats", type=int, help="timed progressions of each, after one to warm up (3)")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    output.add_argument("--output", type=Path, metavar="FILE.json", help="write that object to a file too")
    output.add_argument("--quiet", action="store_true", help="no progress")
    # Divides the sizes that the machine's limits are measured with: tests take limits, but not the time for them.
    parser.add_argument("--limits-scale", type=int, default=1, help=argparse.SUPPRESS)
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.benchmarks.quick import QUICKEST, Quick, bench
    from pie_engine.cli.terminal import print_json, print_lines, say
    from pie_engine.files import check_file, write_file

    length = dict(QUICKEST) if arguments.quick else {}
    length |= {name: value for name in QUICKEST if (value := getattr(arguments, name)) is not None}
    config = Quick(
        engine=arguments.engine,
        checkpoint=arguments.checkpoint,
        unet=arguments.unet,
        lora=tuple(arguments.lora),
        backends=arguments.backend,
        dtype=arguments.dtype,
        compare=() if arguments.compare == ("none",) else arguments.compare,
        resolution=arguments.resolution,
        batch=arguments.batch,
        threads=arguments.threads,
        device=arguments.device,
        limits_scale=arguments.limits_scale,
        **length,
    )
    if arguments.output is not None:
        check_file(arguments.output, suffix=".json")
    results = bench(config, (lambda line: None) if arguments.quiet else say)
    if arguments.output is not None:
        write_file(arguments.output, json.dumps(results, allow_nan=False) + "\n")
    if arguments.json:
        print_json(results)
    else:
        print_lines(*report(results))
    return 0


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def report(results: dict[str, Any]) -> list[str]:
    """What `pie_engine.benchmarks.quick.bench` found, in lines of at most 100 characters where names allow it."""
    from pie_engine.cli.doctor import fields

    machine, config = results["machine"], results["config"]
    limits = "; ".join(
        f"{dtype} {_gflops(reached['flops'])} GFLOP/s (matrix products {_gflops(reached['matmul_flops'])}, "
        f"convolutions {_gflops(reached['convolution_flops'])}), copies {reached['copy_bytes'] / 1e9:.1f} GB/s"
        for dtype, reached in results["limits"].items()
    )
    threads = f", {machine['threads']} of {machine['cores']} cores" if machine["threads"] else ""
    lines = fields(
        [
            ("machine", machine["device"] + threads),
            ("reaches at best", limits),
            ("versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())),
            *([("revision", results["revision"])] if results["revision"] else []),
            ("model", config["model"]),
            (
                "progression",
                f"{_count(config['rounds'], 'round')}, {config['evaluations']} guided U-Net evaluations, "
                f"{config['resolution']} pixels, {config['dtype']}; {_count(config['repeats'], 'repeat')}",
            ),
        ],
        indent=0,
        column=17,
    )
    lines += ["", *_table(results), ""]
    if results["round"]:
        part = results["round"]
        names = {"unet": "U-Net", "step": "fused step", "decode": "decoding", "rest": "the rest"}
        shares = ", ".join(f"{title} {part[f'{name}_share']:.1%}" for name, title in names.items())
        lines += fields(
            [("a round of", f"{part['variant']}: {_seconds(part['round_s'])}; {shares}")], indent=0, column=17
        )
    return lines + fields([("note", note) for note in results["notes"]], indent=0, column=17)


def _table(results: dict[str, Any]) -> list[str]:
    batch, width = results["config"]["batch"], max(len(row["variant"]) for row in results["rows"])
    gpu = results["config"]["device"] != "cpu"
    title = "Times of one progression, of one item"
    if batch > 1:
        eager = any(row["variant"].startswith("eager") for row in results["rows"])
        title = (
            f"Times PER ITEM: the engine runs {batch} at once{', eager PyTorch one' if eager else ''}; memory is of all"
        )
    head = f"{'':{width}}{'warm-up':>9}{'median':>9}{'p20':>9}{'p80':>9}{'speed-up':>10}{'host MB':>9}"
    lines = [title, head + (f"{'GPU MB':>9}" if gpu else "") + f"{'GFLOP/s':>9}{'of best':>8}"]
    for row in results["rows"]:
        if "error" in row:
            lines.append(f"{row['variant']:<{width}}  {row['error']}")
            continue
        times = "".join(f"{_seconds(row[name]):>9}" for name in ("warm_up_s", "median_s", "p20_s", "p80_s"))
        line = f"{row['variant']:<{width}}{times}{row['speedup']:>8.2f} x{row['host_peak_mb']:>9.0f}"
        line += f"{row['device_peak_mb']:>9.0f}" if gpu else ""
        known = row["share"] is not None
        lines.append(line + (f"{row['gflop_per_s']:>9.1f}{row['share']:>8.0%}" if known else f"{'-':>9}{'-':>8}"))
    if results["baseline"] is not None:
        lines.append(f"speed-up: median of the ratios, repeat by repeat, over {results['baseline']}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _gflops(rate: float) -> str:
    return f"{rate / 1e9:.0f}"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
