"""What the operating system refuses, as one line that names the place and the remedy."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from pie_engine.errors import OutputError, PieError

# Libraries in Rust (safetensors, tokenizers) raise exceptions of their own; the system's number stands in their text.
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one clear line about `path`.

    Raises:
        OutputError: not writable, disk full, or another refusal.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(path, error) from error
    except Exception as error:
        told = _IN_TEXT.search(str(error))
        if isinstance(error, PieError) or told is None or int(told[1]) not in _OF_WRITING:
            raise
        raise _refusal(path, OSError(int(told[1]), str(error))) from error


def _refusal(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = "the disk is full", "free some space or write elsewhere"
    elif error.errno == errno.EFBIG:
        reason, remedy = "a file of it is larger than this process may write", "raise the limit (ulimit -f)"
    elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
        reason, remedy = "permission denied", "choose a folder that you may write to"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        reason, remedy = "a file of that name is in the way", "choose another folder"
    elif error.errno == errno.ENAMETOOLONG:
        reason, remedy = "its name is too long", "choose a shorter one"
    else:
        reason, remedy = error.strerror or str(error), "choose another folder"
    return OutputError(f"{path} cannot be written ({reason}); {remedy}")
