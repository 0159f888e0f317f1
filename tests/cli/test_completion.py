"""`pie-engine --print-completion`: scripts that complete commands, options and choices."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pie_engine.cli.completion import SHELLS
from pie_engine.cli.main import main

# What bash does when a user presses the tab key at the end of a line.
PRESS = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_pie_engine
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["--print-completion", shell])
    assert stopped.value.code == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(shell: str, capsys: Any) -> None:
    written = script(shell, capsys)
    for word in ("pie-engine", "refit", "negative-prompt"):
        assert word in written


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "completion.bash"
    path.write_text(script("bash", capsys))
    (tmp_path / "picture.png").touch()

    def press(*words: str) -> list[str]:
        command = ["bash", "-c", PRESS, "bash", str(path), "pie-engine", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()

    assert press("re") == ["refit"]
    assert press("run", "--sem") == ["--semantics"]
    assert press("run", "--semantics", "") == ["engine", "official"]
    assert "picture.png" in press("run", "--image", "pic")


def test_an_unknown_shell_is_refused(pie: Any) -> None:
    outcome = pie("--print-completion", "fish")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--print-completion: invalid choice: 'fish' (choose from" in outcome.err
