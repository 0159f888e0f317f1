"""A bundle's tokenizer gives the ids that transformers gives, without transformers."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

import pie_engine.demo
from pie_engine.bundling.assemble import save_tokenizer
from pie_engine.errors import CheckpointError
from pie_engine.model.bundle import Bundle, open_bundle
from pie_engine.model.info import ModelInfo, read_length
from pie_engine.model.tokenizer import Tokenizer, load_tokenizer

DEMO = Path(pie_engine.demo.__file__).parent / "checkpoint" / "tokenizer"
TEXTS = [
    "", " ", "heart", "Severe cardiomegaly. The heart is markedly enlarged.", "UPPER lower MiXed", "it's they've I'll",
    "x" * 500, "heart " * 100, "a\n\t b\r\n  c", "1234567890 3.5mm 10%", "<|startoftext|> in the <|endoftext|> text",
    "</w> word</w>", "Kardiomegalie, Herzvergrößerung", "心臓肥大", "кардиомегалия", "تضخم القلب", "❤️🫀",
    "e\u0301 é",
    "ﬁ ½ Ⅳ", "\u200b\u00a0\u2028\ufeff", "\x00\x01\x1b[31m", "\u0130I \u0131i ß ẞ", "\U0010ffff\ue000",
    "-" * 200, "...!!!???",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """Texts of characters of all planes, and of words, of lengths around the limit of 77 tokens."""
    draw = random.Random(0)
    ranges = [(32, 126), (0x80, 0x24F), (0x370, 0x5FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0xD7FF)]
    texts = []
    for _ in range(count):
        low, high = draw.choice(ranges)
        texts.append("".join(chr(draw.randint(low, high)) for _ in range(draw.randint(0, 120))))
        texts.append(" ".join(draw.choice(["heart", "lung", "enlarged", "a"]) for _ in range(draw.randint(60, 90))))
    return texts


def folders(bundle: Bundle, tmp_path: Path) -> list[Path]:
    """The golden bundle's tokenizer, and the demo's as a build writes it."""
    CLIPTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "demo")
    return [bundle.path / "tokenizer", tmp_path / "demo"]


def test_ids_are_those_of_transformers(bundle: Bundle, tmp_path: Path) -> None:
    texts = [*TEXTS, *random_texts(150)]
    for folder in folders(bundle, tmp_path):
        theirs, ours = CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
        assert isinstance(ours, Tokenizer)
        for length in (77, 8):
            how: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
            expected = theirs(texts, return_tensors="pt", **how).input_ids
            given = ours(texts, return_tensors="pt", **how).input_ids
            assert given.dtype == expected.dtype
            assert (given == expected).all()
        assert any(len(ours(text).input_ids) > 77 for text in texts)
        for text in texts:
            assert read_length(ours, text, 20) == read_length(theirs, text, 20)
            assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)


def test_a_model_reads_the_same(bundle: Bundle, ddim_checkpoint: Any) -> None:
    model: ModelInfo = bundle.model
    assert isinstance(model.tokenizer, Tokenizer)
    theirs = ModelInfo(**{**vars(model), "tokenizer": ddim_checkpoint.tokenizer})
    assert (model.tokenize(TEXTS) == theirs.tokenize(TEXTS)).all()
    assert [model.cut_off(text) for text in TEXTS] == [theirs.cut_off(text) for text in TEXTS]


def test_what_was_read_before_a_tokenizer_is_written_does_not_show(ddim_checkpoint: Any, tmp_path: Path) -> None:
    """transformers keeps in its file how it cut and filled up the last texts."""
    tokenizer, text = copy.deepcopy(ddim_checkpoint.tokenizer), "heart " * 100
    tokenizer([text], padding="max_length", max_length=77, truncation=True)
    tokenizer.save_pretrained(tmp_path / "used")
    assert json.loads((tmp_path / "used" / "tokenizer.json").read_text())["truncation"] is not None
    save_tokenizer(tokenizer, tmp_path / "clean")
    written = json.loads((tmp_path / "clean" / "tokenizer.json").read_text())
    assert (written["truncation"], written["padding"]) == (None, None)
    for folder in ("used", "clean"):  # bundles of earlier versions may hold the first
        read = load_tokenizer(tmp_path / folder, embeddings=None)
        assert len(read(text).input_ids) == 102


def test_other_files_are_left_to_transformers(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(bundle.path / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["backend"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert isinstance(load_tokenizer(folder), CLIPTokenizer)


def test_a_damaged_file_is_told(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(bundle.path / "tokenizer", folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer .* cannot be read"):
        load_tokenizer(folder)
    assert open_bundle(bundle.path).model.tokenize(["heart"]).shape == (1, 77)
