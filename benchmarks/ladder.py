"""The ablation ladder: each optimisation added to the ones before, with what it gains and what it costs in precision.

    python benchmarks/ladder.py [--model demo|sd|DIR] [--rounds 10] [--strength 0.5] [--repeats 5] [--threads 2]

One patient, N rounds. Speed-ups are medians of ratios repeat by repeat: over the first rung, and over the rung before.
PSNR is that of the last frame against eager fp32 with the same noise and the engine's semantics; the first rung draws
other noise, as published, and has none. A frame that does not differ has an infinite one. Where memory does not hold
all rungs at once, each is measured beside the first and the one before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pie_engine.benchmarks.common import Bench, add_setting_options, finish, prepare, print_row, run, say
from pie_engine.benchmarks.harness import BenchmarkError, Samples, Spec, interleave, summarise
from pie_engine.benchmarks.harness.arithmetic import progression_flops
from pie_engine.benchmarks.harness.remote import remotes
from pie_engine.benchmarks.subjects import psnr
from pie_engine.benchmarks.variants import PUBLISHED, Setting, eager_spec, engine_spec, installed

EAGER = "latents carried on, text encoded once"
# Each rung changes something of the one before.
ENGINE: dict[str, Any] = {
    "backend": "torch", "dtype": "fp32", "fused_step": "eager", "fused_blocks": False, "autotune": False,
    "cuda_graph": False, "overlap": False,
}  # fmt: skip
ON_CPU: dict[str, dict[str, Any]] = {
    "engine on PyTorch fp32": {},
    "+ fused step (C++)": {"fused_step": "cpp"},
    "+ ONNX Runtime": {"backend": "onnxruntime"},
    "+ OpenVINO": {"backend": "openvino"},
    "+ bf16": {"dtype": "bf16"},
}
ON_GPU: dict[str, dict[str, Any]] = {
    "engine on PyTorch fp32": {},
    "+ fp16": {"dtype": "fp16"},
    "+ fused step (Triton)": {"fused_step": "triton"},
    "+ CUDA graph": {"cuda_graph": True},
    "+ autotune": {"autotune": True},
    "+ fused blocks": {"fused_blocks": True},
    "+ overlap": {"overlap": True},
    "+ torch.compile": {"compile": True},
    "+ TensorRT": {"backend": "tensorrt", "compile": False},
}


def rungs(setting: Setting) -> tuple[dict[str, Spec], dict[str, str]]:
    """The rungs that can be climbed here, each with all that those before it added; and their dtypes."""
    specs = {
        PUBLISHED: eager_spec(setting, semantics="official"),
        EAGER: eager_spec(setting),
    }
    dtypes = dict.fromkeys(specs, "fp32")
    reached = ENGINE
    for name, change in (ON_CPU if setting.device == "cpu" else ON_GPU).items():
        changed = reached | change
        if not installed(changed["backend"]):
            continue
        if changed["dtype"] == "bf16" and changed["backend"] == "onnxruntime":  # which has no bf16 on a processor
            continue
        reached = changed
        specs[name], dtypes[name] = engine_spec(setting, **reached), reached["dtype"]
    return specs, dtypes


def climb(specs: dict[str, Spec], at_once: int, repeats: int) -> list[tuple[str, dict[str, Any], Samples]]:
    """Measure every rung beside the first and the one before.

    Returns:
        Name, columns and samples of each rung; those that do not load here are left out.
    """
    climbed: list[tuple[str, dict[str, Any], Samples]] = []
    rest = list(specs)
    while rest:
        before = list(dict.fromkeys(name for name, _, _ in (*climbed[:1], *climbed[-1:])))
        group, rest = rest[: at_once - len(before)], rest[at_once - len(before) :]
        with remotes({name: specs[name] for name in before + group}, on_load=say, required=False) as subjects:
            samples = interleave(subjects, repeats, on_call=print_row)
            loads = {name: subject.load_seconds for name, subject in subjects.items()}
        for name in (name for name in group if name in samples):
            calls = samples[name]
            first = climbed[0][0] if climbed else name
            previous = climbed[-1][0] if climbed else name
            step = summarise(calls, samples[previous])
            columns = {**summarise(calls, samples[first]), "load_s": loads[name]}
            columns["speedup_over_previous"] = step["speedup"]
            columns |= {f"speedup_over_previous_{end}": step[f"speedup_{end}"] for end in ("p20", "p80")}
            climbed.append((name, columns, calls))
    return climbed


def describe(
    bench: Bench, climbed: list[tuple[str, dict[str, Any], Samples]], dtypes: dict[str, str]
) -> list[dict[str, Any]]:
    """Rows, with the work and the distance from eager fp32."""
    frames = {name: samples.facts["frame"] for name, _, samples in climbed}
    rows = []
    for number, (name, columns, _) in enumerate(climbed):
        official = name == PUBLISHED
        work = progression_flops(
            bench.flops,
            rounds=bench.setting.rounds,
            steps=bench.setting.evaluations // bench.setting.rounds,
            guided=True,
            official=official,
        )
        distance: float | str = "" if official or EAGER not in frames else psnr(frames[name], frames[EAGER])
        row = {"variant": name, "rung": number, "dtype": dtypes[name], **columns, "psnr_db": distance}
        rows.append(row | bench.arithmetic(work, columns["median_s"], dtypes[name]))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser)
    arguments = parser.parse_args(words)
    if arguments.batch != 1:
        raise BenchmarkError(f"batch {arguments.batch} does not suit the eager rungs, which run one item; leave it out")
    bench = prepare(arguments)
    specs, dtypes = rungs(bench.setting)
    finish(bench, "ladder", describe(bench, climb(specs, bench.at_once, arguments.repeats), dtypes))


if __name__ == "__main__":
    run(main)
