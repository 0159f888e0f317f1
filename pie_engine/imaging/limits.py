"""What every reader of images holds to."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# About 13,000 x 13,000, Pillow's own limit; whole-slide images belong in a tiler, and a decompression bomb nowhere.
MAX_PIXELS = 178_956_970


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence libraries whose warnings quote the values of headers, which may identify a patient."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    try:
        for logger in found:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)
