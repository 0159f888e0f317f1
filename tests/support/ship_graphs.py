"""Write the stripped graphs of known architectures, freshly exported: the package's, and those that tests start with.

    python tests/support/ship_graphs.py [--only demo] [--check]

Run it when code that exports has changed: a test compares what `sources_digest` gives. The demo takes two minutes, the
tests' own tiny model three, and Stable Diffusion a quarter of an hour and 20 GB, as its weights are made, at random.
`--check` writes nothing and fails where a fresh export is another graph.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import inspect
import io
import json
import lzma
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from golden import GOLDEN

from pie_engine.bundling.components import component_plan
from pie_engine.bundling.graphs import SHIPPED, Plan, exporter_versions, place, write_stripped
from pie_engine.bundling.regional import NETWORKS, regional_plan, regional_sources
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import COMPONENTS
from pie_engine.demo.assets import CHECKPOINT
from pie_engine.export import components, graph, parameters, regional, regional_operators
from pie_engine.export.weights import strip_weights
from pie_engine.files import locked
from pie_engine.model.bundle import REGIONAL
from pie_engine.regional import layout, surroundings, walk, windows

EXPORTING = (components, graph, parameters, regional, regional_operators, layout, surroundings, walk, windows)
# What is built without a word (fp32), and what TensorRT takes; of the tests' model what most tests run.
KINDS = {
    "demo": (("fp32", 20), ("fp16", 20), ("fp16", 23)),
    "sd-v1": (("fp32", 20), ("fp16", 23)),
    "golden": (("fp32", 20), ("fp16", 20)),
}
BOXES = {"demo": ("fp32",), "sd-v1": ("fp32",), "golden": ("fp32", "fp16")}
FOLDERS = {"demo": SHIPPED, "sd-v1": SHIPPED, "golden": Path(__file__).parents[1] / "data" / "graphs"}


def demo() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


def stable_diffusion(device: str = "cpu") -> Checkpoint:
    """Of Stable Diffusion v1's architecture: random weights, or none where the device is "meta"."""
    from pie_engine.benchmarks import random_checkpoint  # diffusers comes with it, and every test with this module

    known = demo()
    with torch.device(device):
        models = random_checkpoint.make_unet(), random_checkpoint.make_vae(), random_checkpoint.make_text_encoder()
    for model in models:
        model.eval().requires_grad_(False)
    return Checkpoint(*models, known.tokenizer, known.scheduler_config, {}, {})


def golden() -> Checkpoint:
    return load_checkpoint(GOLDEN / "checkpoint_ddim")


MODELS: dict[str, Callable[[], Checkpoint]] = {"demo": demo, "sd-v1": stable_diffusion, "golden": golden}


def plans(checkpoint: Checkpoint, name: str) -> Iterator[Plan]:
    """What is shipped of one of `MODELS`. Graphs for boxes only as a run on a processor takes them."""
    for precision, opset in KINDS[name]:
        for component in COMPONENTS:
            yield component_plan(checkpoint, component, precision, opset)
    for precision in BOXES[name]:
        for network in NETWORKS:
            yield regional_plan(checkpoint, network, precision, 20)


def file_of(plan: Plan, name: str) -> str:
    return f"{name}-{plan.name}-{plan.precision}-opset{plan.opset}.onnx.xz"


def fresh(plan: Plan, preset: int = 1) -> bytes:
    """A stripped graph, exported now."""
    with tempfile.TemporaryDirectory() as folder:
        path = plan.export(Path(folder))
        return strip_weights(path, plan.module, preset=preset)


def same(one: bytes, other: bytes) -> bool:
    """Whether two stripped graphs are one, whichever build of the exporter wrote them."""
    import onnx

    models = [onnx.load_model_from_string(lzma.decompress(each)) for each in (one, other)]
    for model in models:
        model.producer_version = model.producer_version.partition("+")[0]
    return models[0].SerializeToString(deterministic=True) == models[1].SerializeToString(deterministic=True)


def sources_digest() -> str:
    """Of the code that decides what is exported, without its comments and docstrings: the same on every Python."""
    digest = hashlib.sha256()
    for path in map(Path, (inspect.getfile(module) for module in EXPORTING)):
        lines = path.read_text().splitlines()
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
        for node in ast.walk(ast.parse(path.read_text())):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                    lines[row - 1] = ""
        digest.update("\n".join([path.name, *filter(None, map(str.rstrip, lines))]).encode())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    different = []
    for name in [arguments.only] if arguments.only else MODELS:
        different += ship(name, check=arguments.check)
    if arguments.check and different:
        sys.exit(f"error: {', '.join(different)}: no longer what is exported")


def ship(name: str, *, check: bool) -> list[str]:
    """Export the graphs of one of `MODELS` and, unless `check`, write them. Returns the files that were others."""
    folder = FOLDERS[name]
    graphs = {key: file for key, file in read_index(folder)["graphs"].items() if not file.startswith(f"{name}-")}
    different = []
    for plan in plans(MODELS[name](), name):
        file = folder / file_of(plan, name)
        content = fresh(plan, preset=1 if check else 9)
        if not file.exists() or not same(file.read_bytes(), content):
            different.append(file.name)
            if not check:
                folder.mkdir(exist_ok=True)
                file.write_bytes(content)
        graphs[plan.key] = file.name
        sys.stdout.write(f"{file.name}: {len(content)} bytes{', other than before' * (file.name in different)}\n")
        sys.stdout.flush()
        gc.collect()
    if not check:
        for left in {path.name for path in folder.glob("*.xz")} - set(graphs.values()):
            (folder / left).unlink()
        known = {
            "sources": sources_digest(), "versions": versions(),
            "graphs": dict(sorted(graphs.items(), key=lambda entry: entry[1])),
        }  # fmt: skip
        (folder / "index.json").write_text(json.dumps(known, indent=2) + "\n")
    return different


def read_index(folder: Path) -> dict[str, Any]:
    file = folder / "index.json"
    return json.loads(file.read_text()) if file.exists() else {"graphs": {}}


def versions() -> dict[str, str]:
    """Of the packages that export, whichever build of them."""
    return {name: version.partition("+")[0] for name, version in exporter_versions().items()}


def fill_cache(cache: Path) -> None:
    """Let a cache know the tests' own architecture, as if it had been exported there by the same packages.

    With other packages, or code that has changed since, the tests export it as anybody's.
    """
    folder = FOLDERS["golden"]
    index = read_index(folder)
    if index.get("versions") != versions() or index["sources"] != sources_digest():
        return
    for key, file in index["graphs"].items():
        name = file.split("-")[1]
        known = place(cache, name, key, regional_sources() if name.endswith(REGIONAL) else "")
        with locked(known):  # all workers of the tests begin with this
            if not known.is_dir():
                write_stripped(known, (folder / file).read_bytes())


if __name__ == "__main__":
    main()
