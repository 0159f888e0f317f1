"""What one progression gives, and how it is written: whole, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import OutputConfig
from pie_engine.equality import ByContent
from pie_engine.files import new_folder
from pie_engine.metrics import Change
from pie_engine.outputs.write import PROVENANCE, Confidence, check_confidence, check_outputs, write_result

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.imaging import ImageSource


@dataclass(frozen=True, eq=False)
class Result(ByContent):
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
        what = self.provenance.get("simulated", {}).get("prompt", "")
        return (
            f"Result({rounds} rounds of {height} x {width} towards {what!r}, item {self.provenance.get('item_id')!r})"
        )

    def _repr_html_(self) -> str:
        """The frames in a row, for notebooks."""
        import base64
        import io
        from html import escape

        from PIL import Image

        row = Image.fromarray(np.concatenate(list(self.frames), axis=1))
        row.thumbnail((1600, 1600))
        stream = io.BytesIO()
        row.save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        return (
            f'<figure><img src="data:image/png;base64,{picture}"><figcaption>{escape(repr(self))}</figcaption></figure>'
        )

    def save(
        self,
        output: str | Path,
        outputs: OutputConfig | None = None,
        *,
        captions: list[str] | None = None,
        note: str = "",
        confidence: Confidence | None = None,
    ) -> dict[str, Any]:
        """Write frames, animation, contact sheet, difference maps, report and provenance into the folder `output`.

        An earlier result in `output` is replaced; a folder that holds anything else is refused.

        Args:
            outputs: what is written, and what is not.
            captions: a label per frame for the contact sheet instead of its number.
            note: added to the contact sheet's first line.
            confidence: a classifier's confidence in [0, 1], one value per frame, the input's first, or several such
                lists by the classifiers' names; shown in the report and kept in provenance.

        Returns:
            Paths by name: "output", "frames" (a list), "gif", "sheet", "differences", "provenance", with a mask "mask"
            (the region of interest as it was used) and, if asked for, "report", "mp4", "latents", "native" and "dicom"
            (lists).

        Raises:
            OutputError: the folder cannot be written, or a package that writes a format is missing.
            ConfigError: `confidence` does not fit the frames; or, as InputError, see `check_source`.
        """
        output, outputs = Path(output), outputs or OutputConfig()
        check_outputs(outputs)
        per_frame = check_confidence(confidence, len(self.frames))
        with new_folder(output, replaceable=PROVENANCE) as folder:
            written = write_result(self, folder, outputs, captions=captions, note=note, confidence=per_frame)

        def final(path: Any) -> Any:
            return [final(p) for p in path] if isinstance(path, list) else str(output / path.relative_to(folder))

        return {"output": str(output), **{name: final(path) for name, path in written.items()}}
