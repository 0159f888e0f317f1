"""How many progressions and guided U-Net evaluations per second, over the number of items that run at once.

    python benchmarks/throughput.py [--batches 1 2 4 8] [--variants "engine, torch fp16"] [--rounds 2] [--model demo]

Only the steady state counts, so a short progression will do. Each backend has a process and the machine to itself; a
batch is measured in turn with a single item, and "speedup" is the gain per item over that, repeat by repeat. A backend
stops at the first batch that memory does not hold; a row without times says so.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from pie_engine.benchmarks.common import (
    NO_TIMES,
    Bench,
    add_setting_options,
    exceeds_memory,
    finish,
    named_variants,
    prepare,
    print_row,
    run,
    say,
)  # fmt: skip
from pie_engine.benchmarks.harness import BenchmarkError, MemoryRanOut, Remote, Samples, Spec, interleave, summarise
from pie_engine.benchmarks.harness.arithmetic import progression_flops
from pie_engine.benchmarks.variants import specs

NO_RATES = dict.fromkeys(("items_per_s", "evaluations_per_s", "tflop", "gflop_per_s", "peak_gflop_per_s", "share"), "")


def measure(bench: Bench, name: str, spec: Spec, batches: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Rows of one backend, a batch size after the other, until memory runs out."""
    rows: list[dict[str, Any]] = []
    peak, before = 0, 1
    with Remote(spec) as subject:
        say(f"loaded {name}: {subject.load_seconds:.1f} s")
        for batch in sorted(set(batches)):
            say(f"{name}, batch {batch}")
            note = exceeds_memory(bench.setting.device, subject.loaded_bytes, peak, before, batch) if peak else ""
            samples: dict[int, Samples] = {}
            if not note:
                try:
                    samples = run_batch(subject, batch, repeats)
                except MemoryRanOut as error:
                    note = str(error)
            if note:
                say(f"  {note}")
                rows.append({"variant": name, "batch": batch, "repeats": 0, **NO_TIMES, **NO_RATES, "note": note})
                break
            calls = samples[batch]
            peak, before = max(calls.host_bytes, calls.device_bytes), batch
            rows.append(describe(bench, name, batch, calls, samples[1]))
    return rows


def run_batch(subject: Remote, batch: int, repeats: int) -> dict[int, Samples]:
    """A batch in turn with one item."""
    calls = {str(size): functools.partial(subject, size) for size in dict.fromkeys((1, batch))}
    return {int(size): samples for size, samples in interleave(calls, repeats, on_call=print_row).items()}


def describe(bench: Bench, name: str, batch: int, calls: Samples, single: Samples) -> dict[str, Any]:
    """A batch's row; speed-ups are per item."""
    setting = bench.setting
    columns = summarise(calls, single)
    for key in ("speedup", "speedup_p20", "speedup_p80"):
        columns[key] *= batch
    per_round = setting.evaluations // setting.rounds
    work = progression_flops(bench.flops, rounds=setting.rounds, steps=per_round, guided=True, batch=batch)
    return {
        "variant": name,
        "batch": batch,
        **columns,
        "items_per_s": batch / columns["median_s"],
        "evaluations_per_s": batch * setting.evaluations / columns["median_s"],
        **bench.arithmetic(work, columns["median_s"], name),
        "note": "",
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser)
    parser.set_defaults(rounds=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="items at once")
    parser.add_argument("--variants", help="engines, separated by semicolons (default: all that are installed)")
    arguments = parser.parse_args(words)
    bench = prepare(arguments)
    rows = []
    for name, spec in specs(bench.setting, named_variants(arguments, bench.setting)).items():
        try:
            rows += measure(bench, name, spec, arguments.batches, arguments.repeats)
        except BenchmarkError as error:
            if arguments.variants:
                raise
            say(f"left out {name}: {error}")  # one that does not run here leaves the others be
    finish(bench, "throughput", rows, told=("batch",))


if __name__ == "__main__":
    run(main)
