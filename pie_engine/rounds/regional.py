"""When rounds compute a box alone: where that is what the dense rounds give, and where it pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_engine.errors import ConfigError, mention, use
from pie_engine.regional.layout import decoder_entries, multiply_adds, numbers_by_part, share_of_work, unet_entries
from pie_engine.regional.windows import Box, cover, enlarged, magnified, windows
from pie_engine.rounds.boxed import DECODER_MARGIN
from pie_engine.rounds.memory import free_memory

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.config import RunConfig, RuntimeConfig
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.model.info import ModelInfo
    from pie_engine.rounds.methods import Chosen
    from pie_engine.rounds.truth import Watch

# Latents around the region that its box takes in: with none the worst round is 8 dB worse, with two no better.
MARGIN = 1
# Above it the outside moves with the region, so that what was recorded of it goes stale.
MOST_BETA1 = 0.05
# What a box of a step takes beyond its share of the multiplications, as a share of a whole one: measured at full size
# on a processor (docs/performance.md).
_OVERHEAD = {"onnxruntime": 0.03, "openvino": 0.04}
_USUAL_OVERHEAD = 0.1
# What recording adds to a round.
_RECORDING = 0.08
# Multiply-adds of a whole step below which its time is that of its many layers, however small the box: the demo's has
# 0.1 G, Stable Diffusion v1 at 512 x 512 some 400 G.
_LEAST_WORK = 5e9
# A run has to take less than this of the dense one.
_WORTH = 0.9


@dataclass(frozen=True)
class Regional:
    """What the rounds of a batch compute.

    Attributes:
        boxes: of latents, one for each item and all of one size; None for the whole picture.
        reason: why the whole picture; empty with boxes.
        recording_bytes: what the recording takes, by part; empty without boxes.
    """

    boxes: tuple[Box, ...] | None
    reason: str = ""
    recording_bytes: dict[str, int] = field(default_factory=dict)

    def describe(self, watch: Watch | None, count: int) -> list[dict[str, Any]]:
        """What provenance says of each of `count` items. Args: watch: of the rounds; None without boxes."""
        if self.boxes is None or watch is None:
            return [{"used": False, "reason": self.reason}] * count
        facts = {"used": True, "latents": list(watch.latents), "recording_bytes": sum(self.recording_bytes.values())}
        return [{**facts, "box": box._asdict(), **watch.describe(i)} for i, box in enumerate(self.boxes)]


def choose_boxes(items: Sequence[PreparedItem], chosen: Chosen, backend: Backend, runtime: RuntimeConfig) -> Regional:
    """What the rounds of one batch compute: boxes where all of its items have one of one size."""
    found = [choose_box(item, chosen, backend, runtime) for item in items]
    boxes = [box for box, _ in found if box is not None]
    if len(boxes) < len(items):
        return Regional(None, next(reason for _, reason in found if reason))
    first = boxes[0]
    if any((box.height, box.width) != (first.height, first.width) for box in boxes):
        return Regional(None, "the batch's boxes have several sizes")
    return Regional(tuple(boxes), "", _recording_bytes(items, first, chosen.config, backend.model))


def choose_box(item: PreparedItem, chosen: Chosen, backend: Backend, runtime: RuntimeConfig) -> tuple[Box | None, str]:
    """The box of latents that an item's rounds compute, or None and why they compute the whole picture.

    Raises:
        ConfigError: a box is asked for where none can be computed.
    """
    box, reason = _choose(item, chosen, backend, runtime)
    if reason and runtime.regional == "on":
        raise ConfigError(
            f"{mention('regional')} is on, and {reason}; pass {use('regional', 'auto')}", field="regional", value="on"
        )
    return box, reason


def _choose(item: PreparedItem, chosen: Chosen, backend: Backend, runtime: RuntimeConfig) -> tuple[Box | None, str]:
    reason = _obstacle(chosen, backend, runtime)
    if reason or item.mask is None:
        return None, reason or "there is no region"
    config, latents = chosen.config, item.mask.latent.max(0)
    box = cover(latents > 0, MARGIN, 2 ** (len(backend.model.architecture["unet"]["block_out_channels"]) - 1))
    if runtime.regional == "auto" and (reason := _not_worth(box, latents.shape, config, backend)):
        return None, reason
    needed = sum(_recording_bytes([item], box, config, backend.model).values())
    free = free_memory(backend.device)
    most = None if free is None else free / 2
    if runtime.regional_memory is not None:
        most = runtime.regional_memory * 1e9
    if most is not None and needed > most:
        return None, f"a recording takes {needed / 1e9:.2g} GB, more than {most / 1e9:.2g} GB"
    return box, ""


def _recording_bytes(items: Sequence[PreparedItem], box: Box, config: RunConfig, model: ModelInfo) -> dict[str, int]:
    """What the recording of a batch's round takes, by part, before anything is computed."""
    assert items[0].mask is not None
    kind, architecture = config.rounds[0].kind, model.architecture["unet"]
    rows = len(items) * (len(items[0].prompts) + kind.guided)  # the U-Net's latents
    height, width = items[0].mask.latent.shape[1:]
    at = windows(box, (height, width), len(architecture["block_out_channels"]))
    parts = numbers_by_part(unet_entries(architecture), at, rows)
    parts["prediction"] = 2 * rows * model.latent_channels * height * width  # in single precision
    return {name: 2 * kind.denoising_steps * count for name, count in parts.items()}


