"""A progression that can be written: whole, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.config import OutputConfig
from pie_engine.files import new_folder
from pie_engine.outputs.notebook import strip_html
from pie_engine.outputs.result import Progression
from pie_engine.outputs.write import PROVENANCE, Confidence, check_confidence, check_outputs, write_result


@dataclass(frozen=True, eq=False, repr=False)
class Result(Progression):
    """One item's simulated progression of N rounds: the data of `Progression`, and a folder of it."""

    def _repr_html_(self) -> str:
        """A strip of frames, for notebooks."""
        return strip_html(self)

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
