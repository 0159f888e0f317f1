"""JSON that strangers wrote: read within bounds of size and depth, before anything is made of it."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from pie_engine.errors import CheckpointError

MB = 1 << 20
# A component's config has 2 kB; the index of a sharded model 100 kB; a manifest 20 kB.
MAX_BYTES = 16 * MB
# Configs nest three levels deep, manifests six.
MAX_DEPTH = 64
# A string, whole, so that brackets within it do not count; possessive, so that time grows with the length alone.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def parse_object(text: str | bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is larger or nested deeper than any that is needed, no JSON, or no object. One line says why.
    """
    if len(text) > max_bytes:
        raise ValueError(f"{len(text)} bytes, at most {max_bytes} are read")
    text = text.decode() if isinstance(text, bytes) else text
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def read_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file; and see `parse_object`.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(21, "Is a directory", str(path))
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for whoever writes to it
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        return parse_object(file.read(max_bytes + 1), max_bytes=max_bytes)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        CheckpointError: the file is missing, too large or too deep, or holds anything else.
    """
    try:
        return read_object(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; complete the folder it belongs to") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy or download it again") from None
