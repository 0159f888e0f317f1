"""What it takes before anything runs: export, refit, loading, and compiling engines.

    python benchmarks/build_times.py [--model demo|sd|DIR] [--repeats 3] [--threads 2]
    python benchmarks/build_times.py --model sd --engines tensorrt-rtx --compute-capability 8.6,8.9,12.0

Without --engines: a bundle's graphs are exported once, refitted once with other weights of the U-Net, and loaded by
each backend, --repeats times in fresh processes: from the bundle, and from the checkpoint with its graphs in the cache.
The files are in the system's memory by then; the imports of the libraries are a row of their own. With --engines: the
graphs are compiled too (tensorrt-rtx needs no GPU for that), and so is the refitted U-Net; at full size this takes six
minutes and 16 GB of disk. Exports and builds run with nothing in the cache.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pie_engine import PieEngine
from pie_engine.benchmarks.common import Bench, add_setting_options, finish, prepare, run, say
from pie_engine.benchmarks.harness import BenchmarkError, Remote, Samples, Spec, summarise
from pie_engine.benchmarks.variants import installed
from pie_engine.config import COMPONENTS, FLAVOURS, BuildConfig, EngineConfig

# Backend and dtype of what is loaded; the graphs are in fp32.
LOADED = (("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
_EMPTY = dict.fromkeys(
    ("precision", "graph_mb", "plan_mb", "attentions", "fused", "profiles", "flavour", "version", "capabilities"), ""
)
_ENGINE = ("flavour", "version")


class Build:
    """A checkpoint's bundle, built once with an empty cache.

    Args:
        checkpoint: folder.
        folder: where the bundle "a.pie" and the cache go.
        config: of `BuildConfig`.
        engines: of `EngineConfig`, or None.
    """

    make = "pie_engine.benchmarks.build_times:Build"

    def __init__(self, checkpoint: str, folder: str, config: dict[str, Any], engines: dict[str, Any] | None):

        asked = None if engines is None else EngineConfig(**engines)
        self._checkpoint, self._folder = checkpoint, Path(folder)
        self._config = BuildConfig(**config, cache_dir=self._folder / "cache", engines=asked)

    def run(self) -> dict[str, Any]:
        from pie_engine.bundling import build_bundle
        from pie_engine.checkpoint import load_checkpoint

        bundle = build_bundle(load_checkpoint(self._checkpoint), self._folder / "a.pie", self._config, on_component=say)
        return {name: bundle.manifest[name] for name in ("components", "files", "engines")}


class Refit:
    """The bundle of `Build` with other weights in the U-Net: those of the checkpoint, moved a little."""

    make = "pie_engine.benchmarks.build_times:Refit"

    def __init__(self, checkpoint: str, folder: str):
        import torch

        from pie_engine.checkpoint import load_checkpoint

        self._folder = Path(folder)
        unet = load_checkpoint(checkpoint).unet
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.mul_(1.001)
        unet.half().save_pretrained(self._folder / "unet")

    def run(self) -> dict[str, Any]:
        from pie_engine.bundling.refit import UNetWeights, refit_bundle
        from pie_engine.checkpoint import load_unet_alone
        from pie_engine.model.bundle import open_bundle

        bundle = open_bundle(self._folder / "a.pie")
        config = bundle.manifest["architecture"]["unet"]
        weights = UNetWeights.for_bundle(bundle, *load_unet_alone(self._folder / "unet", config=config))
        cache = self._folder / "cache"
        refitted = refit_bundle(bundle, weights, self._folder / "b.pie", cache_dir=cache, on_component=say)
        return {name: refitted.manifest[name] for name in ("components", "files", "engines")}


class Load:
    """A backend that is loaded when it is told to; when it is made, it imports what that needs.

    Args:
        source: arguments of `PieEngine.load`.
        imports: modules.
    """

    make = "pie_engine.benchmarks.build_times:Load"

    def __init__(self, source: dict[str, Any], imports: list[str]):
        import importlib

        for module in imports:
            importlib.import_module(module)
        self._source = source

    def run(self) -> None:
        self._engine = PieEngine.load(**self._source)


def built(what: str, manifest: dict[str, Any], components: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a build or a refit: each component's graph, and the plan that was compiled from it."""
    rows = []
    for name in components:
        component = manifest["components"][name]
        size = sum(facts["bytes"] for file, facts in manifest["files"].items() if file.startswith(f"{name}/"))
        graph = {"precision": component["precision"], "graph_mb": size / 1e6}
        rows.append(row(what, name, [component["seconds"]], **graph))
        for entry in (entry for entry in manifest["engines"] if entry["component"] == name):
            attention = entry["attention"]
            plan = {
                **graph,
                "plan_mb": entry["bytes"] / 1e6,
                "attentions": attention["graph"],
                "fused": "" if attention["fused"] is None else attention["fused"],
                "profiles": len(entry["profiles"]),
                "capabilities": " ".join(entry["capabilities"]),
                **{key: entry[key] for key in _ENGINE},
            }
            rows.append(row("compile", name, [entry["seconds"]], entry["host_memory_bytes"] or 0, **plan))
    return rows


