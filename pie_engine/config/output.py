"""What of a progression is written, and how."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pie_engine.config.checks import integer
from pie_engine.config.settings import setting, settings
from pie_engine.errors import ConfigError, mention, use

# Pictures between two frames of an animation: a GIF's pictures last 20 ms at least, else browsers slow them down.
MOST_BETWEEN = 14


@settings
class OutputConfig:
    """What is written beside frames, animation, contact sheet, difference maps and provenance.

    Raises:
        ConfigError: options that contradict each other.
    """

    report: bool = setting("report.html, a page that needs nothing else", default=True)
    mp4: bool = setting("progression.mp4 too (needs pie-engine[video])", default=False)
    native_size: bool = setting(
        "frames at the source's full geometry and bit depth too, changed in the region of interest alone",
        default=False,
    )  # fmt: skip
    dicom: bool = setting("a DICOM secondary capture series too, of a new pseudonymous patient", default=False)
    dicom_same_study: bool = setting("keep the DICOM source's patient and study in that series", default=False)
    mark: bool = setting('draw "SIMULATED" into every simulated frame', default=False)
    latents: bool = setting("latents.safetensors too", default=False)

    def __post_init__(self) -> None:
        if self.dicom_same_study and not self.dicom:
            raise ConfigError(
                f"{mention('dicom_same_study')} belongs to a DICOM series, and none is asked for; "
                f"pass {use('dicom', True)} too"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_interpolation(count: int, *, rounds: bool = True) -> None:
    """Refuse a number of pictures that an animation cannot show, or any without rounds. Raises ConfigError."""
    integer("interpolate", count, 0, MOST_BETWEEN, f"pass {use('interpolate', 4)}")
    if count and not rounds:
        name = mention("interpolate")
        raise ConfigError(f"{name} {count} is between rounds, which this method does not have; leave it out")
