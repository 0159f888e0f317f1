"""What one progression gives: plain data, which knows nothing of how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.equality import ByContent
from pie_engine.metrics import Change

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.imaging import ImageSource

_LONGEST_PROMPT = 80  # characters that a result's one line shows of it


@dataclass(frozen=True, eq=False)
class Progression(ByContent):
    """One item's simulated progression of N rounds.

    Attributes:
        frames: [N + 1, H, W, 3] uint8; frame 0 is the input, resized and cropped.
        latents: [N, 4, h, w] float32, the final latents of each round.
        original_latent: [4, h, w] float32, the input's latent.
        mask: [H, W] bool, True = may change, or None.
        change: how much each round changed, inside and outside the region of interest.
        config: the settings, with everything that was left open filled in.
        provenance: inputs' hashes, settings, model, versions, backend and timings; JSON.
        source: the image as it was given; it is read again for native frames and DICOM series.
        roi: [height, width] bool, `mask` in the source image's own pixels, or None.
        between: [N, K, H, W, 3] uint8, K pictures between each frame and the one before, for the animation; or None.
    """

    frames: np.ndarray
    latents: np.ndarray
    original_latent: np.ndarray
    mask: np.ndarray | None
    change: Change
    config: RunConfig
    provenance: dict[str, Any] = field(repr=False)
    source: ImageSource | None = field(default=None, repr=False)
    roi: np.ndarray | None = field(default=None, repr=False)
    between: np.ndarray | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        rounds, height, width = len(self.latents), *self.frames.shape[1:3]
        prompt = shorten(
            str(self.provenance.get("simulated", {}).get("prompt", "")), _LONGEST_PROMPT, placeholder=" ..."
        )
        item = self.provenance.get("item_id")
        return f"{type(self).__name__}({rounds} rounds of {height} x {width} towards {prompt!r}, item {item!r})"
