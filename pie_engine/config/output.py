"""What of a progression is written, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pie_engine.config.checks import integer
from pie_engine.errors import ConfigError

# Pictures between two frames of an animation: a GIF's pictures last 20 ms at least, else browsers slow them down.
MOST_BETWEEN = 14


@dataclass(frozen=True)
class OutputConfig:
    """What is written beside frames, animation, contact sheet, difference maps and provenance.

    Attributes:
        report: report.html, a page that needs nothing else.
        mp4: progression.mp4.
        native_size: every frame at the source's full geometry and bit depth, with only the region of interest changed.
        dicom: a DICOM secondary capture series.
        dicom_same_study: keep the source's patient and study in it, instead of new identifiers.
        mark: draw "SIMULATED" into every frame that is one.
        latents: latents.safetensors.

    Raises:
        ConfigError: options that contradict each other.
    """

    report: bool = True
    mp4: bool = False
    native_size: bool = False
    dicom: bool = False
    dicom_same_study: bool = False
    mark: bool = False
    latents: bool = False

    def __post_init__(self) -> None:
        if self.dicom_same_study and not self.dicom:
            raise ConfigError("dicom-same-study belongs to a DICOM series, and none is asked for; pass --dicom too")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_interpolation(count: int, *, rounds: bool = True) -> None:
    """Refuse a number of pictures that an animation cannot show, or any without rounds. Raises ConfigError."""
    integer("interpolate", count, 0, MOST_BETWEEN, "pass --interpolate 4")
    if count and not rounds:
        raise ConfigError(f"interpolate {count} is between rounds, which this method has not; leave out --interpolate")
