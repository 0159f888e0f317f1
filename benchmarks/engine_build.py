"""Full-size engines: seconds, host memory and bytes of every component's export and build, and of a refit.

    python benchmarks/engine_build.py [--backend tensorrt-rtx] [--compute-capability 8.6,8.9,12.0] [--resolution 512]

Random weights of Stable Diffusion v1.4's shape (859.5 M parameters in the U-Net) cost the same to build as trained
ones. tensorrt-rtx needs no GPU for this. Takes about six minutes and 16 GB of disk.
"""

from __future__ import annotations

import argparse
import csv
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from progression import processor
from random_checkpoint import make_unet, write

from pie_engine.bundle import Bundle
from pie_engine.bundling import build_bundle
from pie_engine.bundling.refit import UNetWeights, refit_bundle
from pie_engine.checkpoint import load_checkpoint, load_unet_alone
from pie_engine.config import COMPONENTS, FLAVOURS, BuildConfig, EngineConfig

RESULTS = Path(__file__).parent / "results" / "engine_build.csv"
HEADER = [
    "component", "what", "seconds", "host_memory_gb", "graph_mb", "plan_mb", "attentions", "fused", "profiles",
    "precision", "flavour", "version", "capabilities", "resolution", "batch", "machine", "torch", "python", "revision",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: random weights, written to a temporary folder")
    parser.add_argument("--backend", choices=FLAVOURS, default="tensorrt-rtx")
    parser.add_argument("--compute-capability", default="8.6,8.9,12.0", help="empty for the GPU at hand")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("fp16", "fp32"), default="fp16")
    parser.add_argument("--no-refit", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pie-engine-build-") as temporary:
        folder = Path(temporary)
        source = arguments.checkpoint or folder / "checkpoint"
        if arguments.checkpoint is None:
            torch.manual_seed(0)
            write(source)
        measure(source, folder, arguments)


def measure(source: Path, folder: Path, arguments: argparse.Namespace) -> None:
    capabilities = tuple(filter(None, arguments.compute_capability.split(",")))
    engines = EngineConfig(
        arguments.backend, resolutions=(arguments.resolution,), batches=(arguments.batch,), capabilities=capabilities
    )
    config = BuildConfig(precision=arguments.precision, cache_dir=folder / "cache", engines=engines)
    start = time.monotonic()
    checkpoint = load_checkpoint(source)
    bundle = build_bundle(checkpoint, folder / "a.pie", config, on_component=print)
    total = time.monotonic() - start
    del checkpoint
    rows = [row for name in COMPONENTS for row in describe(bundle, name)]
    rows.append(["all", "load, export, build", f"{total:.1f}", *[""] * 7])
    if not arguments.no_refit:
        torch.manual_seed(1)
        make_unet().half().save_pretrained(folder / "unet")
        start = time.monotonic()
        config_of_unet = bundle.manifest["architecture"]["unet"]
        loaded = load_unet_alone(folder / "unet", config=config_of_unet)
        weights = UNetWeights.for_bundle(bundle, *loaded)
        refitted = refit_bundle(bundle, weights, folder / "b.pie", cache_dir=folder / "cache", on_component=print)
        total = time.monotonic() - start
        rows += describe(refitted, "unet", exported="refit")
        rows.append(["unet", "load, refit, build", f"{total:.1f}", *[""] * 7])
    report(rows, bundle, arguments)


def describe(bundle: Bundle, name: str, exported: str = "export") -> list[list[Any]]:
    """Two rows: the graph, and the plan that was compiled from it."""
    component = bundle.manifest["components"][name]
    entry = next(entry for entry in bundle.engines() if entry["component"] == name)
    files = bundle.manifest["files"]
    graph = sum(facts["bytes"] for file, facts in files.items() if file.startswith(f"{name}/")) / 1e6
    attention = entry["attention"]
    shared = [attention["graph"], attention["fused"], len(entry["profiles"]), component["precision"]]
    return [
        [name, exported, component["seconds"], "", f"{graph:.1f}", "", shared[0], "", "", shared[3]],
        [
            name, "build", entry["seconds"], f"{entry['host_memory_bytes'] / 1e9:.2f}", f"{graph:.1f}",
            f"{entry['bytes'] / 1e6:.1f}", *shared,
        ],
    ]  # fmt: skip


def report(rows: list[list[Any]], bundle: Bundle, arguments: argparse.Namespace) -> None:
    """Print the rows and append them to the results file."""
    entry = bundle.engines()[0]
    revision = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    own = [entry["flavour"], entry["version"], " ".join(entry["capabilities"]), arguments.resolution, arguments.batch]
    own += [processor(), torch.__version__, platform.python_version(), revision]
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(HEADER)
        writer.writerows([*row, *own] for row in rows)
    for row in rows:
        print("  ".join(f"{value:>12}" for value in row[:9]))


if __name__ == "__main__":
    main()
