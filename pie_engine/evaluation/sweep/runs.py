"""Simulates the runs of a sweep: those that share a plan one after the other, those that share rounds once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.config import OutputConfig
from pie_engine.evaluation.sweep.design import PlannedRun, cost, longest
from pie_engine.imaging.item import PreparedItem
from pie_engine.metrics import Change
from pie_engine.metrics.change import grey_differences
from pie_engine.outputs.provenance import describe_run
from pie_engine.rounds.batches import split_group
from pie_engine.rounds.loop import make_timeline
from pie_engine.rounds.methods import describe_method

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.engine import PieEngine
    from pie_engine.outputs import Result

# Under this name provenance.json says to which cell of a sweep a run belongs.
KEY = "sweep"
_SMALL = OutputConfig(report=False)


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        runs, all_runs: that are complete, and that were missing at the start.
        evaluations, all_evaluations: of the U-Net, the same.
        seconds_left: at the rate so far; None before there is one.
    """

    runs: int
    all_runs: int
    evaluations: int
    all_evaluations: int
    seconds_left: float | None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class _Job:
    """One simulation, and the runs that are its first rounds."""

    longest: PlannedRun
    runs: tuple[PlannedRun, ...]

    @property
    def config(self) -> RunConfig:
        return self.longest.config


def simulate(
    engine: PieEngine,
    runs: Sequence[PlannedRun],
    output: Path,
    *,
    batch: int,
    prepared: Callable[[PlannedRun], PreparedItem],
    on_progress: OnProgress = lambda progress: None,
) -> None:
    """Simulate runs and write each into its folder below `output`, whole or not at all.

    Args:
        batch: patients that are simulated at once.
        prepared: the patient of a run, with the region that it is measured against.
    """
    chunks = _chunks(runs, batch)
    clock = _Clock(len(runs), sum(_cost(chunk) for chunk in chunks), on_progress)
    for chunk in chunks:
        config = chunk[0].config

        def report(done: int, total: int, chunk: Sequence[_Job] = chunk) -> None:
            clock.tell(_cost(chunk) * done / total)

        items = [job.runs[0].item for job in chunk]
        results = engine.run(items, config, method=chunk[0].longest.method, on_progress=report)
        leakage = _leakage(engine, results, [prepared(job.runs[0]) for job in chunk])
        for job, result, decoded_outside in zip(chunk, results, leakage, strict=True):
            for run in job.runs:
                steps = run.config.steps
                part = first_rounds(result, steps)
                about = {
                    "cell": run.cell.values,
                    "method": run.method.to_dict(),
                    "rounds_simulated": config.steps,
                    "decoded_outside": decoded_outside and decoded_outside[:steps],
                }
                replace(part, provenance=part.provenance | {KEY: about}).save(output / run.folder, _SMALL)
        clock.finish(sum(len(job.runs) for job in chunk), _cost(chunk))