def row(
    what: str, component: str, seconds: list[float], peak: int = 0, backend: str = "", **facts: Any
) -> dict[str, Any]:
    """One row, with all columns; `peak` is 0 where it is not known."""
    times = summarise(Samples(seconds=seconds, host_bytes=peak))
    del times["warm_up_s"], times["device_peak_mb"]
    return {"variant": f"{what}, {backend or component}", "what": what, "component": component, "backend": backend,
            **times, **_EMPTY, **facts}  # fmt: skip


def build(bench: Bench, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the bundle and of its refit, each in a process of its own."""
    setting = bench.setting
    source = {"checkpoint": setting.checkpoint, "folder": str(folder)}
    engines = None
    if arguments.engines:
        capabilities = [number for number in arguments.compute_capability.split(",") if number]
        shape = {"resolutions": [setting.resolution], "batches": [setting.batch], "capabilities": capabilities}
        engines = {"flavour": arguments.engines, **shape}
        EngineConfig(**engines)  # refused here and not in the process
    config = {"precision": arguments.precision or ("fp16" if engines else "fp32")}
    say("building")
    with Remote(Spec(Build.make, {**source, "config": config, "engines": engines}, setting.threads)) as subject:
        call = subject()
    rows = built("export", call.facts, COMPONENTS)
    whole = "read, export, compile" if engines else "read, export"
    rows.append(row(whole, "all", [call.seconds], call.host_bytes))
    if not arguments.no_refit:
        say("refitting")
        with Remote(Spec(Refit.make, source, setting.threads)) as subject:
            call = subject()
        rows += built("refit", call.facts, ["unet"])
        whole = "read, refit, compile" if engines else "read, refit"
        rows.append(row(whole, "all", [call.seconds], call.host_bytes))
    return rows


def loads(bench: Bench, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Rows of every backend: its imports, and loading it from the bundle and from the checkpoint."""
    setting = bench.setting
    rows = []
    common = ["pie_engine.checkpoint", "pie_engine.bundling", "diffusers", "transformers"]
    for backend, dtype in LOADED:
        if not installed(backend) or (backend == "torch" and setting.device != "cpu" and dtype == "bf16"):
            continue
        shared = {"backend": backend, "dtype": dtype, "device": setting.device, "threads": setting.threads}
        sources = {"load, checkpoint": {**shared, "checkpoint": setting.checkpoint}}
        if backend != "torch":
            sources["load, bundle"] = {**shared, "engine": str(folder / "a.pie")}
        imports = common + ([] if backend == "torch" else [backend])
        environment = {"PIE_ENGINE_CACHE": str(folder / "cache")}
        samples: dict[str, Samples] = {"imports": Samples()}
        try:
            for what, source in sources.items():
                spec = Spec(Load.make, {"source": source, "imports": imports}, setting.threads, environment)
                for repeat in range(repeats):
                    say(f"{what}, {backend} {dtype}: {repeat + 1} of {repeats}")
                    with Remote(spec) as subject:
                        call = subject()
                    samples["imports"].seconds.append(subject.load_seconds)
                    samples["imports"].host_bytes = max(subject.loaded_bytes, samples["imports"].host_bytes)
                    calls = samples.setdefault(what, Samples())
                    calls.seconds.append(call.seconds)
                    calls.host_bytes = max(call.host_bytes, calls.host_bytes)
        except BenchmarkError as error:
            say(f"left out {backend} {dtype}: {error}")  # one that does not run here leaves the others be
            continue
        for what, calls in samples.items():
            rows.append(row(what, "all", calls.seconds, calls.host_bytes, f"{backend} {dtype}", precision=dtype))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser, repeats=3)
    parser.add_argument("--precision", choices=("fp32", "fp16"), help="fp32, with --engines fp16")
    parser.add_argument("--engines", choices=FLAVOURS, help="compile engines, too")
    parser.add_argument("--compute-capability", default="", help="such as 8.6,8.9,12.0 (the GPU at hand)")
    parser.add_argument("--no-refit", action="store_true")
    arguments = parser.parse_args(words)
    bench = prepare(arguments)
    with tempfile.TemporaryDirectory(prefix="pie-engine-build-") as temporary:
        rows = build(bench, Path(temporary), arguments)
        if not arguments.engines and arguments.precision in (None, "fp32"):
            rows += loads(bench, Path(temporary), arguments.repeats)
    for columns in rows:  # nothing of a progression is run here
        columns |= {"rounds": "", "evaluations": ""}
    finish(bench, "build_times", rows)


if __name__ == "__main__":
    run(main)
