"""What the host does with a round's frames, beside the model that computes the next ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pie_engine.imaging.compositing import composite
from pie_engine.metrics import ChangeMeter

if TYPE_CHECKING:
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.metrics import Change
    from pie_engine.rounds.loop import Round


class Frames:
    """One item's frames, composited and measured as they come.

    Args:
        item: as prepared, with its mask.
        composited: whether pixels outside the region are taken from the input.
        original_latent: [4, h, w].
        decoded_original: [H, W, 3] uint8, or None where leakage is not measured.
        untouched: frames are the input's own pixels, which have not been through the autoencoder.
    """

    def __init__(
        self,
        item: PreparedItem,
        composited: bool,
        original_latent: np.ndarray,
        decoded_original: np.ndarray | None,
        *,
        untouched: bool = False,
    ):
        self.item, self._composited = item, composited
        self._untouched, self._decoded_original = untouched, decoded_original
        self._input = np.asarray(item.image)
        mask = item.mask
        latent_mask, pixels = (None, None) if mask is None else (mask.latent, mask.pixels)
        self._meter = ChangeMeter(original_latent, decoded_original, self._input, latent_mask, pixels)
        self._frames: list[np.ndarray] = [self._input]
        self._latents: list[np.ndarray] = []

    def add(self, latent: np.ndarray, decoded: np.ndarray) -> None:
        """The next round's latent [4, h, w] and its frame [H, W, 3] uint8, as decoded."""
        frame = self._input if self._untouched else self.finish(decoded[None])[0]
        if self._untouched and self._decoded_original is not None:
            decoded = self._decoded_original  # nothing leaked
        self._meter.add(latent, decoded, frame)
        self._frames.append(frame)
        self._latents.append(latent)

    def finish(self, decoded: np.ndarray) -> np.ndarray:
        """Frames [..., H, W, 3] uint8 as they are written."""
        if not self._composited:
            return decoded
        return composite(decoded, self._input, self.item.mask, self.item.content_box)

    @property
    def rounds(self) -> int:
        """How many there are so far."""
        return len(self._latents)

    @property
    def frames(self) -> np.ndarray:
        """[N + 1, H, W, 3] uint8, the input first."""
        return np.stack(self._frames)

    @property
    def latents(self) -> np.ndarray:
        """[N, 4, h, w] float32."""
        return np.stack(self._latents)

    @property
    def change(self) -> Change:
        return self._meter.change


class Finishing:
    """A thread that adds rounds to the frames of a batch's items, in order, while the next round is computed."""

    def __init__(self, items: Sequence[Frames], host: ThreadPoolExecutor):
        self._items, self._host = items, host
        self._pending: list[Future[None]] = []

    def add(self, result: Round) -> None:
        """The next round of all items."""
        self._pending.append(self._host.submit(self._add, result.latents.numpy(), result.frames.numpy()))

    def wait(self) -> None:
        """Until everything has been added. Raises what adding raised."""
        for future in self._pending:
            future.result()

    def _add(self, latents: np.ndarray, decoded: np.ndarray) -> None:
        for item, latent, frame in zip(self._items, latents, decoded, strict=True):
            item.add(latent, frame)


@contextmanager
def finishing(items: Sequence[Frames]) -> Iterator[Finishing]:
    """A thread for the items' frames; at the end all of them are there."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pie-engine-frames") as host:
        work = Finishing(items, host)
        yield work
        work.wait()
