"""One patient, N rounds: the engine on each backend against the eager reference, interleaved.

    python benchmarks/progression.py [--model demo|sd|DIR] [--rounds 10] [--strength 0.5] [--repeats 5] [--threads 2]

"As published" is the published computation: fp32, text and images encoded anew in every round. "Tuned" is the engine's
mathematics in eager PyTorch in half precision. All make the same number of guided U-Net evaluations. Times are whole
progressions on loaded models, each in a process of its own. Random weights (sd) cost the same to run as trained ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from pie_engine.benchmarks.common import add_setting_options, finish, prepare, print_row, run, say
from pie_engine.benchmarks.harness import Samples, Spec, interleave, summarise
from pie_engine.benchmarks.harness.arithmetic import progression_flops
from pie_engine.benchmarks.harness.remote import remotes
from pie_engine.benchmarks.subjects import psnr
from pie_engine.benchmarks.variants import ENGINE, ON_CPU, ON_GPU, PUBLISHED, specs, usable

REFERENCE = "eager fp32, engine semantics"


def measure(
    variants: Mapping[str, Spec], at_once: int, repeats: int, *, required: bool
) -> list[tuple[str, Samples, Samples | None, float]]:
    """Measure the variants in groups that memory holds, each beside the computation as published.

    Returns:
        Name, samples, samples of the published computation from the same group, and seconds of loading, of each.
    """
    measured: list[tuple[str, Samples, Samples | None, float]] = []
    rest = list(variants)
    while rest:
        beside = [PUBLISHED] if measured and PUBLISHED in variants else []
        group, rest = rest[: at_once - len(beside)], rest[at_once - len(beside) :]
        chosen = {name: variants[name] for name in beside + group}
        with remotes(chosen, on_load=say, required=required) as subjects:
            samples = interleave(subjects, repeats, on_call=print_row)
            loads = {name: subject.load_seconds for name, subject in subjects.items()}
        measured += [(name, samples[name], samples.get(PUBLISHED), loads[name]) for name in group if name in samples]
    return measured


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser)
    parser.add_argument("--variants", help="names, separated by semicolons (default: all that are installed)")
    arguments = parser.parse_args(words)
    bench = prepare(arguments)
    setting = bench.setting
    chosen = arguments.variants.split(";") if arguments.variants else None
    names = [name.strip() for name in chosen] if chosen else usable(ON_CPU if setting.device == "cpu" else ON_GPU)
    measured = measure(specs(setting, names), bench.at_once, arguments.repeats, required=chosen is not None)
    reference = next((calls for name, calls, _, _ in measured if name == REFERENCE), None)
    rows = []
    for name, calls, published, load_s in measured:
        official = "as published" in name
        work = progression_flops(
            bench.flops,
            rounds=setting.rounds,
            steps=setting.evaluations // setting.rounds,
            guided=True,
            official=official,
            batch=setting.batch if name in ENGINE else 1,
        )
        distance: float | str = ""
        if reference is not None and not official and name != REFERENCE:
            distance = psnr(calls.facts["frame"], reference.facts["frame"])
        columns = summarise(calls, published)
        row = {"variant": name, **columns, "load_s": load_s, "psnr_db": distance}
        rows.append({**row, **bench.arithmetic(work, columns["median_s"], dtype=name)})
    finish(bench, "progression", rows)


if __name__ == "__main__":
    run(main)
