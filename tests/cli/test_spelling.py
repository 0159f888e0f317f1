"""The command line's spelling of settings, and that nobody else knows it."""

from __future__ import annotations

import argparse
import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pie_engine.cli import spelling
from pie_engine.cli.main import _parser
from pie_engine.cli.spelling import as_option, told
from pie_engine.errors import ConfigError, Notice, argument, mention, use

_ROOT = Path(__file__).parents[2]
_OPTION = re.compile(r"--[a-z]")
# Whole commands, which are what to run, and options of other programs.
_COMMANDS = re.compile(r"pie-engine |python -m |pip install |--dump-resource-usage$")
# Names that messages are given by their callers.
_VARIABLE = {
    "axis",
    "dilate",
    "frame",
    "item_id",
    "keep",
    "semantics",
    "shift",
    "slice",
    "window_center",
    "window_width",
}
# Of the interface, and in no message yet.
_UNNAMED = {"distances", "latents"}
_LEFT = ("pie_engine/cli/",)


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every module outside cli/, by its path in the repository."""
    for folder in ("pie_engine", "export", "kernels", "cpp_ext"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            name = path.relative_to(_ROOT).as_posix()
            if not name.startswith(_LEFT):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def skipped(tree: ast.AST) -> set[int]:
    """Literals that no message is made of: docstrings, and the options of a script's own parser."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            found |= {id(below) for below in ast.walk(node)}
        if isinstance(node, ast.JoinedStr):  # the parts of a command with values in it
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            if parts and isinstance(parts[0].value, str) and _COMMANDS.search(parts[0].value):
                found |= {id(part) for part in parts}
    return found


def options() -> set[str]:
    """Every option of every command."""
    parsers = [_parser()]
    found: set[str] = set()
    for parser in parsers:
        for action in parser._actions:
            found |= {option for option in action.option_strings if option.startswith("--")}
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


def test_no_option_is_spelled_outside_the_command_line() -> None:
    found = [
        f"{name}:{node.lineno}: {node.value}"
        for name, tree in sources()
        if name != "pie_engine/commands.py"
        for skip in (skipped(tree),)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip
        if _OPTION.search(node.value) and not _COMMANDS.search(node.value)
    ]
    assert not found, "\n".join(found)


def test_every_setting_that_messages_name_is_an_option() -> None:
    names: dict[str, str] = dict.fromkeys(_VARIABLE, "a variable")
    for where, tree in sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in ("use", "argument", "mention") and isinstance(node.args[0], ast.Constant):
                names[str(node.args[0].value)] = where
    known = options()
    missing = {
        name: where
        for name, where in names.items()
        if not {f"--{as_option(name, None)}", as_option(name, "False")} & known
    }
    assert not missing
    assert spelling._OPTIONS.keys() <= names.keys() | _UNNAMED  # no entry outlives its message


@pytest.mark.parametrize(
    ("name", "value", "python", "option"),
    [
        ("strength", 0.5, "strength=0.5", "--strength 0.5"),
        ("num_inference_steps", "...", "num_inference_steps=...", "--num-inference-steps ..."),
        ("device", "cuda:0", "device='cuda:0'", "--device cuda:0"),
        ("unet", Path("a folder/unet"), "unet='a folder/unet'", "--unet 'a folder/unet'"),
        ("classifiers", "JSON", "classifiers=JSON", "--classifier JSON"),
        ("components", 2, "components=2", "--mask-components 2"),
        ("capabilities", ("8.6", "8.9"), "capabilities=('8.6', '8.9')", "--compute-capability 8.6,8.9"),
        ("shift", (-5, 0), "shift=(-5, 0)", "--shift -5,0"),
        ("composite", False, "composite=False", "--no-composite"),
        ("native_size", True, "native_size=True", "--native-size"),
        ("mask", "Box(0, 0, 64, 48)", "mask=Box(0, 0, 64, 48)", "--mask-box 0,0,64,48"),
    ],
)
def test_spellings(name: str, value: object, python: str, option: str) -> None:
    error = ConfigError(f"no; pass {use(name, value)}")
    assert str(error) == f"no; pass {python}"
    assert error.told(as_option) == f"no; pass {option}"


def test_settings_without_a_value() -> None:
    error = ConfigError(f"{mention('window_center')} is not needed; leave out {argument('window_center')}")
    assert str(error) == "window_center is not needed; leave out window_center"
    assert error.told(as_option) == "window-center is not needed; leave out --window-center"


def test_notices_are_spelled_in_findings_and_logs() -> None:
    notice = Notice(f"%d of %d pixels; pass {use('fit', 'pad')}")
    assert notice == "%d of %d pixels; pass fit='pad'"
    assert told({"problems": [{"remedy": notice}, 1, None]}) == {
        "problems": [{"remedy": "%d of %d pixels; pass --fit pad"}, 1, None]
    }
    record = logging.LogRecord("name", logging.WARNING, "file", 1, notice, (2, 3), None)
    assert spelling.LogFormatter("%(message)s").format(record) == "2 of 3 pixels; pass --fit pad"
    assert record.getMessage() == "2 of 3 pixels; pass fit='pad'"
