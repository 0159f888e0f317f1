"""`pie-engine inspect`: what a bundle holds, and whether its engines load here."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.cli.doctor import fields, quiet, size
from pie_engine.cli.spelling import told
from pie_engine.cli.terminal import print_json, print_lines


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "inspect",
        help="show what a bundle holds, and whether its engines load here",
        description="Verify a bundle and show its sources, components and engines, whether the engines load on this "
        "machine, and the command that rebuilds those that do not.",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that pie-engine build wrote")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.machine.inspection import inspect_bundle

    with quiet():
        contents = told(inspect_bundle(arguments.bundle))
    if arguments.json:
        print_json(contents)
    else:
        print_lines(*_report(contents))
    return 0


def _report(contents: dict[str, Any]) -> list[str]:
    lines = [
        contents["bundle"],
        *fields(
            [
                (
                    "bundle",
                    f"format {contents['format']}, written by pie-engine {contents['pie_engine'] or '(not known)'}",
                ),
                ("graphs", f"{contents['precision']}, opset {contents['opset']}"),
                ("size", f"{size(contents['bytes'])}; every file matches its hash"),
            ]
        ),
        "",
        "Sources, and their weights (SHA-256)",
        *fields(
            (name, f"{contents['hashes'].get(name, '-')[:12]:12}  {contents['sources'].get(name, 'not named')}")
            for name in {**contents["sources"], **contents["hashes"]}
        ),
        "",
        "Components             precision        size   error against PyTorch       nodes   attentions",
    ]
    lines += [_graph(name, part) for name, part in contents["components"].items()]
    lines += [_graph(f"{name}, boxes", part) for name, part in contents["regional"].items()]
    torch = contents["torch"]
    lines += ["", *fields([("in PyTorch", "runs, with the graphs' weights" if torch["runs"] else torch["reason"])])]
    if not contents["engines"]:
        lines += ["", "Engines", "  none; PyTorch runs the models, OpenVINO and ONNX Runtime the graphs"]
    for flavour in contents["engines"]:
        lines += ["", *_engines(flavour)]
    auto = contents["auto"]
    lines += ["", "Chosen by --backend auto, here", *fields([(auto["backend"] or "none", auto["why"])])]
    if contents["defects"]:
        lines += ["", "Defects", *(line for text in contents["defects"] for line in fields([("-", text)], column=4))]
    return lines


def _graph(name: str, part: dict[str, Any]) -> str:
    error = "not known" if part["relative_error"] is None else f"{part['relative_error']:.1e}"
    most = "" if part["tolerance"] is None else f" (at most {part['tolerance']:.1e})"
    return (
        f"  {name:<20} {part['precision'] or '-':<10} {size(part['bytes']):>10}   {error + most:<25} "
        f"{part['nodes']:>6} {part['attentions']:>12}"
    )


def _engines(flavour: dict[str, Any]) -> list[str]:
    driver = f"for CUDA {flavour['driver_floor']} or later" if flavour["driver_floor"] else "not known"
    lines = [
        f"Engines of {flavour['flavour']} {flavour['version']}",
        *fields(
            [
                ("loads here", "yes" if flavour["loads_here"] else f"no: {flavour['reason']}"),
                *([] if flavour["remedy"] is None else [("remedy", flavour["remedy"])]),
            ]
        ),
        # On one line, so that it can be copied.
        *([] if flavour["rebuild"] is None else [f"{'  rebuild':<22}{flavour['rebuild']}"]),
        *fields(
            [
                ("compiled for", flavour["target"]),
                ("driver", driver),
                ("shapes", flavour["buckets"]),
                ("size", f"{size(flavour['bytes'])}, built in {flavour['seconds']:.1f} s"),
            ]
        ),
    ]
    for plan in flavour["plans"]:
        lines += [
            f"  {plan['component']}",
            *fields(
                [
                    ("plan", f"{plan['precision']}, {size(plan['bytes'])}, {_seconds(plan['seconds'])}"),
                    ("weights", _weights(plan)),
                    ("attention", _attention(plan)),
                    *((f"profile {index}", _profile(profile)) for index, profile in enumerate(plan["profiles"])),
                ],
                indent=4,
            ),
        ]
    return lines


def _seconds(value: float | None) -> str:
    return "time of the build not known" if value is None else f"built in {value:.1f} s"


def _weights(plan: dict[str, Any]) -> str:
    if plan["own_weights"]:
        return f"{plan['weights']}, the component's own"
    if plan["weights"] == "fixed":
        return f"fixed, ANOTHER CHECKPOINT'S ({plan['weights_hash'][:12]})"
    return f"{plan['weights']}, another checkpoint's ({plan['weights_hash'][:12]}): exchanged when it is loaded"


def _attention(plan: dict[str, Any]) -> str:
    fused, total = (plan["attention"].get(key) for key in ("fused", "graph"))
    if fused is None:
        return f"{total} in the graph; how many are fused is not known"
    defect = ", DEFECT: slow" if plan["component"] == "unet" and fused < (total or 0) else ""
    return f"{fused} of {total} fused (kernel names in the plan){defect}"


def _profile(profile: dict[str, list[list[int]]]) -> str:
    words = []
    for name, shapes in profile.items():
        low, _, high = ("x".join(map(str, shape)) for shape in shapes)
        words.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return ", ".join(words)
