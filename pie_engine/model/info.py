"""What the engine must know about a model, wherever its weights run: read from a checkpoint or from a bundle."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_engine.errors import quoted

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
# A tokenizer keeps how it cuts and pads from call to call, and engines of one checkpoint share it: two threads at once
# would read one another's prompts uncut and unpadded.
_tokenizing = threading.Lock()


@dataclass(frozen=True)
class ModelInfo:
    """Facts about one Stable-Diffusion-v1.x-shaped model.

    Attributes:
        scheduler_config: the checkpoint's scheduler_config.json.
        scaling_factor: latent = scaling_factor * VAE mean.
        latent_channels: 4 for Stable Diffusion.
        text_width: D, the width of a prompt embedding.
        max_tokens: prompt length with the begin and end tokens, 77 for CLIP.
        vae_scale: pixels per latent along one side, 8.
        resolution_multiple: sides must be multiples of this many pixels, 8 * 2**(U-Net levels - 1).
        default_resolution: the side that the U-Net was configured for, in pixels.
        hashes: SHA-256 of each component's weights and settings.
        tokenizer: a `transformers.CLIPTokenizer`, or a `pie_engine.model.tokenizer.Tokenizer`.
        architecture: the configurations of "unet", "vae" and "text_encoder"; bundles of earlier versions lack some.
    """

    scheduler_config: dict[str, Any]
    scaling_factor: float
    latent_channels: int
    text_width: int
    max_tokens: int
    vae_scale: int
    resolution_multiple: int
    default_resolution: int
    hashes: dict[str, str]
    tokenizer: Any = field(repr=False, compare=False)
    architecture: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids [B, max_tokens] int64; a longer prompt is cut, as the published code does, with a warning."""
        for prompt in prompts:
            cut = self.cut_off(prompt)
            if cut:
                log.warning(
                    "prompt is longer than %d tokens and was cut; not read: %s; shorten it",
                    self.max_tokens,
                    quoted(cut),
                )
        with _tokenizing:
            encoded = self.tokenizer(
                prompts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
            )
        return encoded.input_ids

    def cut_off(self, prompt: str) -> str:
        """The end of `prompt` that does not fit `max_tokens`, or an empty string."""
        return read_length(self.tokenizer, prompt, self.max_tokens)[1]


def read_length(tokenizer: Any, text: str, limit: int) -> tuple[int, str]:
    """Tokens that `text` needs, begin and end included, and the end of it that `limit` cuts off: empty if it fits.

    Args:
        tokenizer: as in `ModelInfo`.
    """
    with _tokenizing:
        ids = tokenizer(text, truncation=False, verbose=False).input_ids
        cut = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True).strip() if len(ids) > limit else ""
    return len(ids), cut
