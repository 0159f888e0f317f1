"""A checkpoint whose files nobody touched is not read again: its bundle is in the cache, and gives the same."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from safetensors.torch import load_file, save_file

from pie_engine import Item, PieEngine, RunConfig
from pie_engine import checkpoint as checkpoints
from pie_engine.bundling import Recalled
from pie_engine.checkpoint import LoraSpec
from pie_engine.checkpoint.reads import files_read
from pie_engine.config import BuildConfig
from pie_engine.files import cache_root, records
from pie_engine.model.bundle import MANIFEST

pytest.importorskip("onnxruntime")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = RunConfig(steps=1, num_inference_steps=2, resolution=32)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is loaded as a checkpoint from here on; files are settled as soon as they are written."""
    monkeypatch.setattr(records, "GRAIN_NS", 0)
    loaded: list[Any] = []
    real = checkpoints.load_checkpoint

    def load(base: Any, **others: Any) -> Any:
        loaded.append(base)
        return real(base, **others)

    monkeypatch.setattr(checkpoints, "load_checkpoint", load)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "checkpoint_ddim", tmp_path / "ckpt"))


def record_of(folder: Path) -> Path:
    return Recalled.of(folder, None, [], BuildConfig()).record


def load(folder: Path, **others: Any) -> PieEngine:
    return PieEngine.load(checkpoint=folder, backend="onnxruntime", **others)


def test_the_second_time_nothing_is_read(folder: Path, read: list[Any], tmp_path: Path) -> None:
    item = Item(GOLDEN / "image.png", "the heart", GOLDEN / "mask.png")
    first = load(folder).run(item, CONFIG)
    assert read == [folder]
    lines: list[str] = []
    again = load(folder, on_component=lines.append).run(item, CONFIG)
    assert read == [folder] and lines == ["checkpoint: unchanged, its bundle from the cache"]
    assert np.array_equal(first.latents, again.latents)
    assert again.provenance["model"] == first.provenance["model"]


def rewrite(folder: Path) -> None:
    """The same bytes count, other weights, and the times that it had."""
    file = folder / WEIGHTS
    before, tensors = file.stat(), load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "beta_end": 0.013}))


def add(folder: Path) -> None:
    (folder / "tokenizer" / "added.txt").write_text("another file")


@pytest.mark.parametrize("change", [rewrite, edit, add])
def test_whatever_changes_is_read(folder: Path, read: list[Any], change: Callable[[Path], None]) -> None:
    load(folder)
    change(folder)
    load(folder)
    assert len(read) == 2
    load(folder)
    assert len(read) == 2


def test_what_is_asked_for_is_what_is_recalled(folder: Path, read: list[Any]) -> None:
    load(folder)
    load(folder, unet=GOLDEN / "checkpoint_pndm" / "unet")
    load(folder, verify=True)
    assert len(read) == 3
    load(folder)
    load(folder, unet=GOLDEN / "checkpoint_pndm" / "unet")
    assert len(read) == 3


def test_what_was_just_written_is_not_recalled(folder: Path, read: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "GRAIN_NS", 3_600_000_000_000)
    load(folder)
    load(folder)
    assert len(read) == 2 and not record_of(folder).exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"files": 1}', '{"files": "SAME", "bundle": "../../etc", "sources": {}}'])
def test_a_record_that_was_edited_recalls_nothing(folder: Path, read: list[Any], text: str) -> None:
    load(folder)
    record = record_of(folder)
    record.write_text(text.replace("SAME", json.loads(record.read_text())["files"]))
    load(folder)
    assert len(read) == 2


def test_a_damaged_bundle_is_built_anew(folder: Path, read: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    load(folder)
    record = record_of(folder)
    bundle = cache_root() / "bundles" / json.loads(record.read_text())["bundle"]
    (bundle / MANIFEST).write_text("{}")
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert len(read) == 2 and "the checkpoint is read again" in caplog.text
    load(folder)
    assert len(read) == 2


def test_files_beside_a_single_file_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    file, other = tmp_path / "models" / "sd.safetensors", tmp_path / "models" / "other.safetensors"
    for path in (file, other, *(tmp_path / "models" / name for name in ("tokenizer/vocab.json", "unet/config.json"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    snapshot = tmp_path / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.json").write_text("{}")
    lora = tmp_path / "lora.safetensors"
    lora.write_text("")
    found = files_read(file, None, [LoraSpec(lora, 0.5)])
    beside = {tmp_path / "models" / name for name in ("tokenizer/vocab.json", "unet/config.json")}
    assert set(found) == {file, lora, snapshot / "vocab.json", *beside}
    assert files_read(tmp_path / "nowhere", None, []) == []
    assert files_read(file, None, [LoraSpec(tmp_path / "gone")]) == [*found[:-1], tmp_path / "gone"]


def test_a_u_net_alone_brings_the_pipeline_around_it(folder: Path) -> None:
    found = set(files_read(None, folder / "unet", []))
    assert found == {path for path in folder.rglob("*") if path.is_file()}
