"""What costs is bounded, and what strangers named commands no terminal."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN

from pie_engine import PieEngine, Placement
from pie_engine.cli.main import main
from pie_engine.cli.spelling import LogFormatter
from pie_engine.errors import quoted
from pie_engine.machine import devices, loading, processors


@pytest.mark.parametrize(("asked", "taken"), [(None, None), (1, 1), (2, 2), (3, 2), (20_000, 2)])
def test_threads_are_no_more_than_processors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: int | None, taken: int | None
) -> None:
    def opened(source: Any, placement: Placement, *_: Any) -> Any:
        raise StopIteration(placement.threads)

    monkeypatch.setattr(devices, "usable_processors", lambda: 2)
    monkeypatch.setattr(loading, "_open_checkpoint", opened)
    with pytest.raises(StopIteration) as stopped:
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", threads=asked)
    assert stopped.value.value == taken
    told = f"threads {asked} is more than the 2 processors that this process may use; 2 run"
    assert caplog.messages == ([] if asked == taken else [told])


def test_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    for quotas, usable in (
        ([], 6), ([0.25], 1), ([2.0, 8.0], 2), ([1.5], 2), ([64.0], 6),
    ):  # fmt: skip
        monkeypatch.setattr(processors, "_quotas", lambda quotas=quotas: iter(quotas))
        assert processors.usable_processors() == usable


@pytest.mark.parametrize(
    ("line", "files", "quotas"),
    [
        ("0::/pod/me", {"pod/me/cpu.max": "max 100000", "pod/cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/pod/me", {"cpu.max": "200000 100000"}, [2.0]),
        ("4:cpu,cpuacct:/me", {"cpu/me/cpu.cfs_quota_us": "50000", "cpu/me/cpu.cfs_period_us": "100000"}, [0.5]),
        ("4:cpu,cpuacct:/me", {"cpu/me/cpu.cfs_quota_us": "-1", "cpu/me/cpu.cfs_period_us": "100000"}, []),
        ("5:memory:/me", {"cpu.max": "200000 100000"}, []),
        ("0::/", {}, []),
    ],
)
def test_quotas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, files: dict[str, str], quotas: list[float]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    real = Path.read_text

    def read(path: Path, *arguments: Any, **rest: Any) -> str:
        return line + "\n" if path == Path("/proc/self/cgroup") else real(path, *arguments, **rest)

    monkeypatch.setattr(processors, "_CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", read)
    assert list(processors._quotas()) == quotas


def test_long_texts_are_quoted_in_part() -> None:
    assert quoted("it's\n") == repr("it's\n")
    assert quoted("a" * 1_000_000) == f"'{'a' * 80}'... (1,000,000 characters)"


def test_a_long_prompt_is_warned_of_in_a_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run", "--checkpoint", GOLDEN / "checkpoint_ddim", "--backend", "torch", "--image", GOLDEN / "image.png",
        "--prompt", "heart \x1b[2J" * 5000, "--steps", 1, "--num-inference-steps", 2, "--resolution", 32,
        "--output", tmp_path / "result", "--quiet",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "was cut" in line]
    assert len(line) < 250 and line.isprintable()
    assert "characters); shorten it" in line


def test_names_command_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    formatter = LogFormatter("pie-engine: %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s has 16 bits", ("a\x1b]0;b\x07\npie-engine: c",), None)
    assert formatter.format(record) == r"pie-engine: a\x1b]0;b\x07\npie-engine: c has 16 bits"
    assert main(["run", "--checkpoint", f"{tmp_path}/a\x1b[2J\nb", "--image", "x", "--prompt", "y"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.isprintable()
