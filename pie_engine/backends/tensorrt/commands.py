"""The trtexec and polygraphy commands that do by hand what a build does: for bug reports, and to see nothing hidden."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pie_engine.model.bundle import Bundle

# trtexec under its two names.
_PROGRAMS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


def equivalent_commands(bundle: Bundle) -> list[str]:
    """Four lines per engine: sanitise, compile with trtexec, compile with polygraphy, compare with ONNX Runtime."""
    lines = []
    for entry in bundle.engines():
        onnx = str(bundle.graph(entry["component"]))
        plan = f"{entry['component']}.plan"
        lines += [
            f"# {entry['component']}, {entry['flavour']} {entry['version']}, {len(entry['profiles'])} profiles",
            shlex.join(["polygraphy", "surgeon", "sanitize", onnx, "--fold-constants", "-o", "sanitised.onnx"]),
            shlex.join(_trtexec(entry, onnx, plan)),
            _environment(entry) + shlex.join(_polygraphy_convert(entry, onnx, plan)),
            " && ".join(_environment(entry) + shlex.join(words) for words in _polygraphy_run(entry, onnx, plan)),
        ]
    return lines


def _trtexec(entry: dict[str, Any], onnx: str, plan: str) -> list[str]:
    words = [_PROGRAMS[entry["flavour"]], f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference", "--noTF32"]
    if entry["flavour"] == "tensorrt":
        words.append("--stronglyTyped")
        if entry["hardware_compatibility"] != "none":
            level = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}
            words.append(f"--hardwareCompatibilityLevel={level[entry['hardware_compatibility']]}")
    elif entry["gpu"] is None:
        words.append("--computeCapabilities=" + ",".join(entry["capabilities"]))
    if entry["weights"] != "fixed":
        words.append("--refit")
    if entry["weights"] == "stripped":
        words.append("--stripWeights")
    if entry["optimisation_level"] is not None:
        words.append(f"--builderOptimizationLevel={entry['optimisation_level']}")
    for index, profile in enumerate(entry["profiles"]):
        words += [f"--profile={index}"] if len(entry["profiles"]) > 1 else []
        for position, kind in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, shape[position]))}" for name, shape in sorted(profile.items()))
            words.append(f"--{kind}Shapes=" + ",".join(shapes))
    return words


def _polygraphy_convert(entry: dict[str, Any], onnx: str, plan: str) -> list[str]:
    words = ["polygraphy", "convert", onnx, "--convert-to", "trt", "-o", plan]
    if entry["flavour"] == "tensorrt":
        words.append("--strongly-typed")
        if entry["hardware_compatibility"] != "none":
            words += ["--hardware-compatibility-level", entry["hardware_compatibility"].replace("-", "_")]
    elif entry["gpu"] is None:
        words += ["--compute-capabilities", *entry["capabilities"]]
    if entry["weights"] != "fixed":
        words.append("--refittable")
    if entry["weights"] == "stripped":
        words.append("--strip-plan")
    if entry["optimisation_level"] is not None:
        words += ["--builder-optimization-level", str(entry["optimisation_level"])]
    for profile in entry["profiles"]:
        for position, kind in enumerate(("min", "opt", "max")):
            words.append(f"--trt-{kind}-shapes")
            words += [f"{name}:{list(shape[position])}".replace(" ", "") for name, shape in sorted(profile.items())]
    return words


def _polygraphy_run(entry: dict[str, Any], onnx: str, plan: str) -> tuple[list[str], list[str]]:
    shapes = [f"{name}:{list(shape[1])}".replace(" ", "") for name, shape in sorted(entry["profiles"][0].items())]
    # Mean errors: one value of a million may be off by more than its neighbours without anything being wrong.
    tolerance = "1e-4" if entry["precision"] == "fp32" else "1e-2"
    words = ["polygraphy", "run", onnx, "--onnxrt", "--save-outputs", "onnxruntime.json", "--input-shapes", *shapes]
    check = ["polygraphy", "run", plan, "--trt", "--model-type", "engine", "--load-outputs", "onnxruntime.json"]
    check += ["--input-shapes", *shapes, "--atol", tolerance, "--rtol", tolerance, "--check-error-stat", "mean"]
    return words, check


def _environment(entry: dict[str, Any]) -> str:
    return "POLYGRAPHY_USE_TENSORRT_RTX=1 " if entry["flavour"] == "tensorrt-rtx" else ""
