"""The loop that drives the rounds: what is captured, what overlaps, and what is run again when numbers overflow."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pie_engine.errors import BackendError, use
from pie_engine.rounds.buffers import DECODE, STAGE_COMPONENT, Slot
from pie_engine.rounds.capture import Capture, Stage
from pie_engine.rounds.equations import (
    Noises,
    OnStep,
    Part,
    blend_evenly,
    decode_frames,
    encode_frames,
    enter,
    enter_inversion,
    enter_official,
    invert_step,
    read_noise_back,
    run_round,
    step,
)
from pie_engine.rounds.plan import Batch, Plan
from pie_engine.rounds.timeline import CudaTimeline, Timeline

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.config import RunConfig, RuntimeConfig
    from pie_engine.rounds.truth import Watch

log = logging.getLogger(__name__)

# What a part of a round is called where it is captured.
STAGES: dict[Part, str] = {
    enter: "entry",
    enter_official: "entry",
    step: "step",
    enter_inversion: "inversion's entry",
    invert_step: "inversion's step",
    read_noise_back: "inversion's end",
    blend_evenly: "pace",
    decode_frames: "decoding",
    encode_frames: "encoding",
}
UNGUIDED = " without guidance"


@dataclass(frozen=True, eq=False)
class Round:
    """What one round yields, on the host: final latents [B, 4, h, w] float32, decoded frames [B, H, W, 3] uint8.

    Attributes:
        blends: [R, B] float32, what even pace blended each finding's regions with; else None.
    """

    latents: Tensor
    frames: Tensor
    blends: Tensor | None = None


class Method(Protocol):
    """What gives the frames after the input instead of PIE's rounds, over a loop that a batch is loaded into."""

    def evaluations(self, plan: Plan, config: RunConfig) -> int:
        """U-Net calls of one batch."""
        ...

    def rounds(self, loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> Iterator[Round]:
        """The N frames, in order; `on_step` is called after each U-Net evaluation."""
        ...


class Loop:
    """Drives a plan: load a batch, then take its rounds. What is captured serves every batch that is loaded later.

    After an error a loop must not be used again.

    Attributes:
        plan: buffers and schedules.
        stages: the parts of a round by name, as they have run so far: each is captured by itself. Those of rounds
            without guidance have names of their own, as they run another batch.
        watch: what decides which rounds compute boxes; with boxes it is set after each load.
        reruns: what was run again because values were not finite: round (0 is the preparation), component, precisions,
            items.
    """

    def __init__(self, plan: Plan, runtime: RuntimeConfig, timeline: Timeline):
        self.plan = plan
        self.reruns: list[dict[str, Any]] = []
        self.watch: Watch | None = None
        self._runtime = runtime
        self._timeline = timeline
        # A round of the published code starts from the frame before: nothing to begin early.
        # What a round in a box computes is decided by how the one before came out.
        self._lag = 0 if plan.official or plan.shape.box is not None else self._timeline.lag
        self._slots = [Slot.allocate(plan.buffers) for _ in range(self._lag + 1)]
        self.stages: dict[str, Stage] = {}
        # One for all that runs where rounds run, one for decoding: each shares a memory pool.
        self._captures: dict[bool, Capture | str] = {}
        self._on_step: OnStep = lambda: None
        self._batch: Batch | None = None
        self._entered = 0

    def load(self, batch: Batch, config: RunConfig) -> None:
        """Encode and copy a batch in.

        Raises:
            BackendError: a prompt or an image gives values that are not finite, in the highest precision too.
        """
        self.reruns.clear()
        self._batch, self._config = batch, config
        with self._timeline.main():
            self.plan.load(batch, config, self._checked)
        self._timeline.synchronize()

    def decode_original(self) -> Tensor:
        """The originals' latents decoded, [B, H, W, 3] uint8 on the host."""
        b = self.plan.buffers
        with self._timeline.main():
            b.decoding.copy_(self.plan.original_latent)
            decode_frames(self.plan)
            while b.decoding_flags[DECODE].any():
                self._raise_precision(0, "vae_decoder", b.decoding_flags[DECODE].cpu())
                decode_frames(self.plan)
            return b.frames.to("cpu", copy=True)  # the next round overwrites the buffer

    def compute(self, number: int, steps: Callable[[], None], *, decoded: bool = True) -> Round:
        """Run `steps`, which leaves a latent in the plan's x, and decode it: neither captured nor overlapped.

        For what is no round of PIE (`Method`), or one whose frame nobody looks at. While values are not finite all of
        it runs again in higher precision, so `steps` must start from what it does not overwrite, and take
        `plan.sampler` anew.

        Args:
            number: of the frame, for messages; 0 is the preparation.
            decoded: whether the frame is wanted; without, it is none that means anything.

        Raises:
            BackendError: values are not finite in the highest precision either.
        """
        b = self.plan.buffers
        while True:
            with self._timeline.main():
                steps()
                b.decoding.copy_(b.x)
                b.decoding_flags[:DECODE].copy_(b.flags[:DECODE])
                if decoded:
                    decode_frames(self.plan)
                else:
                    b.decoding_flags[DECODE].zero_()
            self._timeline.synchronize()
            flags = b.decoding_flags.cpu()
            if not flags.any():
                return Round(b.x.to("cpu", copy=True), b.frames.to("cpu", copy=True))
            stage = int(flags.any(1).nonzero()[0])
            with self._timeline.main():
                self._raise_precision(number, STAGE_COMPONENT[stage], flags[stage])

    def rounds(
        self, on_step: OnStep = lambda: None, *, done: int = 0, last: Round | None = None
    ) -> Generator[Round, None, None]:
        """Yield the N rounds of the loaded batch, or those after the first `done`.

        Args:
            on_step: called after each U-Net evaluation; on a GPU as often, but when a round has been computed.
            last: round `done`, where there is one.

        Raises:
            BackendError: values are not finite in the highest precision either.
        """
        assert self._batch is not None, "load a batch first"
        self._on_step = (lambda: None) if self._timeline.asynchronous else on_step
        try:
            yield from self._rounds(on_step, done, last)
        finally:
            # Whoever stops in the middle leaves rounds under way, which the next run must not meet.
            self._timeline.synchronize()
            self._on_step = lambda: None

    def _rounds(self, on_step: OnStep, done: int, start: Round | None) -> Iterator[Round]:
        assert self._batch is not None
        noises = Noises(self.plan, self._batch, self._config, skip=done)
        waiting: deque[int] = deque()
        begun, last = done, None
        if start is not None:
            last = start.latents
            with self._timeline.main():
                if self.plan.boxed is not None and not self.plan.boxed.unet.recorded:
                    # What the first round recorded went with the run that was stopped.
                    self.plan.buffers.x.copy_(self.plan.original_latent)
                    self.plan.enter(0)
                    noises.fill(0)
                    run_round(self.plan, self.run, self._on_step)
                self.plan.buffers.x.copy_(last)
                self.plan.buffers.frames.copy_(start.frames)  # where a round of the published code starts from
            self._entered = done - 1
        while begun < self._config.steps or waiting:
            if begun < self._config.steps and len(waiting) <= self._lag:
                with self._timeline.main():
                    self.plan.enter(begun)
                    noises.fill(begun)
                    if self.watch is not None:
                        self.watch.before(begun)
                    self._begin(begun)
                waiting.append(begun)
                begun += 1
                continue
            index = waiting.popleft()
            slot = self._slots[index % len(self._slots)]
            slot.wait()
            if slot.flags.any():
                # Rounds that were begun since then started from this one's values: all of them are run again.
                self._timeline.synchronize()
                waiting.clear()
                stage = int(slot.flags.any(1).nonzero()[0])
                with self._timeline.main():
                    self._raise_precision(index + 1, STAGE_COMPONENT[stage], slot.flags[stage])
                    self.plan.buffers.x.copy_(self.plan.original_latent if last is None else last)
                begun = index
                continue
            if self.watch is not None and not self._known(index):
                with self._timeline.main():
                    again = self.watch.after(index, slot.latents)
                    if again:
                        self.plan.buffers.x.copy_(self.plan.original_latent if last is None else last)
                if again:
                    begun = index
                    continue
            if self._timeline.asynchronous:  # told when it has happened, not when it was launched
                for _ in range(self.plan.evaluations_of(index)):
                    on_step()
            last = slot.latents.clone()
            yield Round(last, slot.frames.clone(), None if slot.blends is None else slot.blends.clone())

    def on_main(self) -> AbstractContextManager[Any]:
        """Where rounds run: within it a plan's networks may be called between them."""
        self._timeline.synchronize()
        return self._timeline.main()

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a CUDA graph."""
        return any(stage.captured for name, stage in self.stages.items() if name.startswith(STAGES[step]))

    @property
    def overlapping(self) -> bool:
        """Whether a frame is decoded while the next round runs."""
        return self._lag > 0

    @property
    def note(self) -> str:
        """What is not captured and why, or an empty string."""
        reasons = {stage.reason: stage.name for stage in reversed(self.stages.values()) if stage.reason}
        if len(reasons) == 1 and not self.captured and all(stage.reason for stage in self.stages.values()):
            return next(iter(reasons))
        if not reasons and not self.captured:
            return "the first step is the warm-up; there was no second one to capture"
        return "; ".join(f"{name}: {reason}" for reason, name in reasons.items())

    def _begin(self, index: int) -> None:
        b = self.plan.buffers
        if b.previous_frames is not None and b.frame_moments is not None:
            if index == 0:
                b.frame_moments.copy_(b.moments)
            else:
                if index != self._entered:  # a round that is run again still has its own
                    b.previous_frames.copy_(b.frames)
                self.run(encode_frames)
        self._entered = index
        slot = self._slots[index % len(self._slots)]
        if self._known(index):
            assert self.plan.first_edit is not None
            b.x.copy_(self.plan.first_edit)
        else:
            run_round(self.plan, self.run, self._on_step)
        if b.pace is not None:
            self.run(blend_evenly)

        def hand_over() -> None:
            b.decoding.copy_(b.x)
            if b.pace is not None:
                b.pace.blends.copy_(b.pace.blend)
            b.decoding_flags[:DECODE].copy_(b.flags[:DECODE])

        self._timeline.hand_over(hand_over)
        with self._timeline.decoding():
            boxed = self.plan.boxed
            if boxed is None or boxed.decoder is None:
                self.run(decode_frames)
            else:
                with boxed.decoder.of_round(whole=boxed.unet.was_whole):
                    self.run(decode_frames)
            slot.latents.copy_(b.decoding, non_blocking=True)
            slot.frames.copy_(b.frames, non_blocking=True)
            slot.flags.copy_(b.decoding_flags, non_blocking=True)
            if b.pace is not None and slot.blends is not None:
                slot.blends.copy_(b.pace.blends, non_blocking=True)
            slot.wait = self._timeline.mark()

    def _known(self, index: int) -> bool:
        """Whether a pilot has run this round."""
        return index == 0 and self.plan.first_edit is not None

    def run(self, part: Part) -> None:
        """Run a part of the round that the plan has entered, capture it, or replay what was captured of it."""
        name = STAGES[part]
        if part in (enter, enter_official, step) and not self.plan.kind.guided:
            name += UNGUIDED
        boxed = self.plan.boxed
        if boxed is not None and part is step:
            name += boxed.unet.mode.value
        if boxed is not None and boxed.decoder is not None and part is decode_frames:
            name += boxed.decoder.mode.value
        stage = self.stages.get(name)
        if stage is None:
            stage = self.stages[name] = Stage(name, partial(part, self.plan), self._capture(part is decode_frames))
        stage()

    def _capture(self, decoding: bool) -> Capture | str:
        if decoding not in self._captures:
            capture = self._timeline.capture(decoding=decoding)
            off = not isinstance(capture, str) and not self._runtime.cuda_graph
            self._captures[decoding] = "switched off" if off else capture
        return self._captures[decoding]

    def _drop_stages(self, component: str) -> None:
        """Free what was captured of a component's work, because the component changes."""
        others = {STAGES[decode_frames]: "vae_decoder", STAGES[encode_frames]: "vae_encoder"}
        self.stages = {n: s for n, s in self.stages.items() if others.get(n.partition(",")[0], "unet") != component}
        self._captures.clear()  # memory pools of their own for what comes

    def _checked(self, component: str, compute: Callable[[], Tensor]) -> Tensor:
        """The output of a component, computed again in higher precision while it is not finite."""
        assert self._batch is not None
        while True:
            output = compute()
            bad = ~output.isfinite().flatten(1).all(1)
            if not bad.any():
                return output
            # Rows of embeddings are prompts, which items share.
            shared = component == "text_encoder"
            self._raise_precision(0, component, torch.ones(len(self._batch.item_ids)) if shared else bad)

    def _raise_precision(self, number: int, component: str, bad: Tensor) -> None:
        assert self._batch is not None
        backend = self.plan.backend
        items = [item for item, flag in zip(self._batch.item_ids, bad.tolist(), strict=True) if flag]
        before = backend.precisions[component]
        self._drop_stages(component)  # so that there is room for the new weights
        if component == "unet":
            self.plan.unbind()
        after = backend.raise_precision(component)
        where = f"round {number}" if number else "preparation"
        what = f"{where} gave values that are not finite in {before} for item {', '.join(items)}"
        if after is None:
            remedy = (
                "check the checkpoint's weights"
                if before == "fp32"
                else f"build the bundle with {use('precision', 'fp32')}"
            )
            raise BackendError(f"{what} ({component}); {remedy}")
        log.warning("%s; %s runs in %s from here on", what, component, after)
        self.reruns.append({"round": number, "component": component, "from": before, "to": after, "items": items})
        self.plan.bind()
        if component == "vae_decoder":
            self.plan.bind_decoder()


def make_timeline(backend: Backend, runtime: RuntimeConfig) -> Timeline:
    """The order of stages on the backend's device."""
    if backend.device.type != "cuda":
        return Timeline()
    # A foreign engine has one stream for all its components, so its decoder cannot run beside its U-Net.
    overlap = runtime.overlap and backend.stream is None
    return CudaTimeline(backend.device, overlap=overlap, stream=backend.stream, obstacle=backend.capture_obstacle)
