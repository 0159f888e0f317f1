"""The model's components one by one, and the fused step: time, rate and share of what this machine reaches.

    python benchmarks/components.py [--model demo|sd|DIR] [--components unet vae_decoder] [--compile] [--repeats 5]

Each backend loads the model once, in a process of its own; a component is then run on all of them in turn. The U-Net
and the text encoder get two samples per item, as guidance needs them. Where memory does not hold all backends at once,
each is measured beside the first. The share is that of the arithmetic peak in the component's own precision; the fused
step has no arithmetic to speak of and is held to the rate of a copy, by the code of denoise_step.py.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from pie_engine.benchmarks import denoise_step
from pie_engine.benchmarks.common import Bench, add_setting_options, finish, prepare, print_row, run, say
from pie_engine.benchmarks.harness import Samples, Spec, interleave, summarise
from pie_engine.benchmarks.harness.remote import remotes
from pie_engine.benchmarks.variants import engine_source, installed
from pie_engine.config import COMPONENTS

# Backend and dtype; the first is what the others are compared with.
ON_CPU = (
    ("torch", "fp32"), ("torch", "bf16"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"),
)  # fmt: skip
ON_GPU = (
    ("torch", "fp32"), ("torch", "bf16"), ("torch", "fp16"), ("onnxruntime", "fp16"), ("tensorrt", "fp16"),
    ("tensorrt-rtx", "fp16"),
)  # fmt: skip
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def variants(bench: Bench, compile: bool) -> dict[str, Spec]:
    """A subject per backend and dtype that is installed here."""
    setting = bench.setting
    specs = {}
    on_cpu = setting.device == "cpu"
    wanted = [(*pair, False) for pair in (ON_CPU if on_cpu else ON_GPU)]
    if compile:
        wanted.append(("torch", "fp32" if on_cpu else "fp16", True))
    for backend, dtype, compiled in wanted:
        if installed(backend):
            arguments = {
                "source": engine_source(setting, backend, dtype),
                "resolution": setting.resolution,
                "batch": setting.batch,
                "compile": compiled,
            }
            name = f"{backend} {dtype}{', compiled' if compiled else ''}"
            specs[name] = Spec("pie_engine.benchmarks.subjects:Components", arguments, setting.threads)
    return specs


def measure(bench: Bench, specs: dict[str, Spec], components: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Rows of every component on every backend that loads here."""
    rows: list[dict[str, Any]] = []
    first, rest = "", list(specs)
    while rest:
        before = [first] if first else []
        group, rest = rest[: bench.at_once - len(before)], rest[bench.at_once - len(before) :]
        with remotes({name: specs[name] for name in before + group}, on_load=say, required=False) as subjects:
            precisions = {name: subject.facts["precisions"] for name, subject in subjects.items()}
            first = first or next(iter(subjects))
            for component in components:
                say(component)
                # A compiled U-Net leaves the other components as they are.
                calls = {
                    name: functools.partial(subject, component)
                    for name, subject in subjects.items()
                    if component == "unet" or "compiled" not in name
                }
                samples = interleave(calls, repeats, on_call=print_row)
                rows += [
                    describe(bench, component, name, precisions[name][component], samples, first)
                    for name in group
                    if name in samples
                ]
    order = list(COMPONENTS)
    return sorted(rows, key=lambda row: order.index(row["component"]))


def describe(
    bench: Bench, component: str, name: str, precision: str, samples: dict[str, Samples], first: str
) -> dict[str, Any]:
    """A component's row."""
    count = bench.setting.batch * (2 if component in ("unet", "text_encoder") else 1)
    columns = summarise(samples[name], samples[first])
    return {
        "variant": name,
        "component": component,
        "samples": count,
        "precision": precision,
        **columns,
        "weights_mb": bench.parameters[component] * _BYTES[precision] / 1e6,
        **bench.arithmetic(count * bench.flops[component], columns["median_s"], precision),
        "gb_per_s": "",
        "share_of_copy": "",
    }


def step_rows(bench: Bench, scale: int, repeats: int) -> list[dict[str, Any]]:
    """The fused step between two U-Net evaluations, in the columns of the components."""
    import torch

    setting = bench.setting
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    dtype = "fp32" if setting.device == "cpu" else "fp16"
    step = denoise_step.Step(setting.batch, setting.resolution // scale, 0, dtype, setting.device)
    say("fused step")
    samples = denoise_step.measure(step, repeats, setting.threads)
    rows = []
    for row in denoise_step.describe(step, samples, bench.limits):
        times = summarise(samples[row["variant"]], samples["eager"])
        rates = {name: row[name] for name in ("gb_per_s", "share_of_copy")}
        nothing = dict.fromkeys(("weights_mb", "tflop", "gflop_per_s", "peak_gflop_per_s", "share"), "")
        columns = {
            "variant": row["variant"],
            "component": "fused_step",
            "samples": 2 * setting.batch,
            "precision": dtype,
        }
        # Its memory is this script's, which says nothing.
        rows.append({**columns, **times, "host_peak_mb": "", "device_peak_mb": "", **nothing, **rates})
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser)
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=list(COMPONENTS))
    parser.add_argument("--compile", action="store_true", help="also torch.compile, of the U-Net")
    arguments = parser.parse_args(words)
    bench = prepare(arguments)
    rows = measure(bench, variants(bench, arguments.compile), arguments.components, arguments.repeats)
    rows += step_rows(bench, bench.vae_scale, arguments.repeats)
    for row in rows:  # nothing of a progression is run here
        row |= {"rounds": "", "evaluations": ""}
    finish(bench, "components", rows, told=("component",))


if __name__ == "__main__":
    run(main)
