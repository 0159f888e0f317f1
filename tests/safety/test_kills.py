"""A process may die at any operation on the disk: the earlier result or the new one is there, whole, and no rest."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dying import die_at, in_a_fork, photograph, tree

from pie_engine import files
from pie_engine.files import check_folder, find_leftovers, link_or_copy, locked, new_folder, write_file

MARKER = "marker.json"


def write_folder(folder: Path, text: str) -> None:
    """A result of three files in two folders."""
    with new_folder(folder, replaceable=MARKER) as partial:
        (partial / "frames").mkdir()
        for name in ("a", "frames/b"):
            (partial / name).write_text(text)
        (partial / MARKER).write_text(json.dumps({"files": ["a", "frames/b"], "text": text}))


def write_linked(folder: Path, text: str) -> None:
    """As a bundle is written: its files have a second name in a cache that is locked meanwhile."""
    cached = folder.parent / "cache" / text
    with locked(cached):
        if not cached.exists():
            write_folder(cached, text)
    with new_folder(folder, replaceable=MARKER) as partial:
        (partial / "frames").mkdir()
        for name in ("a", "frames/b", MARKER):
            link_or_copy(cached / name, partial / name)


def in_two_steps(write: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
    """On a file system that cannot exchange two names."""

    def written(folder: Path, text: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pie_engine.files.folders.exchange", lambda *_: False)
            write(folder, text)

    return written


@dataclass(frozen=True)
class Kind:
    """A kind of write: how, and whether something is at its place at every moment once something was."""

    write: Callable[[Path, str], None]
    always_there: bool = True


KINDS = {
    "folder": Kind(write_folder),
    "folder below folders": Kind(lambda out, text: write_folder(out.parent / "deep" / "er" / "out", text)),
    "folder in two steps": Kind(in_two_steps(write_folder), always_there=False),
    "folder with links": Kind(write_linked),
    "file": Kind(write_file),
    "check": Kind(lambda out, text: check_folder(out, replaceable=MARKER)),
    "unusual name": Kind(lambda out, text: write_folder(out.parent / ("ü" * 120), text)),
}


def whole(place: Path) -> str | None:
    """The text of what is at a place; None if nothing is. Anything but a whole result is a failure."""
    if not os.path.lexists(place):
        return None
    if place.is_file():
        return place.read_text()
    text = json.loads((place / MARKER).read_text())["text"]
    assert set(tree(place)) == {"a", "frames", "frames/b", MARKER}
    assert (place / "a").read_text() == (place / "frames" / "b").read_text() == text
    return text


def results(folder: Path) -> set[str | None]:
    """The texts of all that is in a folder and not hidden, with the cache's; folders that hold nothing do not count."""
    markers = [path.parent for path in folder.rglob(MARKER) if ".partial-" not in str(path)]
    plain = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return {whole(place) for place in markers + plain}


