"""`pie-engine doctor`: what runs on this machine, and what the rest lacks."""

from __future__ import annotations

import argparse
import contextlib
import logging
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from pie_engine.cli.spelling import told
from pie_engine.cli.terminal import print_json, print_lines

WIDTH = 100


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        help="show what runs and builds on this machine, and what is missing for the rest",
        description="Show versions, GPUs, and for every backend whether it runs here and what it lacks. It changes "
        "nothing. Exit code 2 if nothing can run.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.machine.doctor import diagnose

    with quiet():
        diagnosis = told(diagnose())
    if arguments.json:
        print_json(diagnosis)
    else:
        print_lines(*_report(diagnosis))
    return 0 if any(backend["runs"] for backend in diagnosis["backends"]) else 2


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the selection, which the report repeats."""
    log = logging.getLogger("pie_engine.machine.selection")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def fields(rows: Iterable[tuple[str, object]], *, indent: int = 2, column: int = 22) -> list[str]:
    """Names and values in two columns; values that are too long go on below themselves."""
    lines: list[str] = []
    for name, value in rows:
        start = " " * indent + name
        start = start.ljust(column) if len(start) < column else start + " "
        lines += textwrap.wrap(
            str(value), WIDTH, initial_indent=start, subsequent_indent=" " * column,
            break_long_words=False, break_on_hyphens=False,
        ) or [start.rstrip()]  # fmt: skip
    return lines


def size(number: float | None) -> str:
    """Bytes in the unit that suits them."""
    if number is None:
        return "not known"
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _report(diagnosis: dict[str, Any]) -> list[str]:
    machine, cache, auto = diagnosis["machine"], diagnosis["cache"], diagnosis["auto"]
    gpus = [
        (f"cuda:{gpu['index']}", f"{gpu['name']}, compute capability {gpu['capability']}, {size(gpu['memory'])}")
        for gpu in machine["gpus"]
    ]
    lines = ["Versions", *fields((name, _version(diagnosis, name)) for name in diagnosis["versions"])]
    lines += ["", "Machine", *fields(gpus or [("GPU", f"none: {machine['no_gpu_because']}")])]
    lines += fields(
        [
            ("driver", f"serves CUDA {machine['driver_cuda']}" if machine["driver_cuda"] else "none found"),
            ("processor", f"{machine['cores']} cores, {size(machine['free_memory_bytes'])} of memory free"),
            ("cache", cache["folder"]),
            ("", f"{size(cache['free_bytes'])} free" + ("" if cache["writable"] else ", CANNOT BE WRITTEN")),
        ]
    )
    lines += ["", "Backends", *_backends(diagnosis["backends"]), ""]
    if diagnosis["fused_steps"]:
        lines += ["Fused step", *fields(_step(step) for step in diagnosis["fused_steps"]), ""]
    lines += [
        "Chosen by --backend auto, for a checkpoint or a bundle without engines",
        *fields([(auto["backend"] or "none", auto["why"])]),
    ]
    if diagnosis["problems"]:
        lines += ["", "Problems"]
        for problem in diagnosis["problems"]:
            lines += [*fields([("-", problem["what"])], column=4), f"    -> {problem['remedy']}"]
    return lines


def _version(diagnosis: dict[str, Any], name: str) -> str:
    version = diagnosis["versions"][name]
    if version is None:
        return "not installed"
    if name == "torch":
        return f"{version} ({'CUDA ' + diagnosis['torch_cuda'] if diagnosis['torch_cuda'] else 'built without CUDA'})"
    if name == "onnxruntime":
        packages, providers = diagnosis["onnxruntime"]["packages"], diagnosis["onnxruntime"]["providers"]
        return f"{version} ({' and '.join(packages)}: {', '.join(providers) or 'does not load'})"
    if name == "openvino":
        notes = {None: "does not load", True: "bf16 on this processor", False: "no bf16 on this processor"}
        return f"{version} ({notes[diagnosis['openvino']['bf16']]})"
    return version


def _backends(backends: list[dict[str, Any]]) -> list[str]:
    """Each backend, what it lacks, and the remedies: a remedy that several backends share is given once."""
    lines: list[str] = []
    given: set[str] = set()
    for backend in backends:
        lines += fields([(backend["name"], "runs" if backend["runs"] else "DOES NOT RUN")])
        for problem in backend["problems"]:
            lines += fields([("lacks", problem["what"])], indent=4, column=11)
            if problem["remedy"] not in given:
                lines.append(f"{'':11}-> {problem['remedy']}")  # on one line, so that it can be copied
                given.add(problem["remedy"])
        if backend["builds"] is not None:
            builds = f"{'yes' if backend['builds'] else 'no'}, {backend['build_note']}"
            lines += fields([("builds", builds)], indent=4, column=11)
    return lines


def _step(step: dict[str, Any]) -> tuple[str, str]:
    return f"{step['name']} on {step['device']}", "yes" if step["runs"] else f"no: {step['reason']}"
