"""How time and memory grow with the rounds, the resolution and the batch: one varied at a time.

    python benchmarks/growth.py [--variants "engine, onnxruntime fp32"] [--over rounds batch] [--rounds 4]

--rounds, --resolution and --batch are the point that the others keep while one is varied. Each point is a process of
its own, whose memory is nobody else's; they run one after the other, so their times are not interleaved. Time per round
(the engine's own clock, without preparation) and time per round and item show whether growth is linear. A factor stops
at the first value that memory does not hold; a row without times says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pie_engine.benchmarks.common import (
    NO_TIMES,
    Bench,
    add_setting_options,
    finish,
    flops_at,
    named_variants,
    prepare,
    print_row,
    run,
    say,
)  # fmt: skip
from pie_engine.benchmarks.harness import BenchmarkError, MemoryRanOut, Remote, interleave, summarise
from pie_engine.benchmarks.harness.arithmetic import progression_flops
from pie_engine.benchmarks.variants import Setting, specs
from pie_engine.config import RunConfig, check_resolution

FACTORS = ("rounds", "resolution", "batch")
NO_RATES = dict.fromkeys(
    ("round_s", "round_and_item_s", "loaded_mb", "tflop", "gflop_per_s", "peak_gflop_per_s", "share"), ""
)


def points(base: Setting, arguments: argparse.Namespace, multiple: int) -> dict[str, list[Setting]]:
    """The settings of each factor, in order.

    Raises:
        ConfigError: a value that the model or the engine does not take.
    """
    halves = [base.resolution * n // 2 for n in (1, 2, 3, 4)]
    sides = arguments.resolutions or sorted({max(multiple, side // multiple * multiple) for side in halves})
    values = {"rounds": arguments.round_counts, "resolution": sides, "batch": arguments.batches}
    settings_by_factor = {}
    for factor in arguments.over:
        settings_by_factor[factor] = [replace(base, **{factor: value}) for value in sorted(set(values[factor]))]
        for setting in settings_by_factor[factor]:
            RunConfig(**setting.config())
            check_resolution(setting.resolution, multiple)
    return settings_by_factor


def measure(bench: Bench, name: str, factor: str, setting: Setting, repeats: int) -> dict[str, Any]:
    """The row of one point."""
    point = {"variant": name, "factor": factor, "value": getattr(setting, factor), **setting.columns()}
    say(f"{name}, {factor} {point['value']}")
    try:
        with Remote(specs(setting, [name])[name]) as subject:
            samples = interleave({name: subject}, repeats, on_call=print_row)[name]
            loaded = subject.loaded_bytes
    except MemoryRanOut as error:
        say(f"  {error}")
        return {**point, "repeats": 0, **without_speedup(NO_TIMES), **NO_RATES, "note": str(error)}
    columns = summarise(samples)
    work = progression_flops(
        flops_at(bench, setting.resolution),
        rounds=setting.rounds,
        steps=setting.evaluations // setting.rounds,
        guided=True,
        batch=setting.batch,
    )
    return {
        **point,
        **columns,
        "round_s": samples.facts["round_s"],
        "round_and_item_s": samples.facts["round_s"] / setting.batch,
        "loaded_mb": loaded / 1e6,
        **bench.arithmetic(work, columns["median_s"], name),
        "note": "",
    }


def without_speedup(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if not name.startswith("speedup")}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser, repeats=3)
    parser.set_defaults(rounds=4)
    parser.add_argument("--over", nargs="+", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--round-counts", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--resolutions", type=int, nargs="+", help="sides (half to twice that of --resolution)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--variants", help="engines, separated by semicolons (default: all that are installed)")
    arguments = parser.parse_args(words)
    bench = prepare(arguments)
    settings_by_factor = points(bench.setting, arguments, bench.resolution_multiple)
    rows = []
    for name in named_variants(arguments, bench.setting):
        try:
            for factor, settings in settings_by_factor.items():
                for setting in settings:
                    rows.append(measure(bench, name, factor, setting, arguments.repeats))
                    if rows[-1]["note"]:
                        break
        except BenchmarkError as error:
            if arguments.variants:
                raise
            say(f"left out {name}: {error}")  # one that does not run here leaves the others be
    finish(bench, "growth", rows, told=("factor", "value"))


if __name__ == "__main__":
    run(main)
