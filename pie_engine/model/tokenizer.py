"""A bundle's tokenizer by the `tokenizers` library alone: importing transformers takes longer than a small model runs.

It gives what `transformers.CLIPTokenizer` gives of the same folder, for that is the same library behind a longer call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.checkpoint.json_files import read_object
from pie_engine.checkpoint.tokenizer import check_files, check_ids, damaged, read_tokenizer

# How CLIP marks where a word ends, in its vocabulary.
_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text, as a list, or of several, as a tensor [B, length] int64."""

    input_ids: Any


class Tokenizer:
    """The calls of `transformers.CLIPTokenizer` that a model is run with.

    Args:
        path: a tokenizer.json that transformers 5 or later wrote.
        pad_token: what fills a short text up.
    """

    def __init__(self, path: Path, pad_token: str):
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_file(str(path))
        # A file holds how the texts before it was written were cut and filled up; here a call says so.
        self._backend.no_truncation()
        self._backend.no_padding()
        pad_id = self._backend.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(f"{path.name} has no token {pad_token!r}")
        self._pad_id: int = pad_id

    def __call__(self, text: str | Sequence[str], *, max_length: int | None = None, **_: Any) -> Encoded:
        """Ids with the begin and end tokens.

        Args:
            text: one text, whose ids are whole; or several, cut and filled up to `max_length`.
        """
        if isinstance(text, str):
            return Encoded(self._backend.encode(text).ids)
        import torch

        assert max_length is not None
        return Encoded(torch.tensor([self._fit(self._backend.encode(one).ids, max_length) for one in text]))

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def largest_id(self) -> int:
        return max(self._backend.get_vocab().values(), default=-1)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        decoded: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return decoded.replace(_END_OF_WORD, " ").strip()

    def _fit(self, ids: list[int], length: int) -> list[int]:
        """The end token stays where the text is cut."""
        kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        return kept + [self._pad_id] * (length - len(kept))


def load_tokenizer(folder: Path, *, embeddings: int | None = None) -> Any:
    """The tokenizer of a folder: a `Tokenizer`, or transformers' own where the folder has none of its files.

    Args:
        embeddings: how many tokens the text encoder knows, if that is known.

    Raises:
        CheckpointError, OSError: the folder holds no tokenizer that can be read, or not the text encoder's.
    """
    config = folder / "tokenizer_config.json"
    if not ((folder / "tokenizer.json").is_file() and config.is_file()):
        return read_tokenizer(folder, embeddings=embeddings)
    check_files(folder)
    described = read_object(config)
    if described.get("tokenizer_class") != "CLIPTokenizer" or described.get("backend") != "tokenizers":
        return read_tokenizer(folder, embeddings=embeddings)
    names = [described.get(name) for name in ("bos_token", "eos_token", "pad_token")]
    begin, end, pad = (str(name["content"] if isinstance(name, dict) else name) for name in names)
    try:
        tokenizer = Tokenizer(folder / "tokenizer.json", pad)
        special = [tokenizer.id_of(name) for name in (begin, end, pad)]
        largest = tokenizer.largest_id
    except BaseException as error:
        raise damaged(folder, error) from error
    check_ids(folder, special, largest, embeddings)
    return tokenizer