@contextlib.contextmanager
def next_command() -> Iterator[None]:
    """As from a process that has just started: it has looked into no folder yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pie_engine.files.temporary._swept", set())
        yield


@pytest.mark.parametrize(
    ("kind", "earlier"), [(kind, True) for kind in KINDS] + [("folder", False), ("folder below folders", False)]
)
def test_a_kill_at_every_operation(tmp_path: Path, kind: str, earlier: bool) -> None:
    write, folder, album = KINDS[kind].write, tmp_path / "folder", tmp_path / "album"
    folder.mkdir()
    with next_command():
        if earlier:
            write(folder / "out", "old")
    before = set(tree(folder))

    def photographed() -> None:
        photograph(folder, album)
        with next_command():
            write(folder / "out", "new")

    assert in_a_fork(photographed) == 0
    killed = sorted(album.iterdir())
    assert len(killed) > 3  # or nothing was tried
    for left in killed:
        if KINDS[kind].always_there and earlier:
            assert {path for path in before if not path.startswith("cache")} <= set(tree(left))
        assert results(left) <= ({"old", "new"} if earlier else {"new"})
        check_what_follows(left, kind, earlier)


def check_what_follows(left: Path, kind: str, earlier: bool) -> None:
    """What the next commands find and leave where one was killed."""
    write = KINDS[kind].write
    with next_command():  # another one, which writes there
        write_file(left / "another", "other")
        (left / "another").unlink()
    assert kind == "check" or not earlier or results(left) & {"old", "new"}
    with next_command():  # and the same again
        write(left / "out", "last")
    assert kind == "check" or "last" in results(left)
    assert not [path for path in tree(left) if "/." in f"/{path}"]


def test_the_photographs_show_what_kills_leave(tmp_path: Path) -> None:
    """A real death at each operation of one kind of write leaves what its photograph shows, up to random names."""

    def names(folder: Path) -> list[str]:
        return sorted(re.sub(r"[0-9a-f]{8}", "*", path) for path in tree(folder))

    def write(folder: Path, watch: Callable[[Path], None]) -> int:
        def work() -> None:
            watch(folder)
            with next_command():
                write_folder(folder / "out", "new")

        folder.mkdir()
        write_folder(folder / "out", "old")
        return in_a_fork(work)

    assert write(tmp_path / "whole", lambda folder: photograph(folder, tmp_path / "album")) == 0
    photographs = sorted((tmp_path / "album").iterdir())
    for number, shown in enumerate(photographs):
        killed = tmp_path / str(number)
        assert write(killed, lambda folder, number=number: die_at(folder, number)) == -signal.SIGKILL
        assert names(killed) == names(shown)
        check_what_follows(killed, "folder", earlier=True)


def test_what_is_set_aside_comes_back(tmp_path: Path) -> None:
    """Killed between the two renames, it leaves neither: the next command that writes beside it mends that."""
    folder, out = tmp_path / "folder", tmp_path / "folder" / "out"
    folder.mkdir()
    write_folder(out, "old")

    def photographed() -> None:
        photograph(folder, tmp_path / "album")
        in_two_steps(write_folder)(out, "new")

    assert in_a_fork(photographed) == 0
    missing = [left for left in (tmp_path / "album").iterdir() if not (left / "out").exists()]
    assert missing
    for left in missing:
        with next_command():
            check_folder(left / "another", replaceable=MARKER)
        assert whole(left / "out") == "old"


def test_a_living_owner_keeps_its_own(tmp_path: Path) -> None:
    """Whoever else writes and cleans there meanwhile."""
    out, ready, go = tmp_path / "out", os.pipe(), os.pipe()

    def slow() -> None:
        with new_folder(out, replaceable=MARKER) as partial:
            (partial / MARKER).write_text('{"files": []}')
            os.write(ready[1], b"1")
            os.read(go[0], 1)

    child = os.fork()
    if child == 0:
        os._exit(0 if in_a_fork(slow) == 0 else 1)
    os.read(ready[0], 1)
    with next_command():
        write_file(tmp_path / "another", "")
    [found] = files.clean(out, remove=True)
    assert found.alive and found.paths[0].is_dir() and found.owner.startswith("process ")
    os.write(go[1], b"1")
    assert os.waitpid(child, 0)[1] == 0
    assert (out / MARKER).is_file()
    assert find_leftovers(tmp_path) == []
    for descriptor in (*ready, *go):
        os.close(descriptor)


def test_what_was_named_like_it_is_left_alone(tmp_path: Path) -> None:
    """Only what has a lock beside it was ever a command's."""
    for name in (".out.partial-0123abcd", ".env.lock", "poetry.lock", ".a.partial-xyz.lock"):
        (tmp_path / name).write_text("mine")
    write_file(tmp_path / "out", "")
    files.clean(tmp_path, remove=True)
    assert set(tree(tmp_path)) == {".out.partial-0123abcd", ".env.lock", "poetry.lock", ".a.partial-xyz.lock", "out"}


def test_a_name_in_a_lock_leads_nowhere_else(tmp_path: Path) -> None:
    """Locks are files that anybody may have written."""
    inside = tmp_path / "inside"
    (inside / ".x.partial-0123abcd.old").mkdir(parents=True)
    (inside / ".x.partial-0123abcd.lock").write_text('{"writes": "../outside", "pid": 1, "host": "x"}')
    (inside / ".y.turn.lock").symlink_to(tmp_path / "target")
    find_leftovers(inside, remove=True)
    assert set(tree(tmp_path)) == {"inside", "inside/x", "inside/.y.turn.lock"}
