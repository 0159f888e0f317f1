"""The engine as users of diffusers' pipelines call one: `engine(prompt=..., image=..., mask_image=...)`.

Everything here is spelling: an `Item` for each image, a `RunConfig`, and `PieEngine.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.config import Placement, RunConfig
from pie_engine.errors import ConfigError, InputError, mention
from pie_engine.imaging.item import Item
from pie_engine.model.bundle import MANIFEST

if TYPE_CHECKING:
    from pie_engine.imaging.regions.region import Regions
    from pie_engine.outputs import Result

OUTPUT_TYPES = ("pil", "np", "pt")
# Called with (engine, evaluations done, of all, an empty mapping) after each U-Net evaluation.
OnStepEnd = Callable[[Any, int, int, dict[str, Any]], Any]


@dataclass(frozen=True)
class PieOutput:
    """What a call gives, one entry per item.

    Attributes:
        frames: N + 1 pictures of each item, the input first: PIL images, [N + 1, H, W, 3] uint8, or
            [N + 1, 3, H, W] float32 in [0, 1], as `output_type` asked.
        results: everything that is known of each.
    """

    frames: list[Any]
    results: list[Result]

    @property
    def latents(self) -> np.ndarray:
        """[items, N, 4, h, w] float32."""
        return np.stack([result.latents for result in self.results])

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """How each came to be, JSON."""
        return [result.provenance for result in self.results]

    def save(self, output: str | Path) -> list[dict[str, Any]]:
        """Write each item's result; several go into folders of their own, by their numbers. See `Result.save`."""
        folder = Path(output)
        places = [folder] if len(self.results) == 1 else [folder / f"{i:03d}" for i in range(len(self.results))]
        return [result.save(place) for result, place in zip(self.results, places, strict=True)]


def make_config(
    settings: Mapping[str, Any],
    *,
    steps: int | None,
    num_rounds: int | None,
    seed: int | None,
    generator: torch.Generator | None,
) -> RunConfig:
    """The settings of a call; those that are None are left open. Raises ConfigError: one is given by both its names."""
    for one, other, first, second in (
        (steps, num_rounds, "steps", "num_rounds"), (seed, generator, "seed", "generator"),
    ):  # fmt: skip
        if one is not None and other is not None:
            raise ConfigError(f"{mention(first)} and {mention(second)} say the same; pass one of them")
    rounds = steps if num_rounds is None else num_rounds
    drawn = seed if generator is None else int(generator.initial_seed()) & (2**63 - 1)
    given = {"steps": rounds, "seed": drawn, **settings}
    return RunConfig(**{name: value for name, value in given.items() if value is not None})


def place(placement: Placement | None, settings: Mapping[str, Any]) -> Placement:
    """A placement with some of its fields changed. Raises ConfigError: there is no such field, or see `Placement`."""
    return replace(placement or Placement(), **{name: value for name, value in settings.items() if value is not None})


def check_output_type(output_type: str) -> None:
    """Raises ConfigError: it is none of `OUTPUT_TYPES`."""
    if output_type not in OUTPUT_TYPES:
        limit = ", ".join(OUTPUT_TYPES)
        raise ConfigError(f"output_type {output_type!r} is unknown; pass one of {limit}")


def make_items(prompt: str | Sequence[str], image: Any, mask_image: Any) -> list[Item]:
    """One item for each image; a prompt or a mask by itself holds for all of them.

    Raises:
        ConfigError: lists of different lengths.
        InputError: a tensor is no picture.
    """
    images = image if isinstance(image, list | tuple) else [image]
    prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
    masks = list(mask_image) if isinstance(mask_image, list | tuple) else [mask_image] * len(images)
    for name, found in (("prompt", prompts), ("mask_image", masks)):
        if len(found) != len(images):
            raise ConfigError(
                f"{mention(name)} has {len(found)} entries for {len(images)} images; pass one for each, or one for all"
            )
    # Names of their own, so that patients do not share their noise.
    return [
        Item(from_tensor(picture), text, _region(mask), item_id=str(number))
        for number, (picture, text, mask) in enumerate(zip(images, prompts, masks, strict=True))
    ]


def from_tensor(picture: Any) -> Any:
    """A tensor [3, H, W], [1, 3, H, W] or [H, W, 3], of uint8 or float in [0, 1], as an array; others as they are."""
    if not isinstance(picture, torch.Tensor):
        return picture
    found = picture.detach().cpu()
    if found.dim() == 4 and len(found) == 1:
        found = found[0]
    if found.dim() == 3 and found.shape[0] in (1, 3):
        found = found.permute(1, 2, 0)
    if found.is_floating_point():
        low, high = (float(found.min()), float(found.max())) if found.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # also refuses what is not a number
            raise InputError(f"image tensor holds values from {low:g} to {high:g}; scale it to [0, 1]")
        found = found.mul(255).round().to(torch.uint8)
    return found.squeeze(-1).numpy() if found.dim() == 3 and found.shape[-1] == 1 else found.numpy()


def convert(frames: np.ndarray, output_type: str) -> Any:
    """Frames [N + 1, H, W, 3] uint8 as `output_type` says."""
    if output_type == "np":
        return frames
    if output_type == "pt":
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    from PIL import Image as PILImage

    return [PILImage.fromarray(frame) for frame in frames]


def is_bundle(path: str | Path) -> bool:
    """Whether this is a folder that `pie-engine build` wrote."""
    return (Path(path) / MANIFEST).is_file()


def dtype_name(dtype: torch.dtype | str) -> str:
    """torch.float16 as "fp16". Raises ConfigError: another one."""
    if isinstance(dtype, str):
        return dtype
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    if dtype not in names:
        raise ConfigError(f"torch_dtype {dtype} is unknown; pass torch_dtype=torch.float16")
    return names[dtype]


def _region(mask: Any) -> Regions:
    return None if mask is None else from_tensor(mask)
