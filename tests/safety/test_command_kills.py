"""Whole commands that are killed at any change to the disk: see test_kills.py for every kind of write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dying import in_a_fork, photograph, tree
from golden import GOLDEN

from pie_engine.bundling import components
from pie_engine.bundling.graphs import RECORD
from pie_engine.cli.main import main
from pie_engine.demo.assets import SEVERITY_JSON
from pie_engine.files import clean
from pie_engine.model.bundle import Bundle


def shown(folder: Path) -> dict[str, bytes | None]:
    """What a folder holds apart from hidden names and the cache."""
    return {
        path: content
        for path, content in tree(folder).items()
        if not path.startswith(("cache", ".")) and "/." not in path
    }


def stale(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def killed_everywhere(folder: Path, album: Path, words: list[Any], *, whole: bool = True) -> Iterator[Path]:
    """Run a command, and give what `folder` would hold if it had been killed at each change.

    Args:
        whole: all results there are those from before the command, or all those from after it.
    """
    before = shown(folder)

    def photographed() -> None:
        photograph(folder, album)
        assert command(*words) == 0

    assert in_a_fork(photographed) == 0
    after = shown(folder)
    assert after != before
    lefts = sorted(album.iterdir())
    assert len(lefts) > 10
    for left in lefts:
        assert not whole or shown(left) in (before, after)
        yield left


def run_words(output: Path) -> list[Any]:
    """The smallest run."""
    return [
        "run", "--checkpoint", GOLDEN / "checkpoint_ddim", "--backend", "torch", "--image", GOLDEN / "image.png",
        "--prompt", "heart", "--steps", 1, "--num-inference-steps", 2, "--resolution", 32, "--save-latents",
        "--output", output, "--quiet",
    ]  # fmt: skip


def command(*words: object) -> int:
    return main([str(word) for word in words])


def test_run(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    words = run_words(folder / "result")
    assert command(*words) == 0
    for left in killed_everywhere(folder, tmp_path / "album", [*words, "--seed", 1]):
        clean(left / "result", remove=True)
        assert stale(left) == []


def test_build(tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a cache that holds nothing. What is exported is known, so that it need not be computed."""
    exported = Path(os.environ["PIE_ENGINE_CACHE"]) / "components"
    folder, output = tmp_path / "folder", tmp_path / "folder" / "tiny.pie"
    words = ["build", "--checkpoint", GOLDEN / "checkpoint_ddim", "--output", output]

    def export(checkpoint: Any, name: str, config: Any, partial: Path) -> tuple[dict[str, Any], str]:
        known = exported / f"{name}-{components.cache_key(checkpoint, name, config)}"
        shutil.copytree(known, partial, dirs_exist_ok=True)
        record = json.loads((partial / RECORD).read_text())["component"]
        (partial / RECORD).unlink()
        return record, "exported"

    monkeypatch.setattr(components, "_export", export)
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(folder / "cache"))
    shutil.copytree(bundle.path, output)
    (output / "manifest.json").write_text((output / "manifest.json").read_text().replace("golden.pie", "other.pie"))
    for number, left in enumerate(killed_everywhere(folder, tmp_path / "album", words)):
        if number % 50 == 25:  # the same again
            monkeypatch.setenv("PIE_ENGINE_CACHE", str(left / "cache"))
            assert command(*words[:-1], left / "tiny.pie") == 0
        else:
            clean(left, remove=True)
        assert stale(left) == []


def test_eval(tmp_path: Path) -> None:
    """It writes a folder of its own, and into each run's report."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert command(*run_words(folder / "result")) == 0
    words = ["eval", folder / "result", "--output", folder / "out", "--quiet", "--classifier", SEVERITY_JSON]
    assert command(*words) == 0
    for left in killed_everywhere(folder, tmp_path / "album", [*words, "--seed", 1, "--update-reports"], whole=False):
        for name in ("result/report.html", "result/provenance.json", "out/summary.json", "out/metrics.csv"):
            assert (left / name).read_bytes().endswith((b"\n", b"</html>"))
        clean(left, remove=True)
        assert stale(left) == []
