"""Nothing leaves the machine and nothing is written that docs/usage.md does not name: all commands, offline."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN

from pie_engine.backends import openvino_session
from pie_engine.cli.main import _parser
from pie_engine.model.bundle import Bundle

PROGRAM = Path(__file__).parents[1] / "support" / "offline.py"
# What docs/usage.md, "What is written where", names in the user's folder; the temporary one is as empty as before.
NAMED = {".cache", ".cache/pie-engine", ".cache/matplotlib", ".config", ".config/matplotlib"}


def without_network() -> list[str]:
    """A command before another one that gives it no network; none, where this user may not."""
    command = ["unshare", "--net"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    return command if allowed else []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """A user's folder, empty apart from parts of the cache: only the text encoder is exported, which is quick."""
    home = tmp_path_factory.mktemp("home")
    for component in (Path(os.environ["PIE_ENGINE_CACHE"]) / "components").glob("[!.]*"):
        if not component.name.startswith("text_encoder"):
            shutil.copytree(component, home / ".cache" / "pie-engine" / "components" / component.name)
    return home


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, home: Path, bundle: Bundle) -> dict[str, Any]:
    """What the program says; "temporary" is what is left there."""
    work, temporary = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("temporary")
    kept = {name: value for name, value in os.environ.items()
            if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "PIE_TOP")}  # fmt: skip
    finished = subprocess.run(
        [*without_network(), sys.executable, str(PROGRAM), str(bundle.path), str(GOLDEN)],
        cwd=work, capture_output=True, text=True, check=True, timeout=900,
        env={**kept, "HOME": str(home), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = json.loads(finished.stdout.splitlines()[-1])
    return {**said, "temporary": sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))}


def test_every_command_works_without_a_network(done: dict[str, Any]) -> None:
    for outcome in done["outcomes"]:
        words = outcome["command"]
        if "openvino" in words and not openvino_session.installed():
            assert outcome["code"] == 2
        else:
            assert outcome["code"] == 0, outcome


def test_no_command_is_left_out(done: dict[str, Any]) -> None:
    (commands,) = (action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert set(commands) == {outcome["command"].split()[0] for outcome in done["outcomes"]} - {"help"}


def test_no_socket_is_opened(done: dict[str, Any]) -> None:
    assert done["opened"] == []


def test_only_what_is_documented_is_written(done: dict[str, Any], home: Path) -> None:
    left = {str(path.relative_to(home)) for path in home.rglob("*")}
    assert {path for path in left if "/".join(path.split("/")[:2]) not in NAMED} == set()
    assert not [path for path in left if "/." in path.removeprefix(".cache")]
    assert done["temporary"] == []
    written = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
    section = written.partition("## What is written where")[2].partition("\n## ")[0]
    for name in ("`pie-engine` in `$XDG_CACHE_HOME` or `~/.cache`", "`matplotlib` in `$XDG_CACHE_HOME` or `~/.cache`"):
        assert name in section
