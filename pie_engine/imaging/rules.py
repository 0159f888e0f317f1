"""What makes an image useless for a simulation, however it came: one table, whatever reader gave it.

`check_image` looks at an item's image after it was read and windowed, before anything is simulated in it. What a file
may cost is no question of these: see `limits`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError, Notice, argument, mention, use
from pie_engine.imaging.fitting import placement
from pie_engine.imaging.mapping import Lookup, Rescale
from pie_engine.imaging.stored import Stored

log = logging.getLogger(__name__)

# One latent stands for 8 x 8 pixels: less than that is no picture of anything.
MIN_SIDE = 8
# A spine or a whole leg is about 1 : 4; beyond this the square that the model sees is a sliver, or mostly padding.
MAX_ASPECT = 16
# What float32 holds as ordinary numbers. NIfTI stores its slope so, and no scanner's unit needs more.
_FLOAT32 = np.finfo(np.float32)
# How far a resolution may be from the one that the model was trained at, as a factor, before the frames show it.
FAR = 2


@dataclass(frozen=True)
class Subject:
    """What the rules look at.

    Attributes:
        what: the image to the user, for messages.
        stored: as it was read.
        greys: the least and the greatest grey of its picture, 0 to 255, over all channels.
        resolution, how: side of the square, and how the image becomes one; see `fit`.
    """

    what: str
    stored: Stored
    greys: tuple[int, int]
    resolution: int | None
    how: str


@dataclass(frozen=True)
class Rule:
    """One of them.

    Attributes:
        name: of what it looks at, in words.
        limit: what is right, in words.
        refused: whether an image that breaks it is refused; else it is warned of.
        broken: what is wrong and what to do about it, or None.
    """

    name: str
    limit: str
    refused: bool
    broken: Callable[[Subject], str | None]


def _side(subject: Subject) -> str | None:
    width, height = subject.stored.size
    if min(width, height) >= MIN_SIDE:
        return None
    return f"has {width} x {height} pixels (at least {MIN_SIDE} on each side needed); pass the image itself"


def _aspect(subject: Subject) -> str | None:
    width, height = subject.stored.size
    if max(width, height) <= MAX_ASPECT * min(width, height):
        return None
    return f"has {width} x {height} pixels (one side at most {MAX_ASPECT} times the other); crop it"


def _rescale(subject: Subject) -> str | None:
    return broken_rescale(subject.stored.mapping.modality)


def _constant(subject: Subject) -> str | None:
    low, high = subject.greys
    if low != high:
        return None
    windowed = subject.stored.mapping.facts.get("function") not in ("as stored", "upper 8 of 16 bits")
    remedy = f"pass {argument('window_center')} and {argument('window_width')} that show something" if windowed else (
        "pass the image itself"
    )  # fmt: skip
    return f"is one grey ({low} of 255) all over{' as it is windowed' * windowed}; {remedy}"


def _enlarged(subject: Subject) -> str | None:
    if subject.resolution is None:
        return None
    width, height = subject.stored.size
    fitted, _ = placement((width, height), subject.resolution, subject.how)
    factor = max(fitted[0] / width, fitted[1] / height)
    if factor <= 1:
        return None
    return (
        f"has {width} x {height} pixels and is enlarged {factor:.3g} times to {mention('resolution')} "
        f"{subject.resolution}: it holds no detail of that size; pass a larger image"
    )


RULES = (
    Rule("side", f"at least {MIN_SIDE} pixels", True, _side),
    Rule("aspect ratio", f"at most {MAX_ASPECT} : 1", True, _aspect),
    Rule("rescale slope and intercept", "finite, the slope not 0, both within float32", True, _rescale),
    Rule("greys after windowing", "more than one", True, _constant),
    Rule("size", "at least the resolution, else it is enlarged", False, _enlarged),
)


def check_image(stored: Stored, what: str, resolution: int | None = None, how: str = "crop") -> None:
    """Refuse, or warn of, an image that breaks one of the `RULES`.

    Args:
        what: the image to the user, for messages.
        resolution, how: as for `fit`; without a resolution, nothing is enlarged.

    Raises:
        InputError: with what is wrong, the limit and the remedy.
    """
    extrema: Any = stored.picture().convert("RGB" if stored.colour else "L").getextrema()
    channels = extrema if stored.colour else (extrema,)
    constant = all(low == high for low, high in channels)
    least = min(low for low, _ in channels)
    subject = Subject(what, stored, (least, least if constant else max(high for _, high in channels)), resolution, how)
    for rule in RULES:
        said = rule.broken(subject)
        if said is not None and rule.refused:
            raise InputError(f"{what} {said}")
        if said is not None:
            log.warning(Notice("%s " + said.replace("%", "%%")), what)


def broken_rescale(modality: Rescale | Lookup | None) -> str | None:
    """What is wrong with a rescale slope or intercept, or None."""
    if not isinstance(modality, Rescale):
        return None
    slope, intercept = modality.slope, modality.intercept
    small = abs(slope) < _FLOAT32.smallest_normal
    large = any(not math.isfinite(value) or abs(value) > _FLOAT32.max for value in (slope, intercept))
    if not small and not large:
        return None
    return (
        f"has a rescale slope of {slope:g} and an intercept of {intercept:g} (finite, at most {_FLOAT32.max:.2g}, the "
        f"slope at least {_FLOAT32.smallest_normal:.2g} needed); export it anew"
    )


def check_trained_resolution(resolution: int, trained: int) -> None:
    """Warn of a resolution that is far from the one that a model was trained at, in pixels."""
    if max(resolution, trained) > FAR * min(resolution, trained):
        log.warning(
            Notice(
                f"{mention('resolution')} %d is far from the %d that the model was trained at, more than {FAR} times: "
                f"frames fall apart or repeat themselves; pass {use('resolution', trained)}"
            ),
            resolution, trained,
        )  # fmt: skip
