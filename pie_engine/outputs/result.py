"""What one progression gives, and how it is written: whole, or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import OutputConfig
from pie_engine.files import new_folder
from pie_engine.metrics import Change
from pie_engine.outputs.frames import STATEMENT, contact_sheet, png_metadata, save_frames, save_gif

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.items import Item

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Result:
    """One item's simulated progression of N rounds.

    Attributes:
        frames: [N + 1, H, W, 3] uint8; frame 0 is the input, resized and cropped.
        latents: [N, 4, h, w] float32, the final latents of each round.
        original_latent: [4, h, w] float32, the input's latent.
        mask: [H, W] bool, True = may change, or None.
        change: how much each round changed, inside and outside the region of interest.
        config: the settings, with everything that was left open filled in.
        provenance: inputs' hashes, settings, model, versions, backend and timings; JSON.
        item: what was simulated; its image is read again for outputs at the source's own geometry.
        roi: [height, width] bool, `mask` in the source image's own pixels, or None.
    """

    frames: np.ndarray
    latents: np.ndarray
    original_latent: np.ndarray
    mask: np.ndarray | None
    change: Change
    config: RunConfig
    provenance: dict[str, Any] = field(repr=False)
    item: Item | None = field(default=None, repr=False)
    roi: np.ndarray | None = field(default=None, repr=False)

    def save(
        self,
        output: str | Path,
        outputs: OutputConfig | None = None,
        *,
        captions: list[str] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Write frames, animation, contact sheet and provenance into the folder `output`.

        An earlier result in `output` is replaced; a folder that holds anything else is refused.

        Args:
            outputs: what is written beside frames, animation, contact sheet and provenance.
            captions: a label per frame for the contact sheet instead of its number.
            note: added to the contact sheet's first line.

        Returns:
            Paths by name: "output", "frames" (a list), "gif", "sheet", "provenance", with a mask "mask" (the region of
            interest as it was used) and, if asked for, "latents".

        Raises:
            OutputError: the folder cannot be written.
        """
        from PIL import Image

        output, outputs = Path(output), outputs or OutputConfig()
        labels = captions or ["input", *(f"round {n}" for n in range(1, len(self.frames)))]
        with new_folder(output, replaceable=PROVENANCE) as folder:
            frames = save_frames(self.frames, folder / "frames")
            save_gif(self.frames, folder / "progression.gif")
            sheet = contact_sheet(self.frames, labels, self.mask, note=note)
            sheet.save(folder / "sheet.png", pnginfo=png_metadata(simulated=True))
            if self.mask is not None:
                Image.fromarray(self.mask.astype(np.uint8) * 255).save(
                    folder / "mask.png", pnginfo=png_metadata(simulated=False)
                )
            if outputs.latents:
                from safetensors.numpy import save_file

                arrays = {"latents": self.latents, "original_latent": self.original_latent}
                save_file(
                    {name: np.ascontiguousarray(array) for name, array in arrays.items()},
                    folder / "latents.safetensors",
                    metadata={"synthetic": "true", "description": STATEMENT},
                )
            # The list of files is also what lets a later run into the same folder replace this result and nothing else.
            files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            provenance = {**self.provenance, "files": files}
            (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        return {
            "output": str(output),
            "frames": [str(output / "frames" / path.name) for path in frames],
            "gif": str(output / "progression.gif"),
            "sheet": str(output / "sheet.png"),
            **({} if self.mask is None else {"mask": str(output / "mask.png")}),
            "provenance": str(output / PROVENANCE),
            **({"latents": str(output / "latents.safetensors")} if outputs.latents else {}),
        }
