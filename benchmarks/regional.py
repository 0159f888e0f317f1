"""What rounds in a box gain at full size: the same run dense and with boxes of several sizes, each in its own process.

    python benchmarks/regional.py [--boxes 16 24 32] [--rounds 4] [--steps 25] [--backend onnxruntime] [--output DIR]

Random weights of Stable Diffusion v1.4's shape at 512 x 512, so that times mean something and pictures nothing: rounds
are checked as ever, and none is computed again for what the checks say. Of each run: seconds of its rounds by what they
computed (recorded, checked, in the box), of a step and of a picture by itself, and the peak of the process's memory.
Ten rounds are one that is recorded, two that are checked and seven in the box.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pie_engine.benchmarks.common import run, say
from pie_engine.benchmarks.harness import BenchmarkError, results
from pie_engine.benchmarks.harness.machine import identify

SIDE, LATENTS = 512, 64
CALLS = 3  # of a step and of a picture by themselves


def measure(box: int, rounds: int, steps: int, backend: str, threads: int | None) -> dict[str, Any]:
    """One run, in this process. Args: box: its side in latents; 0 is dense."""
    import math

    from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
    from pie_engine.benchmarks.subjects import PROMPT, model_folder
    from pie_engine.rounds import truth

    truth.LIMIT = math.inf  # of random weights the checks say nothing
    folder = model_folder("sd")
    engine = PieEngine.load(
        checkpoint=folder, backend=backend, threads=threads, device="cpu", dtype="fp32",
        runtime=RuntimeConfig(regional="on" if box else "off"), on_component=say,
    )  # fmt: skip
    mask = region(box or 24, LATENTS)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    config = RunConfig(steps=rounds, num_inference_steps=2 * steps, strength=0.5, resolution=SIDE)
    result = engine.run(Item(pixels, PROMPT, mask, item_id="0"), config)
    facts, seconds = result.provenance["regional"], result.provenance["seconds"]["rounds"]
    found: dict[str, Any] = {"prepare_s": result.provenance["seconds"]["prepare"], "rounds_s": seconds}
    (loop,) = engine.simulator.loops.values()
    plan = loop.plan
    if box:
        assert (facts["box"]["height"], facts["box"]["width"]) == (box, box), facts
        found |= by_kind(facts, seconds)
        unet, decoder = plan.boxed.unet._network, plan.boxed.decoder._network  # type: ignore[union-attr]
        found |= {
            "recording_mb": facts["recording_bytes"] / 1e6,
            "step_s": timed(unet.inside), "whole_step_s": timed(unet.whole),
            "picture_s": timed(decoder.inside), "whole_picture_s": timed(decoder.whole),
        }  # fmt: skip
    else:
        found |= {
            "inside_s": statistics.median(seconds),
            "step_s": timed(plan.sampler.unet), "picture_s": timed(lambda: plan.decode(plan.buffers.x)),
        }  # fmt: skip
    return {**found, "host_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}


def region(box: int, latents: int) -> NDArray[np.uint8]:
    """A mask of `latents` x `latents` of 8 x 8 pixels whose box is `box` latents wide: with a margin of one on each
    side, at an odd offset."""
    mask = np.zeros((8 * latents, 8 * latents), np.uint8)
    first = min(8, latents - box + 1)
    mask[8 * first : 8 * (first + box - 2), 8 * first : 8 * (first + box - 2)] = 255
    return mask


def by_kind(facts: dict[str, Any], seconds: Sequence[float]) -> dict[str, float]:
    """Median seconds of rounds that were recorded, checked, and inside. Args: facts: provenance's `regional`."""
    kinds = ["recorded" if n in facts["whole"] else "checked" if n in facts["checked"] else "inside"
             for n in range(1, len(seconds) + 1)]  # fmt: skip
    return {
        f"{kind}_s": statistics.median(s for s, k in zip(seconds, kinds, strict=True) if k == kind)
        for kind in sorted(set(kinds))
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call, the median of several after one that warms up."""
    import torch

    seconds = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def ten_rounds(row: dict[str, Any]) -> float:
    """Seconds of ten, from the seconds of each kind."""
    if "recorded_s" not in row:
        return 10 * float(row["inside_s"])
    return float(row["recorded_s"] + 2 * row["checked_s"] + 7 * row["inside_s"])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[16, 24, 32], help="sides in latents, of 64")
    parser.add_argument("--rounds", type=int, default=4, help="of each run with boxes; the dense one has two")
    parser.add_argument("--steps", type=int, default=25, help="of a round")
    parser.add_argument("--backend", default="onnxruntime", choices=("onnxruntime", "openvino", "torch"))
    parser.add_argument("--threads", type=int, help="of the processor (all cores)")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of regional.csv")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # the box of the run that this process is for
    asked = parser.parse_args(words)
    if asked.rounds < 4:
        raise BenchmarkError(f"rounds {asked.rounds} hold not every kind of round; pass --rounds 4")
    if any(box % 8 or not 8 <= box < LATENTS for box in asked.boxes):
        raise BenchmarkError(f"boxes {asked.boxes} are not multiples of 8 below {LATENTS}; pass --boxes 16 24 32")
    if asked.one is not None:
        rounds = asked.rounds if asked.one else 2
        print(json.dumps(measure(asked.one, rounds, asked.steps, asked.backend, asked.threads)))
        return
    rows: list[dict[str, Any]] = []
    for box in (0, *asked.boxes):
        say(f"box {box}" if box else "dense")
        command = [
            sys.executable,
            __file__,
            "--one",
            str(box),
            "--rounds",
            str(asked.rounds),
            "--steps",
            str(asked.steps),
        ]
        command += ["--steps", str(asked.steps), "--backend", asked.backend]
        command += [*(["--threads", str(asked.threads)] if asked.threads else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the run of box {box} ended with {done.returncode}; the lines above say why")
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        ratio = ten_rounds(rows[0]) / ten_rounds(row)
        say(f"  ten rounds {ten_rounds(row):.0f} s, {ratio:.2f} x; {json.dumps(row)}")
    columns = ("prepare_s", "recorded_s", "checked_s", "inside_s", "step_s", "whole_step_s", "picture_s",
               "whole_picture_s", "recording_mb", "host_peak_mb")  # fmt: skip
    key = identify("cpu", asked.threads)
    results.append(
        asked.output / "regional.csv",
        [
            {
                **key, "backend": asked.backend, "box": box, "steps": asked.steps,
                **{name: row.get(name, "") for name in columns}, "ten_rounds_s": ten_rounds(row),
                "speedup": ten_rounds(rows[0]) / ten_rounds(row),
            }
            for box, row in zip((0, *asked.boxes), rows, strict=True)
        ],
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
