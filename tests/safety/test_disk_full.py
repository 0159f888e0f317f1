"""A full disk, and files that grow too large: one line, exit code 2, nothing half-written, the old result kept."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dying import in_a_fork, tree
from golden import GOLDEN

from pie_engine.cli.main import main
from pie_engine.engine import PieEngine
from pie_engine.errors import OutputError
from pie_engine.files import new_folder, write_file

PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 4 MB of memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a disk of its own; test_files_that_grow_too_large runs in its place")
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def left_free(disk: Path, pages: int) -> Iterator[None]:
    """The disk filled up to so many pages of 4,096 bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(filler, max(0, filler.stat().st_size - pages * PAGE))
    try:
        yield
    finally:
        filler.unlink()


def test_files_and_folders(disk: Path) -> None:
    def write(text: bytes) -> None:
        write_file(disk / "file", text)
        with new_folder(disk / "folder", replaceable="marker.json") as partial:
            (partial / "a").write_bytes(text)
            (partial / "marker.json").write_text('{"files": ["a"]}')

    write(b"old" * 5000)
    before, outcomes = tree(disk), []
    for pages in range(20):
        with left_free(disk, pages):
            try:
                write(b"new" * 5000)
                outcomes.append("written")
            except OutputError as error:
                assert str(error).endswith("cannot be written (the disk is full); free some space or write elsewhere")
                outcomes.append("full")
        after = tree(disk)
        assert set(after) == set(before)
        assert after["folder/a"] == (b"new" if outcomes[-1] == "written" else b"old") * 5000
        assert after["file"] in (b"old" * 5000, b"new" * 5000)
        write(b"old" * 5000)
    assert outcomes[0] == "full" and outcomes[-1] == "written"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`pie-engine run` with all outputs; what it simulates is known after the first call."""
    words = [
        "run", "--checkpoint", GOLDEN / "checkpoint_ddim", "--backend", "torch", "--image", GOLDEN / "image.png",
        "--mask", GOLDEN / "mask.png", "--prompt", "heart", "--steps", 1, "--num-inference-steps", 2, "--quiet",
        "--resolution", 64, "--save-latents", "--native-size",
    ]  # fmt: skip
    known: list[Any] = []
    real = PieEngine.run

    def run_once(engine: PieEngine, *arguments: Any, **rest: Any) -> Any:
        known.extend([] if known else [real(engine, *arguments, **rest)])
        return known[0]

    engine = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch")
    monkeypatch.setattr(PieEngine, "load", lambda *_, **__: engine)
    monkeypatch.setattr(PieEngine, "run", run_once)

    def call(output: Path) -> tuple[int, str]:
        code = main([str(word) for word in [*words, "--output", output]])
        captured = capsys.readouterr()
        assert code == 0 or captured.out == ""
        return code, captured.err

    return call


def test_a_run_on_a_full_disk(disk: Path, run: Any) -> None:
    output = disk / "result"
    assert run(output)[0] == 0
    before, codes = tree(disk), []
    needed = sum(1 + len(content or b"") // PAGE for content in before.values())
    for pages in [0, 1, 2, 3, *range(4, needed, 3), needed + 10]:
        with left_free(disk, pages):
            code, line = run(output)
        codes.append(code)
        assert set(tree(disk)) == set(before)
        if code:
            reason = "cannot be written (the disk is full); free some space or write elsewhere\n"
            assert (code, line.count("\n")) == (2, 1) and line.endswith(reason), line
            assert tree(disk) == before
    assert codes[0] == 2 and codes[-1] == 0
    assert codes == sorted(codes, reverse=True)


def test_files_that_grow_too_large(tmp_path: Path, run: Any) -> None:
    """The limit of the shell's `ulimit -f`, which needs no disk of its own."""
    output = tmp_path / "results" / "result"
    output.parent.mkdir()
    assert run(output)[0] == 0
    before = tree(output.parent)
    for limit in (0, 100, 1000, 4000, 20000):

        def limited(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code, line = run(output)
            reason = "(a file of it is larger than this process may write); raise the limit (ulimit -f)\n"
            assert (code, line.count("\n")) == (2, 1), line
            assert line.endswith(reason), line

        assert in_a_fork(limited) == 0
        assert tree(output.parent) == before