def first_rounds(result: Result, steps: int) -> Result:
    """The first rounds of a progression: what a run of so many rounds gives.

    A round depends on those before it alone: its noise is drawn for its own number (`noise` fresh), in order
    (`official`) or once for all rounds.
    """
    if steps == result.config.steps:
        return result
    known, all_steps = result.provenance, result.config.steps
    config = replace(result.config, steps=steps)
    series: dict[str, Any] = {name: values and values[:steps] for name, values in result.change.to_dict().items()}
    change = Change(**series)
    schedule = {**known["schedule"], "unet_evaluations": known["schedule"]["unet_evaluations"] * steps // all_steps}
    seconds = {**known["seconds"], "rounds": known["seconds"]["rounds"][:steps]}
    reruns = [one for one in known["reruns"] if one["round"] <= steps]
    provenance = known | describe_run(config, describe_method(known["method"]["name"], steps))
    provenance |= {"schedule": schedule, "seconds": seconds, "reruns": reruns, "change": change.to_dict()}
    frames, latents = result.frames[: steps + 1], result.latents[:steps]
    return replace(result, frames=frames, latents=latents, change=change, config=config, provenance=provenance)


def _chunks(runs: Sequence[PlannedRun], batch: int) -> list[list[_Job]]:
    """Simulations that run at once, those that share a plan next to each other: the engine keeps two."""
    settings = longest(runs)
    groups: dict[tuple[object, ...], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(run.simulation, []).append(run)
    jobs = [_Job(settings[name], tuple(some)) for name, some in groups.items()]

    def together(job: _Job) -> tuple[str, str, bool]:
        return repr(job.longest.method), repr(job.config), job.runs[0].item.mask is None

    chunks = []
    for _, same in groupby(sorted(jobs, key=together), key=together):
        alike = list(same)
        chunks += [alike[start : start + batch] for start in range(0, len(alike), batch)]
    return sorted(chunks, key=lambda chunk: (_plan(chunk[0]), len(chunk)))


def _plan(job: _Job) -> tuple[object, ...]:
    """What a plan of the engine is made for, but for the batch."""
    config = job.config
    return (
        job.longest.method.name, config.semantics, config.scheduler or "", config.num_inference_steps,
        config.inversion, config.guided, config.denoising_steps, job.runs[0].item.mask is None,
    )  # fmt: skip


def _cost(chunk: Sequence[_Job]) -> int:
    return sum(cost(job.longest) for job in chunk)


def _leakage(
    engine: PieEngine, results: Sequence[Result], patients: Sequence[PreparedItem]
) -> list[list[float] | None]:
    """Per result, what runs without a mask change outside the patient's region, before compositing, in grey levels.

    As `Change.decoded_outside` of runs with one: mean absolute difference to the decoded input. Those frames are as
    they were decoded, but for the padding, which is left out. None for runs with a mask, or where there is no region.
    """
    unmasked = [i for i, result in enumerate(results) if result.mask is None and patients[i].mask is not None]
    decoded = dict(zip(unmasked, _decode(engine, [results[i].original_latent for i in unmasked]), strict=True))
    found: list[list[float] | None] = [None] * len(results)
    for i in unmasked:
        mask, box = patients[i].mask, patients[i].content_box
        assert mask is not None
        outside = ~mask.pixels
        if box is not None:
            left, top, right, bottom = box
            padding = np.ones_like(outside)
            padding[top:bottom, left:right] = False
            outside &= ~padding
        if outside.any():
            found[i] = [float(d[outside].mean()) for d in grey_differences(results[i].frames[1:], decoded[i])]
    return found


def _decode(engine: PieEngine, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Latents [4, h, w] as frames [H, W, 3] uint8, as a round decodes its own."""
    if not latents:
        return []
    backend, timeline = engine.backend, make_timeline(engine.backend, engine.runtime)
    sizes = backend.batch_sizes(latents[0].shape[2] * backend.model.vae_scale)
    frames: dict[int, Any] = {}
    with torch.inference_mode(), timeline.main():
        for part in split_group(list(range(len(latents))), sizes):
            stacked = torch.from_numpy(np.stack([latents[i] for i in part])).to(backend.device)
            pixels = backend.decode_latent(stacked / backend.model.scaling_factor)
            rounded = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1)
            frames.update(zip(part, rounded.to("cpu", torch.uint8, copy=True).numpy(), strict=True))
    timeline.synchronize()
    return [frames[i] for i in range(len(latents))]


class _Clock:
    """Counts runs and evaluations, and tells how long the rest takes at the rate so far."""

    def __init__(self, runs: int, evaluations: int, on_progress: OnProgress):
        self._runs, self._evaluations, self._on_progress = runs, evaluations, on_progress
        self._done = self._before = 0
        self._start: float | None = None
        self._first = 0.0

    def tell(self, within: float) -> None:
        """`within`: evaluations of the simulations under way."""
        now, done = time.monotonic(), self._before + within
        if self._start is None:
            self._start, self._first = now, done  # the first evaluation also warms up
        rate = (done - self._first) / (now - self._start) if now > self._start else 0.0
        left = (self._evaluations - done) / rate if rate else None
        self._on_progress(Progress(self._done, self._runs, round(done), self._evaluations, left))

    def finish(self, runs: int, evaluations: int) -> None:
        self._done, self._before = self._done + runs, self._before + evaluations
        self.tell(0)
