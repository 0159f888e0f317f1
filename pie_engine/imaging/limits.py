"""What a file may cost, said before it is paid: sizes that are checked while nothing is decoded yet.

Every limit stands well above what clinics make, and low enough that reading one image stays below about one GB.
"""

from __future__ import annotations

import contextlib
import logging
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

from pie_engine.errors import InputError

# 8,192 x 8,192. A mammogram has up to 28 million, a camera's picture 50; whole slides belong in a tiler. Reading as
# many in colour takes about one GB.
MAX_PIXELS = 2**26
# Bytes of a deflated DICOM data set once inflated; it is held twice. Few objects but reports are ever deflated.
MAX_INFLATED = 2**28
# Bytes of a DICOM file, which is read whole: no native pixel data can be longer.
MAX_DICOM_FILE = 2**32
# Frames that a DICOM file may claim to have; each costs a look at its functional groups.
MAX_FRAMES = 100_000
# Bytes of a gzipped NIfTI file once unpacked. Without gzip, only the slice is read.
MAX_UNPACKED = 2**30
# Bytes before the first voxel of a NIfTI file: headers and their extensions, which are read whole and hold text.
MAX_NIFTI_HEADER = 2**24
# Pages of one file: to know how many there are, each one's directory is read.
MAX_PAGES = 4096
# Pixels of all the pictures of an animation before and with the chosen one: each is painted over the one before.
MAX_ANIMATED_PIXELS = 2**30
# Scans of a progressive JPEG file: each goes over the whole picture. Encoders make about ten.
MAX_SCANS = 500


def check_regular(path: Path, kind: str, remedy: str) -> None:
    """Refuse pipes, sockets, devices and folders, without opening them: a pipe would wait for its writer.

    What does not exist or may not be looked at is left to the reader.

    Args:
        kind: what it is to the user, for the message: "image" or "mask".
        remedy: what to pass instead.

    Raises:
        InputError: no regular file.
    """
    called = file_type(path)
    if called not in (None, "file"):
        raise InputError(f"{kind} {path} is a {called}; {remedy}")


def file_type(path: Path) -> str | None:
    """ "file", "folder", "pipe", "socket" or "device"; None for what is none or cannot be looked at."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    tests = (("file", stat.S_ISREG), ("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK))
    return next((name for name, test in tests if test(mode)), "device")


def check_size(width: int, height: int, what: str, each: str = "") -> None:
    """Refuse more than `MAX_PIXELS`.

    Args:
        each: what has so many of them, where it is not the whole file: "frame", "slice".

    Raises:
        InputError: larger.
    """
    if width * height > MAX_PIXELS:
        where = f"{each}s of {width} x {height}" if each else f"{width} x {height}"
        raise InputError(f"{what} has {where}, more than {MAX_PIXELS} pixels; crop or shrink it")


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence libraries whose warnings quote the values of headers, which may identify a patient."""
    silenced = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in silenced]
    try:
        for logger in silenced:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(silenced, levels, strict=True):
            logger.setLevel(level)
