"""`pie-engine compare`: PIE against baselines, at the same similarity."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "compare",
        help="compare PIE with baselines at matched similarity",
        description="Group runs by their method (run --method), and compare PIE's confidence with every baseline's "
        "where their frames are equally similar to the input, and the reverse. Paired over patients, with bootstrap "
        "intervals.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folder that pie-engine run wrote, or one that holds such"
    )
    parser.add_argument(
        "--classifier", type=Path, action="append", required=True, metavar="JSON",
        help="file that declares a classifier (docs/evaluation.md); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="load models in TorchScript too: they are programs (SECURITY.md)"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="DIR", help="folder of a CLIP checkpoint: match at equal CLIP-I too"
    )
    parser.add_argument(
        "--structures", type=Path, metavar="DIR",
        help="folder of a map per run, ITEM_ID.png: features that the disease leaves alone; match these too",
    )  # fmt: skip
    parser.add_argument(
        "--by", action="append", default=[], metavar="SETTING",
        help="tell runs of one method apart by a setting, such as beta2; may be given several times",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument(
        "--output", type=Path, default=Path("pie-comparison"), metavar="DIR", help="folder (pie-comparison)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.cli.progress import say
    from pie_engine.errors import ConfigError
    from pie_engine.evaluation import compare

    if arguments.seed < 0:
        raise ConfigError(f"seed {arguments.seed} is below 0; pass --seed 0")
    summary = compare(
        arguments.folders,
        arguments.output,
        classifiers=arguments.classifier,
        clip=arguments.clip,
        structures=arguments.structures,
        by=[name.replace("-", "_") for name in arguments.by],
        trust=arguments.trust,
        seed=arguments.seed,
        on_run=(lambda name: None) if arguments.quiet else say,
    )
    if arguments.json:
        sys.stdout.write(json.dumps({"output": str(arguments.output), **summary}) + "\n")
        return 0
    lines = [*_finals(summary), "", *_matched(summary), f"{arguments.output}: {', '.join(summary['files'])}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _finals(summary: dict[str, Any]) -> list[str]:
    """The last frame of each method."""
    from pie_engine.evaluation.summary import to_columns

    shown = [
        name
        for name in next(iter(summary["methods"].values()))["final"]
        if name.startswith("confidence: ") or name in ("clip_i", "ssim_inside", "ssim_outside", "structure_kept")
    ]
    rows = [["last frame", "patients", *shown]]
    rows += [
        [method, str(found["patients"]), *(_cell(found["final"][name]) for name in shown)]
        for method, found in summary["methods"].items()
    ]
    return to_columns(rows)


def _matched(summary: dict[str, Any]) -> list[str]:
    """PIE minus each baseline, where they have come equally far."""
    from pie_engine.evaluation.summary import to_columns

    lines: list[str] = []
    several = len({one["pie"] for one in summary["matched"]}) > 1
    first = "difference" if several else "PIE minus"
    for what, x, y in (("confidence", "similarity", "confidence"), ("similarity", "confidence", "similarity")):
        rows = [[first, f"{y} at equal {x}", "as far as both come", "patients", "judged by"]]
        for one in summary["matched"]:
            found = one[what]
            label = f"{one['classifier']}, {one['similarity_measure']}"
            over = f"{found['defined']} of {one['patients']}"
            name = f"{one['pie']} minus {one['method']}" if several else one["method"]
            rows.append([name, _cell(found["mean"]), _cell(found["end"]), over, label])
        lines += [*to_columns(rows), ""]
    return lines


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "not defined"
    text = f"{entry['mean']:.3f}"
    return text if entry["low"] is None else f"{text} [{entry['low']:.3f}, {entry['high']:.3f}]"