def _obstacle(chosen: Chosen, backend: Backend, runtime: RuntimeConfig) -> str:
    """Why no box of any item can be computed alone, or an empty string."""
    config = chosen.config
    if runtime.regional == "off":
        return "switched off"
    if chosen.frames is not None:
        return "only PIE's rounds repeat"
    if config.semantics == "official":
        return "the published code draws the outside anew in every round"
    if config.inversion != "noise":
        return "an inversion does not hold the outside, so that what was recorded of it goes stale"
    if config.noise != "shared":
        return "fresh noise changes the outside in every round"
    if config.beta1 > MOST_BETA1:
        return f"beta1 {config.beta1:g} moves the outside with the region (at most {MOST_BETA1:g})"
    if config.steps < 2:
        return "there is one round"
    if len({(one.kind, one.prompt) for one in config.rounds}) > 1:
        return "the schedule's rounds run other steps"
    return getattr(backend, "regional_obstacle", "the backend computes whole pictures")


def _not_worth(box: Box, latents: tuple[int, int], config: RunConfig, backend: Backend) -> str:
    """Why a box would not pay, or an empty string."""
    unet = backend.model.architecture["unet"]
    if multiply_adds(unet_entries(unet), windows(box, latents, len(unet["block_out_channels"]))) < _LEAST_WORK:
        return "a network of so few multiplications gains nothing by a box"
    taken = _taken(box, latents, config, backend)
    area = box.height * box.width / (latents[0] * latents[1])
    return f"a box of {area:.0%} of the picture would take {taken:.0%} of the time" if taken > _WORTH else ""


def _taken(box: Box, latents: tuple[int, int], config: RunConfig, backend: Backend) -> float:
    """A run's time with boxes, as a share of the dense one: two rounds recorded, two steps of two more checked."""
    unet, vae = backend.model.architecture["unet"], backend.model.architecture["vae"]
    entries, at = unet_entries(unet), windows(box, latents, len(unet["block_out_channels"]))
    overhead = _OVERHEAD.get(backend.name, _USUAL_OVERHEAD)
    step = min(1.0, share_of_work(entries, at) + overhead)
    at = magnified(enlarged(box, DECODER_MARGIN, latents), latents, len(vae["block_out_channels"]))
    picture = min(1.0, share_of_work(decoder_entries(vae), at) + overhead)
    # A decoded picture takes as long as one step and a half of Stable Diffusion v1, guided.
    rounds, steps, decoding = config.steps, config.rounds[0].kind.denoising_steps, 1.5
    whole, recorded = steps + decoding, min(2, rounds)
    inside = (rounds - recorded) * (steps * step + decoding * picture) + 2 * min(2, rounds - recorded)
    return (recorded * whole * (1 + _RECORDING) + inside) / (rounds * whole)
