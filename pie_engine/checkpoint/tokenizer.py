"""The CLIP tokenizer of a folder, whoever wrote it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# CLIP's own has three megabytes in all.
MAX_BYTES = 64 << 20


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an exception's text, shortened: messages here are one line."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer's files, or with too large ones. Raises CheckpointError, OSError."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder / name} is missing; a tokenizer is vocab.json and merges.txt: copy them there"
                )
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if size > MAX_BYTES:
        raise CheckpointError(
            f"tokenizer {folder} has {size} bytes, at most {MAX_BYTES} are read; copy or download it again"
        )


def check_ids(folder: Path, special: Collection[int | None], largest: int, embeddings: int | None) -> None:
    """Refuse a tokenizer without the tokens that a prompt needs, or with ids that its text encoder does not know.

    Raises:
        CheckpointError: one of these.
    """
    if None in special or largest < 0:
        raise CheckpointError(
            f"tokenizer {folder} has no tokens that begin, end and fill a prompt; copy or download it again"
        )
    if embeddings is not None and largest >= embeddings:
        raise CheckpointError(
            f"tokenizer {folder} has token id {largest} but the text encoder has {embeddings} embeddings; pass the "
            "tokenizer that the text encoder was trained with"
        )


def damaged(folder: Path, error: BaseException) -> CheckpointError:
    """What is said of a tokenizer that a library could not read. Raises what is none of its errors."""
    # transformers and tokenizers raise many types, and a panic, which is no Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return CheckpointError(f"tokenizer {folder} cannot be read ({one_line(error)}); copy or download it again")


def read_tokenizer(folder: Path, *, embeddings: int | None = None) -> CLIPTokenizer:
    """The tokenizer that a folder holds.

    Args:
        embeddings: how many tokens the text encoder knows, if that is known.

    Raises:
        CheckpointError: files are missing, too large or damaged, or hold a token that the text encoder does not know.
        OSError: they cannot be read.
    """
    from transformers import CLIPTokenizer  # optional: what runs graphs alone imports it late

    check_files(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    except OSError:
        raise
    except BaseException as error:
        raise damaged(folder, error) from error
    check_ids(folder, special, largest, embeddings)
    return tokenizer
