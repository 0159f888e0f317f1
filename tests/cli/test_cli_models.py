"""Bundles and checkpoints that were damaged, swapped or never were any; backends that are not there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pie_engine.backends import openvino_session
from pie_engine.machine import selection
from pie_engine.model.bundle import MANIFEST, describe_files, manifest_hash


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest and hash it anew, as whoever wrote such a bundle would have."""

    def apply(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        manifest["manifest_sha256"] = manifest_hash(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return apply


def entry(name: str) -> Callable[[Path], None]:
    return edit(lambda manifest: manifest["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))


def garbage(folder: Path) -> None:
    (folder / "unet" / "model.onnx").write_bytes(b"garbage")
    edit(lambda manifest: manifest.update(files=describe_files(folder)))(folder)


def swap_digit(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    assert '"scaling_factor": 0.58' in text
    (folder / MANIFEST).write_text(text.replace('"scaling_factor": 0.58', '"scaling_factor": 0.57'))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped byte": (lambda b: flip(b / "unet" / "model.onnx"), "unet/model.onnx does not match its manifest"),
    "flipped tokenizer": (lambda b: flip(b / "tokenizer" / "tokenizer.json"), "does not match its manifest"),
    "cut file": (lambda b: (b / "unet" / "model.onnx").write_bytes(b"x"), "has 1 bytes (manifest: "),
    "deleted file": (lambda b: (b / "unet" / "model.onnx").unlink(), "lacks unet/model.onnx; rebuild it: pie-engine"),
    "extra file": (lambda b: (b / "unet" / "x.bin").write_text("x"), "holds unet/x.bin, which its manifest does not"),
    "extra manifest": (lambda b: (b / "unet" / MANIFEST).write_text("{}"), f"holds unet/{MANIFEST}, which its"),
    "flipped digit": (swap_digit, f"{MANIFEST} that was changed"),
    "no manifest": (lambda b: (b / MANIFEST).unlink(), f"is not a bundle (no {MANIFEST}); pass the folder"),
    "manifest folder": (lambda b: ((b / MANIFEST).unlink(), (b / MANIFEST).mkdir()), "unreadable manifest"),
    "broken JSON": (lambda b: (b / MANIFEST).write_text('{"format": 1'), f"unreadable {MANIFEST}"),
    "binary": (lambda b: (b / MANIFEST).write_bytes(b"\xff\xfe\x00"), f"unreadable {MANIFEST}"),
    "JSON list": (lambda b: (b / MANIFEST).write_text("[1]"), f"unreadable {MANIFEST} (not an object)"),
    "foreign JSON": (lambda b: (b / MANIFEST).write_text('{"manifest_version": 3}'), "has format None"),
    "other format": (edit(lambda m: m.update(format=2)), "has format 2 (pie-engine"),
    **{
        f"no {key}": (edit(lambda m, key=key: m.pop(key)), f"unusable {MANIFEST}")
        for key in ("precision", "model", "hashes", "sources", "components")
    },
    "no files": (edit(lambda m: m.update(files=None)), f"unusable {MANIFEST}"),
    "no component": (edit(lambda m: m["components"].pop("unet")), f"unusable {MANIFEST} (components.unet is missing)"),
    "null sources": (edit(lambda m: m.update(sources=None)), f"unusable {MANIFEST}"),
    "other precision": (edit(lambda m: m.update(precision="int4")), f"unusable {MANIFEST}"),
    "unknown fact": (edit(lambda m: m["model"].update(colour="red")), f"unusable {MANIFEST}"),
    "parent": (entry("../../secret"), "names a file outside itself (../../secret)"),
    "absolute": (entry("/etc/hostname"), "names a file outside itself (/etc/hostname)"),
    "null byte": (entry("a\0b"), f"unusable {MANIFEST} (files"),
    "terminal codes": (entry("\x1b[31m\nred"), "lacks \\x1b[31m\\nred"),
    "garbage graph": (garbage, "unet/model.onnx is not an ONNX graph (field 12 is of an unknown kind); rebuild it"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundle(refuse: Any, copied_bundle: Path, damage: str) -> None:
    apply, line = DAMAGE[damage]
    apply(copied_bundle)
    assert line in refuse("--engine", copied_bundle)


def test_linked_out_of_the_bundle(refuse: Any, copied_bundle: Path, tmp_path: Path) -> None:
    graph = copied_bundle / "unet" / "model.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    assert "names a file outside itself (unet/model.onnx)" in refuse("--engine", copied_bundle)


def test_no_bundle_at_all(refuse: Any, tmp_path: Path, image: Path, checkpoint: Path) -> None:
    assert "does not exist; build it: pie-engine build" in refuse("--engine", tmp_path / "none.pie")
    assert "is a file; pass the folder that pie-engine build wrote" in refuse("--engine", image)
    assert f"is not a bundle (no {MANIFEST})" in refuse("--engine", checkpoint)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def foreign(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "addition_embed_type": "text_time"}))


@pytest.mark.parametrize(
    ("file", "damage", "line"),
    [
        ("unet/diffusion_pytorch_model.safetensors", truncate, "is corrupt or not safetensors (5000 bytes"),
        ("vae/diffusion_pytorch_model.safetensors", lambda path: path.write_bytes(bytes(99)), "is corrupt"),
        ("unet/config.json", foreign, "addition_embed_type=text_time (as in SDXL); none is expected"),
        ("unet/config.json", lambda path: path.write_text("{"), "config.json"),
    ],
)
def test_checkpoint_that_cannot_be_used(
    refuse: Any, tmp_path: Path, checkpoint: Path, file: str, damage: Callable[[Path], Any], line: str
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    damage(copy / file)
    assert line in refuse("--checkpoint", copy)
    assert line in refuse("build", "--checkpoint", copy, "--output", tmp_path / "new.pie")


def test_no_checkpoint_at_all(refuse: Any, tmp_path: Path, image: Path, bundle: Any) -> None:
    assert "does not exist" in refuse("--checkpoint", tmp_path / "none")
    assert "does not exist" in refuse("--checkpoint", "")
    assert "has the suffix '.png'" in refuse("--checkpoint", image)
    assert "is a bundle that pie-engine build wrote" in refuse("--checkpoint", bundle.path)


def test_cuda_without_a_gpu(refuse: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        line = refuse("--checkpoint", checkpoint, "--device", device)
        assert f"device '{device}' needs an NVIDIA GPU and this machine shows none; pass --device cpu" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "'cuda:1' is not one of 1 GPUs" in refuse("--checkpoint", checkpoint, "--device", "cuda:1")


def test_without_onnxruntime(refuse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'pie-engine[cpu]', or pass --backend torch" in refuse("--backend", "onnxruntime")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_checkpoint_runs_without_a_build(simulate: Any, checkpoint: Path, tmp_path: Path, backend: str) -> None:
    outcome = simulate("--checkpoint", checkpoint, "--device", "cpu", "--backend", backend)
    assert outcome.code == 0
    found = json.loads((tmp_path / "result" / "provenance.json").read_text())["backend"]
    graphs = "openvino" if openvino_session.installed() and selection._has_avx512() else "onnxruntime"
    assert found["name"] == {"auto": graphs, "torch": "torch"}[backend]
    assert found["chosen"].startswith(found["name"])
