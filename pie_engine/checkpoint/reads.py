"""All files that loading a checkpoint reads, or would: while none of them changes, it gives the same."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pie_engine.checkpoint.locate import SD_V1_4, TOKENIZER_IDS, enclosing_pipeline, hub_snapshot, resolve
from pie_engine.checkpoint.spec import LoraSpec
from pie_engine.errors import CheckpointError

_MOST_FILES = 4096
# What is read beside a single file.
_BESIDE = ("model_index.json", "config.json", "scheduler", "tokenizer")
_CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json")


def files_read(base: str | Path | None, unet: str | Path | None, loras: Iterable[LoraSpec]) -> list[Path]:
    """The files that `load_checkpoint` would read with these arguments; of folders, all that is in them.

    Empty: there is no telling, as something is not there, cannot be read, or has thousands of files.
    """
    found: list[Path] = []
    try:
        for root in _roots(base, unet, loras):
            for file in _files(root):
                found.append(file)
                if len(found) > _MOST_FILES:
                    return []
    except (OSError, CheckpointError):
        return []
    return found


def _roots(base: str | Path | None, unet: str | Path | None, loras: Iterable[LoraSpec]) -> Iterator[Path]:
    """Files and folders, as `pie_engine.checkpoint.load` looks for them."""
    if unet is not None:
        path = resolve(unet).path.absolute()
        yield from _with_beside(path)
        around = enclosing_pipeline(path) if base is None else None
        snapshot = hub_snapshot(SD_V1_4) if base is None else None
        yield from (folder for folder in (around, snapshot) if folder is not None)
    if base is not None:
        yield from _with_beside(resolve(base).path.absolute())
    for spec in loras:
        yield spec.path.absolute()


def _with_beside(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir():
        return
    beside = (path.parent / name for name in (*_BESIDE, *_CONFIGS))
    yield from (own for own in beside if own.exists())
    # A single file without a tokenizer beside it takes the hub's.
    yield from filter(None, map(hub_snapshot, TOKENIZER_IDS))


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return
    for folder, _, names in os.walk(root, followlinks=True, onerror=_raise):
        yield from (Path(folder, name) for name in names)


def _raise(error: OSError) -> None:
    raise error
