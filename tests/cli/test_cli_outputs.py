"""Results appear whole or not at all, beside nothing else, and only where nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pie_engine.files as files
from pie_engine.engine import PieEngine
from pie_engine.errors import OutputError

RESULT = {"frames", "progression.gif", "sheet.png", "differences.png", "report.html", "provenance.json"}


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_folders_that_are_not_ours(refuse: Any, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "keep.txt").write_text("keep")
    (tmp_path / "loop").symlink_to(tmp_path / "circle")
    (tmp_path / "circle").symlink_to(tmp_path / "loop")
    for output, line in (
        ("file", "a file of that name is in the way"),
        ("file/below/it", "a file of that name is in the way"),
        ("foreign", "is not empty and holds no provenance.json of an earlier result"),
        ("loop", "is not a folder's name (its links lead in a circle); choose another folder"),
        ("loop/below", "is not a folder's name (its links lead in a circle)"),
        ("x" * 300, "its name is too long"),
        ("a\0b", "is not a folder's name (it holds a null byte)"),
    ):
        assert line in refuse("--output", f"{tmp_path}/{output}")
    for output, line in (("file", "a file of that name"), ("foreign", "holds no manifest.json of an earlier result")):
        assert line in refuse("build", "--checkpoint", checkpoint, "--output", tmp_path / output)
    assert "holds no manifest.json" in refuse("build", "--checkpoint", checkpoint, "--output", checkpoint)
    assert "a file of that name" in refuse(
        "build", "--checkpoint", checkpoint, "--output", tmp_path / "new", "--cache-dir", tmp_path / "file"
    )


def test_the_current_folder_stays(refuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for output in (".", "", "..", "/"):
        assert "is the current folder or one above it; name a folder below it" in refuse("--output", output)


def test_not_writable(refuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may write everywhere: the system's refusal is made."""

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("it was found after the model was loaded")

    monkeypatch.setattr("pie_engine.files.temporary.take", read_only)
    monkeypatch.setattr(PieEngine, "load", no_work)
    line = refuse("--output", tmp_path / "deep" / "new")
    assert "permission denied); choose a folder that you may write to" in line


