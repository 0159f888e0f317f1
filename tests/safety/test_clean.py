"""`pie-engine clean`: what killed commands left, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path

import pytest
from dying import in_a_fork, tree

from pie_engine.cli.main import main
from pie_engine.files import new_folder, temporary_name, write_file


def kill_while_writing(*places: Path, size: int = 1000) -> None:
    """A command that was killed when its folders were half there."""

    def killed() -> None:
        with contextlib.ExitStack() as stack:
            for place in places:
                partial = stack.enter_context(new_folder(place, replaceable="marker.json"))
                (partial / "patient.png").write_bytes(bytes(size))
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(killed) == -signal.SIGKILL


def clean(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["clean", *map(str, words)])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def test_it_tells_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_while_writing(tmp_path / "deep" / "out", size=2_000_000)
    write_file(tmp_path / "mine", "mine")
    before = tree(tmp_path)
    code, lines = clean(capsys, tmp_path, "--dry-run")
    assert (code, tree(tmp_path)) == (0, before)
    [partial] = [path for path in before if path.startswith("deep/.out.partial-") and not path.endswith(".lock")][:1]
    assert lines[0].startswith(f"found: {tmp_path}/{partial} (of process ")
    assert lines[-1] == "1 leftover to remove, 2.0 MB"
    code, lines = clean(capsys, tmp_path)
    assert code == 0
    assert lines[0].startswith(f"removed: {tmp_path}/{partial} (of process ")
    assert lines[-1] == "1 leftover removed, 2.0 MB"
    assert set(tree(tmp_path)) == {"deep", "mine"}
    assert clean(capsys, tmp_path)[1] == ["0 leftovers removed, 0.0 MB"]


def test_by_the_name_of_what_never_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only that one, of several in the same folder."""
    kill_while_writing(tmp_path / "out", tmp_path / "out2")
    assert clean(capsys, tmp_path / "out")[0] == 0
    assert {path.split("partial")[0] for path in tree(tmp_path)} == {".out2."}
    code, lines = clean(capsys, tmp_path / "out")
    assert code == 2
    assert lines == [
        f"pie-engine: error: there is no {tmp_path}/out, and nothing unfinished of it; pass a folder that commands "
        "write to"
    ]


def test_the_cache_and_the_temporary_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, temporary = tmp_path / "cache", tmp_path / "tmp"
    temporary.mkdir()
    kill_while_writing(cache / "components" / "unet-0")
    kill_while_writing(temporary / "pie-engine")
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert clean(capsys)[1][-1] == "2 leftovers removed, 0.0 MB"
    assert set(tree(tmp_path)) == {"cache", "cache/components", "tmp"}


def test_what_is_being_written_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_name(tmp_path / "out") as partial:
        partial.mkdir()
        code, lines = clean(capsys, tmp_path)
        assert code == 0 and partial.is_dir()
        assert lines[0].startswith(f"left alone, as its owner may be writing it: {partial} (of process {os.getpid()} ")
        assert lines[1] == "0 leftovers removed, 0.0 MB"
    assert not tree(tmp_path)
