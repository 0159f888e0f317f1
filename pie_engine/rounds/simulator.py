"""From prepared items to their frames, on one backend: batches, loops that are kept, and what memory allows."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.equality import ByContent
from pie_engine.kernels.dispatch import select
from pie_engine.rounds import boxed
from pie_engine.rounds import loop as loops
from pie_engine.rounds.batches import make_batch
from pie_engine.rounds.boxed import NotRecordable
from pie_engine.rounds.buffers import Shape
from pie_engine.rounds.describe import describe_computation, describe_pace
from pie_engine.rounds.finishing import Frames, finishing
from pie_engine.rounds.interpolation import decode_between
from pie_engine.rounds.loop import Loop
from pie_engine.rounds.memory import OutOfMemory, explain, release
from pie_engine.rounds.methods import Previous
from pie_engine.rounds.pace import least_rounds, run_pilot
from pie_engine.rounds.plan import Batch, Plan
from pie_engine.rounds.regional import Regional, choose_boxes
from pie_engine.rounds.resuming import Finished, Interrupted, restore
from pie_engine.rounds.severity import run_severity_pass
from pie_engine.rounds.stopping import Stopping
from pie_engine.rounds.truth import Watch
from pie_engine.rounds.turns import Turns

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.config import RunConfig, RuntimeConfig
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.metrics.severity import Severity
    from pie_engine.rounds.methods import Chosen
    from pie_engine.rounds.timeline import Timeline

log = logging.getLogger(__name__)
# Called with (evaluations done, evaluations in all) after each U-Net evaluation; on a GPU, after each round of them.
OnProgress = Callable[[int, int], None]
KEPT_LOOPS = 2


@dataclass(frozen=True, eq=False)
class Simulated(ByContent):
    """What the rounds of one item gave.

    Attributes:
        frames: composited and measured.
        original_latent: [4, h, w] float32.
        between: [N, K, H, W, 3] uint8, or None for K = 0.
        computed: how; the items of a batch share it.
        pace: of even pace, the displacement of the last frame and the blends; else None.
        regional: the box that was computed and how far that is from the whole picture, or why none was.
        stopped: where a tolerance ended the rounds, and what bounds the rest (`Stopping.stopped`); else None.
    """

    frames: Frames
    original_latent: np.ndarray
    between: np.ndarray | None
    computed: dict[str, Any]
    pace: dict[str, Any] | None
    regional: dict[str, Any]
    stopped: dict[str, Any] | None


class Simulator:
    """Runs batches on one backend.

    Buffers and captured steps of the last two kinds of run (batch size, resolution, settings) are kept, so that a
    cohort pays for them once.

    Raises:
        BackendError: the implementation of the fused step that `runtime` names does not run here.
    """

    def __init__(self, backend: Backend, runtime: RuntimeConfig):
        self.backend, self.runtime = backend, runtime
        self.kernels = select(backend.device, runtime.fused_step)
        self.loops: dict[object, Loop] = {}
        self.timeline: Timeline | None = None
        self._bound_precisions = dict(backend.precisions)  # of the weights that the kept loops are bound to
        self._turns = Turns()

    def simulate(
        self,
        items: Sequence[PreparedItem],
        chosen: Chosen,
        report: OnProgress,
        between: int,
        finished: Finished | None = None,
        severity: Severity | None = None,
    ) -> list[Simulated]:
        """The rounds of one batch (`group_items`). Batches of several threads take turns.

        Args:
            chosen: the method, and its settings with the resolution filled in.
            between: K pictures between two frames.
            finished: rounds of the one item that were run before; of PIE.
            severity: of even pace, what is to rise evenly instead of the displacement.

        Raises:
            BackendError: the model gave values that are not finite, or memory ran out; or see `Turns.turn`.
            ConfigError: see `restore`.
            Interrupted: a KeyboardInterrupt came when rounds were finished, which it holds.
        """
        arguments = (items, chosen, report, between, finished, severity)
        with self._turns.turn(), torch.inference_mode():
            regional = choose_boxes(items, chosen, self.backend, self.runtime)
            if regional.boxes is not None:
                try:
                    with self._explaining_memory(len(items), chosen.config):
                        return self._simulate(*arguments, regional)
                except (NotRecordable, OutOfMemory) as reason:
                    log.warning("%s; the rounds are computed again, of the whole picture", reason)
                    regional = Regional(None, str(reason))
            with self._explaining_memory(len(items), chosen.config):
                return self._simulate(*arguments, regional)

    def _simulate(
        self,
        items: Sequence[PreparedItem],
        chosen: Chosen,
        report: OnProgress,
        between: int,
        finished: Finished | None,
        severity: Severity | None,
        regional: Regional,
    ) -> list[Simulated]:
        start = time.monotonic()
        batch, config, method = make_batch(items, regional.boxes), chosen.config, chosen.frames
        loop = self._take_loop(batch, config)
        loop.load(batch, config)
        loop.watch = None if loop.plan.boxed is None else Watch(loop.plan, items, composited=bool(config.composite))
        original = loop.plan.original_latent.cpu().numpy()
        # Leakage outside a mask is measured against it; without a mask nothing is outside.
        measured = config.leakage and batch.mask is not None
        decoded_original = loop.decode_original().numpy() if measured else [None] * len(items)
        seconds: dict[str, Any] = {"prepare": round(time.monotonic() - start, 4), "rounds": []}
        done, paced = 0 if finished is None else finished.rounds, method is None and config.even
        severity = severity if paced else None
        whole = loop.plan.total_evaluations if method is None else method.evaluations(loop.plan, config)
        pilot, spared = least_rounds(config) if paced else (0, 0)
        passes, first = 2 if severity else 1, loop.plan.evaluations_of(0) if spared else 0
        left = passes * (whole - first)  # after a pilot, whose length shows when it runs
        total = left + sum(map(loop.plan.evaluations_of, range(pilot)))
        begun = max(0, sum(map(loop.plan.evaluations_of, range(done))) - first)
        step, piloting = begun, paced

        def on_step() -> None:
            nonlocal step, total
            if piloting:
                total = max(total, step + 1 + left - begun)
            step = min(step + 1, total)  # a round may be run again
            report(step, total)

        frames = [
            Frames(item, bool(config.composite), latent, before, untouched=isinstance(method, Previous))
            for item, latent, before in zip(items, original, decoded_original, strict=True)
        ]
        stopping = Stopping(config, items, original)
        pictures: list[np.ndarray] = []
        blends = [] if finished is None else list(finished.blends)
        aims: np.ndarray | None = None
        known: list[int] = []
        seen: list[dict[str, Any]] | None = None
        if paced:
            aims, known = run_pilot(loop, batch, config, on_step)
            piloting = False
            if severity is not None:
                aims, seen = run_severity_pass(loop, config, aims, frames, severity, on_step)
            seconds["pilot"] = round(time.monotonic() - start - seconds["prepare"], 4)
        interrupt: KeyboardInterrupt | None = None
        try:
            with finishing(frames) as host:
                restored = None
                for restored in () if finished is None else stopping.watch(restore(loop, finished)):
                    host.add(restored)
                seconds["rounds"] += () if finished is None else finished.seconds
                last = time.monotonic()
                rounds = (
                    stopping.watch(loop.rounds(on_step, done=done, last=restored))
                    if method is None
                    else method.rounds(loop, batch, config, on_step)
                )
                for result in rounds:
                    host.add(result)
                    blends += [] if result.blends is None else [result.blends.numpy()]
                    seconds["rounds"].append(round(time.monotonic() - last, 4))
                    last = time.monotonic()
                for result in stopping.repeated():
                    host.add(result)
            if stopping.over:
                report(total, total)
            if between:
                latents = [original, *np.stack([one.latents for one in frames], axis=1)]  # N + 1 of [B, 4, h, w]
                pictures = decode_between(loop, latents, between)
            self._keep_loop(loop, config)
        except KeyboardInterrupt as raised:
            if not frames[0].rounds:
                raise
            interrupt, pictures = raised, []
        if stopping.over:
            total = stopping.evaluations(loop.plan, ahead=int(loop.overlapping))
        computed = describe_computation(loop, self.runtime, evaluations=total, rounds=method is None)
        computed["seconds"] = seconds
        paces: list[dict[str, Any] | None] = [None] * len(items)
        if aims is not None:
            paces[:] = describe_pace(aims, np.array(blends), known, batch.item_ids, seen)
        places, stops = regional.describe(loop.watch, len(items)), stopping.stopped or [None] * len(items)
        simulated = [
            Simulated(
                one, original[i], _between(one, [stack[i] for stack in pictures]), computed, paces[i],
                places[i], stops[i],
            )
            for i, one in enumerate(frames)
        ]  # fmt: skip
        if interrupt is not None:
            raise Interrupted(simulated, *interrupt.args) from None
        return simulated

    def _take_loop(self, batch: Batch, config: RunConfig) -> Loop:
        """The loop for this kind of run, with its buffers and captured steps, if it is kept; else a new one."""
        model, (height, width) = self.backend.model, batch.pixels.shape[2:]
        shape = Shape(
            batch=len(batch.item_ids),
            latent=(model.latent_channels, height // model.vae_scale, width // model.vae_scale),
            scale=model.vae_scale,
            mask_channels=None if batch.mask is None else batch.mask.shape[1],
            findings=len(batch.prompts) // len(batch.item_ids),
            box=None if batch.boxes is None else (batch.boxes[0].height, batch.boxes[0].width),
        )
        self._drop_stale_loops()
        # Taken out while it runs: one that is stopped by an error is not used again.
        kept = self.loops.pop(Plan.key(shape, config), None)
        if kept is not None:
            return kept
        if self.backend.device.type == "cpu":
            # Graphs for boxes and for whole pictures hold the weights, each its own copy.
            self.loops = {k: one for k, one in self.loops.items() if bool(one.plan.boxed) == bool(shape.box)}
        while len(self.loops) >= KEPT_LOOPS:
            del self.loops[next(iter(self.loops))]
        if self.timeline is None:
            self.timeline = loops.make_timeline(self.backend, self.runtime)
        return Loop(Plan(self.backend, shape, config, self.kernels), self.runtime, self.timeline)

    def _keep_loop(self, loop: Loop, config: RunConfig) -> None:
        self._drop_stale_loops()  # this one was bound anew when a precision was raised, the others were not
        if loop.plan.boxed is not None and boxed.on_host(self.backend.device):
            loop.plan.boxed.unet.forget()  # what was captured on a GPU refers to it
        self.loops[loop.plan.key(loop.plan.shape, config)] = loop

    def _drop_stale_loops(self) -> None:
        """Drop loops that are bound to weights in an earlier precision, also if the run that raised it failed later."""
        if self._bound_precisions != self.backend.precisions:
            self.loops.clear()
            self._bound_precisions = dict(self.backend.precisions)

    @contextlib.contextmanager
    def _explaining_memory(self, batch: int, config: RunConfig) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # allocators share no other base
            precision = self.backend.precisions["unet"]
            message = explain(
                error, self.backend.device, batch=batch, resolution=config.resolution or 0, precision=precision
            )
            if message is None:
                raise
            # A smaller run needs the memory that this one holds: the caller may try one while handling the error.
            self.loops.clear()
            self.backend.release()
            traceback.clear_frames(error.__traceback__)
            release(self.backend.device)
            raise OutOfMemory(message) from error


def _between(frames: Frames, pictures: list[np.ndarray]) -> np.ndarray | None:
    """[N, K, H, W, 3] as they are written, of N K decoded ones in order; None without any."""
    if not pictures:
        return None
    finished = frames.finish(np.stack(pictures))
    return finished.reshape(frames.rounds, -1, *finished.shape[1:])