@pytest.mark.parametrize("where", ["PIL.Image.Image.save", "pathlib.Path.write_text", "pathlib.Path.rename"])
def test_disk_full(refuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(where, disk_full)
    line = refuse("--output", tmp_path / "deep" / "result")
    assert line.endswith("deep/result cannot be written (the disk is full); free some space or write elsewhere")


def test_disk_full_while_building(
    refuse: Any, tmp_path: Path, checkpoint: Path, bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"  # a copy: other tests fill the session's at the same time
    shutil.copytree(os.environ["PIE_ENGINE_CACHE"], cache, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(cache))
    for where in ("pathlib.Path.hardlink_to", "shutil.copyfile"):
        monkeypatch.setattr(where, disk_full)
    before = {str(path) for path in cache.rglob("*")}
    assert "the disk is full" in refuse("build", "--checkpoint", checkpoint, "--output", tmp_path / "deep" / "new.pie")
    assert not {path for path in {str(p) for p in cache.rglob("*")} - before if ".partial" in path}


def test_twice_replaces_and_keeps_what_is_not_ours(simulate: Any, refuse: Any, tmp_path: Path) -> None:
    result = tmp_path / "result"
    assert simulate("--steps", "2", "--save-latents").code == 0
    assert {path.name for path in result.iterdir()} == {*RESULT, "latents.safetensors"}
    assert simulate("--steps", "1").code == 0
    assert {path.name for path in result.iterdir()} == RESULT
    assert sorted(path.name for path in (result / "frames").iterdir()) == ["000.png", "001.png"]
    assert not list(tmp_path.glob(".*"))
    (result / "frames" / "notes.txt").write_text("mine")
    assert "holds frames/notes.txt, which is not of the earlier result; move it" in refuse("--steps", "1")


def test_a_link_leads_to_its_folder(simulate: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "result").symlink_to(tmp_path / "disk")
    for _ in range(2):
        assert simulate().code == 0
        assert (tmp_path / "result").is_symlink()
        assert {path.name for path in (tmp_path / "disk").iterdir()} == RESULT


def test_failure_while_replacing_keeps_the_earlier_result(
    simulate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert simulate().code == 0
    before = (tmp_path / "result" / "provenance.json").read_bytes()
    for failure, code in ((disk_full, 2), (interrupt, 130)):
        with monkeypatch.context() as patch:
            patch.setattr("pie_engine.files.folders.exchange", failure)
            assert simulate().code == code
        assert [path.name for path in tmp_path.iterdir()] == ["result"]
        assert (tmp_path / "result" / "provenance.json").read_bytes() == before


def test_interrupted_run_and_build(
    simulate: Any, pie: Any, checkpoint: Path, bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = (130, "", "pie-engine: error: interrupted; nothing was written")
    output = tmp_path / "deep" / "output"
    for where in ("pie_engine.rounds.loop.run_round", "PIL.Image.Image.save"):
        with monkeypatch.context() as patch:
            patch.setattr(where, interrupt)
            outcome = simulate("--output", output)
        assert (outcome.code, outcome.out, outcome.err.splitlines()[-1]) == interrupted
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("pie_engine.bundling.assemble.link_files", interrupt)
        outcome = pie("build", "--checkpoint", checkpoint, "--output", output)
    assert (outcome.code, outcome.out, outcome.err.splitlines()[-1]) == interrupted
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_a_running_process(bundle: Any, image: Path, tmp_path: Path, number: signal.Signals) -> None:
    # A shell that starts a job in the background has it ignore SIGINT, and children inherit that.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    start += "from pie_engine.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [
        "run",
        "--engine",
        bundle.path,
        "--image",
        image,
        "--prompt",
        "x",
        "--steps",
        "10",
        "--strength",
        "1",
        "--num-inference-steps",
        "50",
        "--resolution",
        "32",
        "--backend",
        "onnxruntime",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", start, *map(str, words), "--output", str(tmp_path / "result")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("backend: onnxruntime")
    assert process.stderr.readline().startswith("round 1/10, evaluation 1/")
    assert any(line.startswith("round 2/10, ") for line in process.stderr)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].startswith("pie-engine: error: interrupted after round ")
    assert not out
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert provenance["partial"]["rounds"] == len(list((tmp_path / "result" / "frames").iterdir())) - 1 >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_interrupt_that_a_library_turns_into_another_error(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    monkeypatch.setattr(PieEngine, "load", load)
    assert simulate().code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_json_is_all_of_stdout(
    pie: Any, simulate: Any, bundle: Any, image: Path, checkpoint: Path, tmp_path: Path
) -> None:
    white = tmp_path / "white.png"
    Image.new("L", (300, 260), 255).save(white)  # nothing lies outside this region: no number may become NaN
    outcome = pie(
        "run", "--engine", bundle.path, "--image", image, "--mask", white, "--prompt", "heart", "--steps", 2,
        "--num-inference-steps", 2, "--resolution", 32, "--output", tmp_path / "result", "--json", "--save-latents",
    )  # fmt: skip
    result = json.loads(outcome.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert outcome.out.count("\n") == 1
    assert all(Path(path).is_file() for path in [*result["frames"], *(result[n] for n in ("gif", "sheet", "latents"))])
    lines = outcome.err.splitlines()
    assert [line for line in lines if not line.startswith(("backend: ", "round "))] == [
        "pie-engine: mask covers all of the image: nothing is held to the patient's anatomy"
    ]
    assert len(lines) == 4

    refused = simulate("--json", "--steps", "0")
    assert (refused.code, refused.out) == (2, "")

    built = pie("build", "--checkpoint", checkpoint, "--output", tmp_path / "new.pie", "--json")
    assert json.loads(built.out)["bundle"] == str(tmp_path / "new.pie")
    assert "unchanged, from the cache" in built.err  # progress, on stderr
    again = pie("build", "--checkpoint", checkpoint, "--output", tmp_path / "new.pie")
    assert again.out.startswith(str(tmp_path / "new.pie"))
    assert {path.name for path in tmp_path.iterdir()} == {"white.png", "result", "new.pie"}


def test_errors_that_are_not_ours(simulate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, code, line in (
        (MemoryError(), 2, "out of memory; lower --resolution"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (OSError(errno.ENOSPC, "No space left"), 2, "the disk is full"),
        (
            ZeroDivisionError("a bug\nof two lines"),
            1,
            "internal error (ZeroDivisionError: a bug); run again with --debug",
        ),
        (BrokenPipeError(), 0, ""),
    ):

        def load(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(PieEngine, "load", load)
        if isinstance(error, BrokenPipeError):
            monkeypatch.setattr(os, "dup2", lambda *_: None)  # stdout is pytest's own here
        outcome = simulate()
        assert outcome.code == code
        assert line in outcome.err
        assert outcome.err.count("\n") == bool(line)


def test_new_folder_from_python(tmp_path: Path) -> None:
    """Only the folder's own marker and the files it lists make room for another one."""
    path = tmp_path / "deep" / "folder"
    for text in ("first", "second"):
        with files.new_folder(path, replaceable="marker.json") as folder:
            (folder / "a").write_text(text)
            (folder / "marker.json").write_text('{"files": ["a"]}')
        assert (path / "a").read_text() == text
    (path / "marker.json").write_text("broken")
    with (
        pytest.raises(OutputError, match="holds a, which is not of"),
        files.new_folder(path, replaceable="marker.json"),
    ):
        pytest.fail("the body must not run")
    shutil.rmtree(tmp_path / "deep")
    with pytest.raises(ZeroDivisionError), files.new_folder(path, replaceable="marker.json"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
