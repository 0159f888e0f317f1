"""An output file: written under a hidden name, then put in its place, which an earlier one may have."""

from __future__ import annotations

import os
from pathlib import Path

from pie_engine.errors import OutputError
from pie_engine.files.refusals import writing
from pie_engine.files.temporary import temporary_name


def check_file(path: Path, *, suffix: str) -> None:
    """Refuse a name that `write_file` could not write, before any work is done.

    Args:
        suffix: such as ".json"; a slip of the tongue must not replace a file of another kind.

    Raises:
        OutputError: another suffix, a folder, or a place that cannot be written.
    """
    if path.suffix != suffix:
        raise OutputError(f"{path} does not end in {suffix}; pass another name")
    with writing(path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; pass the name of a file")
        if not path.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written (there is no folder {path.parent}); make it, or write elsewhere"
            )
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8), or leave what was there.

    Raises:
        OutputError: it cannot be written.
    """
    with writing(path), temporary_name(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
