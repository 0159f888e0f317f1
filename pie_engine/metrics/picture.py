"""How a model wants its pictures: declared in JSON, applied to frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from pie_engine.checkpoint.json_files import read_object
from pie_engine.config.checks import integer, number, one_of
from pie_engine.errors import ConfigError, InputError, PieError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LARGEST = 8192
_KEYS = ("size", "channels", "range", "mean", "std", "layout", "grey")


@dataclass(frozen=True)
class PictureSpec:
    """Frames to a model's input.

    Attributes:
        size: (height, width) in pixels; frames of another size are resized, bilinear, without regard to their aspect
            ratio (frames of a run are squares).
        channels: 3 for colour as it is, 1 for greys.
        range: what black (0) and white (255) become, before mean and std.
        mean, std: per channel; a value v becomes (v - mean) / std.
        layout: "NCHW" or "NHWC".
        grey: how colour becomes one channel: "luma" (ITU-R BT.601) or "mean" of the three.
    """

    size: tuple[int, int]
    channels: int
    range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "NCHW"
    grey: str = "luma"

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> PictureSpec:
        """Validate a JSON object's "size", "channels", "range", "mean" and "std"; "layout" and "grey" may be left out.

        Raises:
            ConfigError: a key is missing, or its value is out of range.
        """
        for key in _KEYS[:5]:
            if key not in values:
                raise ConfigError(f"{key!r} is missing; declare it ({', '.join(_KEYS[:5])} are needed)")
        size = values["size"] if isinstance(values["size"], list) else [values["size"]] * 2
        if len(size) != 2:
            raise ConfigError(f"size {size} has {len(size)} numbers; pass one, or [height, width]")
        for side in size:
            integer("size", side, 1, _LARGEST, "pass the model's input size in pixels")
        channels = values["channels"]
        integer("channels", channels, 1, 3, "pass 1 or 3")
        if channels == 2:
            raise ConfigError("channels 2 is unknown; pass 1 or 3")
        ends = _numbers("range", values["range"], 2, "pass what 0 and 255 become, such as [0, 1]")
        if ends[0] == ends[1]:
            raise ConfigError(f"range {list(ends)} makes every pixel the same; pass what 0 and 255 become")
        mean = _numbers("mean", values["mean"], channels, "pass one number, or one per channel")
        std = _numbers("std", values["std"], channels, "pass one number, or one per channel")
        if min(std) <= 0:
            raise ConfigError(f"std {min(std):g} is not above 0; pass the standard deviation that the model divides by")
        layout, grey = values.get("layout", "NCHW"), values.get("grey", "luma")
        one_of("layout", layout, ("NCHW", "NHWC"))
        one_of("grey", grey, ("luma", "mean"))
        return cls((size[0], size[1]), channels, (ends[0], ends[1]), mean, std, layout, grey)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """[N, H, W, 3] uint8 to the model's input, float32 [N, C, height, width] or [N, height, width, C].

        Raises:
            InputError: another shape or dtype.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise InputError(f"expected uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}; convert it first")
        values: np.ndarray = self._resize(images).astype(np.float32)
        if self.channels == 1:
            weights = np.array(_LUMA if self.grey == "luma" else (1 / 3,) * 3, np.float32)
            values = (values @ weights)[..., None]
        low, high = self.range
        values = np.float32(low) + np.float32((high - low) / 255) * values
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values, np.float32)

    def _resize(self, images: np.ndarray) -> np.ndarray:
        height, width = self.size
        if images.shape[1:3] == (height, width):
            return images
        return np.stack(
            [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in images]
        )


def read_declaration(path: Path, kind: str, own_keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object that declares a model, with no key but a picture's and `own_keys`.

    Args:
        kind: what it declares, for messages.

    Raises:
        ConfigError: the file is missing, no JSON object, or holds another key.
    """
    remedy = f"pass the JSON file that declares a {kind} (docs/evaluation.md)"
    try:
        values = read_object(path)
    except OSError as error:
        raise ConfigError(f"{kind} {path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"{kind} {path} is not a JSON object ({error}); {remedy}") from error
    known = {*own_keys, *_KEYS}
    for key in values:
        if key not in known:
            raise ConfigError(f"{kind} {path}: {key!r} is unknown; pass one of {', '.join(sorted(known))}")
    return values


@contextlib.contextmanager
def naming(kind: str, path: Path) -> Iterator[None]:
    """Begin the line of an error with the declaration that it comes from."""
    try:
        yield
    except PieError as error:
        raise error.within(f"{kind} {path}") from error


def check_texts(values: Mapping[str, Any]) -> None:
    """Refuse a "file" that is missing, and a "file", "name" or "tensor" that is no text. Raises ConfigError."""
    if "file" not in values:
        raise ConfigError("'file' is missing; declare it")
    for key in ("file", "name", "tensor"):
        if key in values and not (isinstance(values[key], str) and values[key]):
            raise ConfigError(f"{key} {values[key]!r} is not text; pass a name")


def _numbers(name: str, value: Any, count: int, remedy: str) -> tuple[float, ...]:
    """`count` finite numbers; a single one stands for all of them, but for a range."""
    numbers = value if isinstance(value, list) else [value] * (count if name != "range" else 1)
    if len(numbers) != count:
        raise ConfigError(f"{name} {value} has {len(numbers)} numbers and not {count}; {remedy}")
    for one in numbers:
        number(name, one, -1e9, 1e9, remedy)
    return tuple(float(one) for one in numbers)


class Named(Protocol):
    """What a table has a column of."""

    name: str


_Named = TypeVar("_Named", bound=Named)


def distinct(ones: list[_Named], kind: str) -> list[_Named]:
    """The same list, if all names differ; `kind` is what they are to the user.

    Raises:
        ConfigError: two have the same name.
    """
    seen: set[str] = set()
    for one in ones:
        if one.name in seen:
            raise ConfigError(f'two {kind} are named {one.name!r}; give one another "name" in its JSON file')
        seen.add(one.name)
    return ones
