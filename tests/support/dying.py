"""Processes that die at a chosen operation on the disk, and what such a death leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Python announces these before it does them. What is done otherwise (a library's own writes, the exchange of two names)
# is done by the time that the next of them is announced.
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate", "shutil.copyfile"}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_a_fork(work: Callable[[], Any]) -> int:
    """Do it in a process of its own. Returns its exit status, negative for a signal; 99 if it raised."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def before_each_operation(folder: Path, then: Callable[[int], None]) -> None:
    """Call `then` with the number of each change to something in `folder`, before it is made, in this process."""
    count, busy = 0, False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, busy
        if busy or not (event in _CHANGES or (event == "open" and arguments[2] & _TO_WRITE)):
            return
        if not any(_within(argument, folder) for argument in arguments):
            return
        busy = True
        try:
            then(count)
        finally:
            busy = False
        count += 1

    sys.addaudithook(watch)  # for good: in a fork


def _within(argument: object, folder: Path) -> bool:
    return isinstance(argument, str | bytes | os.PathLike) and os.fsdecode(argument).startswith(str(folder))


def die_at(folder: Path, number: int) -> None:
    """Kill this process before its operation of that number in `folder`, as a power cut would."""

    def die(at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each_operation(folder, die)


def photograph(folder: Path, album: Path) -> None:
    """Copy `folder` before each operation in it: what a kill would leave then. Nobody holds a copy's locks."""

    def copy(number: int) -> None:
        shutil.copytree(folder, album / f"{number:04}", symlinks=True)

    before_each_operation(folder, copy)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the bytes of files; None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
