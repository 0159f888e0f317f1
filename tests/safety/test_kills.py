"""A process may die at any operation on the disk: an earlier result or the new one is there, whole, and no rest stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dying import die_at, in_a_fork, tree

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
    write, number, statuses = KINDS[kind].write, 0, list[int]()
    while not statuses or statuses[-1] != 0:
        folder = tmp_path / str(number)
        folder.mkdir()
        with next_command():
            if earlier:
                write(folder / "out", "old")
        before = tree(folder)

        def killed(folder: Path = folder, number: int = number) -> None:
            die_at(folder, number)
            with next_command():
                write(folder / "out", "new")

        statuses.append(in_a_fork(killed))
        assert statuses[-1] in (-signal.SIGKILL, 0)
        if KINDS[kind].always_there and earlier:
            assert {path for path in before if not path.startswith("cache")} <= set(tree(folder))
        assert results(folder) <= ({"old", "new"} if earlier else {"new"})
        with next_command():  # another one, which writes there
            write_file(folder / "another", "other")
            (folder / "another").unlink()
        assert kind == "check" or not earlier or results(folder) & {"old", "new"}
        with next_command():  # and the same again
            write(folder / "out", "last")
        assert kind == "check" or "last" in results(folder)
        assert not [path for path in tree(folder) if "/." in f"/{path}"]
        number += 1
    assert len(statuses) > 6  # or nothing was tried


def test_what_is_set_aside_comes_back(tmp_path: Path) -> None:
    """Between the two renames, neither is there: the next command that writes beside it puts the old one back."""
    out, seen = tmp_path / "out", []
    write_folder(out, "old")
    for number in range(100):

        def killed(number: int = number) -> None:
            die_at(tmp_path, number)
            in_two_steps(write_folder)(out, "new")

        if in_a_fork(killed) == 0:
            break
        seen.append(out.exists())
        with next_command():
            write_file(tmp_path / "another", "")
        assert whole(out) in ("old", "new")
    assert False in seen  # it was killed there, once at least


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
    assert set(tree(tmp_path)) == {"inside", "inside/.y.turn.lock"}
