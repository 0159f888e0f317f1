"""The options of a class of settings, made from its declarations, and the settings that options make.

(A generator over argparse and not a library: none of those tried carries options whose order matters, as --finding and
--mask, negative numbers, the published script's spellings and refusals of one line, and starts as quickly.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pie_engine.cli.spelling import as_option
from pie_engine.config.settings import Setting, declared, default_of, shown_choices, type_of

T = TypeVar("T")
_TYPES = {int: int, float: float, Path: Path}


def add_settings(group: Any, cls: type, *, only: Iterable[str] | None = None, but: Iterable[str] = ()) -> None:
    """One option for each field of `cls`, or those named; on and off for a switch. What is not given stays None."""
    wanted = None if only is None else set(only)
    for name, setting in declared(cls):
        if (wanted is None or name in wanted) and name not in set(but):
            _add(group, cls, name, setting)


def settings_from(arguments: argparse.Namespace, cls: type[T], **others: Any) -> T:
    """Settings of the options that were given, and of `others`, validated; the rest are defaults.

    Raises:
        ConfigError: see `cls`.
    """
    given = {}
    for name, setting in declared(cls):
        value = getattr(arguments, _key(setting, name), None)
        if value is not None and name not in others:
            given[name] = setting.parse(value) if setting.parse is not None else value
    return cls(**given, **others)


def options_of(cls: type) -> dict[str, str]:
    """Field -> option, such as "steps": "--steps"."""
    return {name: f"--{as_option(setting.called or name, None)}" for name, setting in declared(cls)}


def told_default(cls: type, name: str, setting: Setting) -> str:
    """What holds where nothing is given, in words."""
    default = default_of(cls, name)
    if setting.open:
        return setting.open
    if isinstance(default, bool):
        return "on" if default else "off"
    return "empty" if default == "" else str(default)


def _add(group: Any, cls: type, name: str, setting: Setting) -> None:
    option, kind = f"--{as_option(setting.called or name, None)}", type_of(cls, name)
    options = [option, *(f"--{other}" for other in setting.also)]
    kinds = [kind, *getattr(kind, "__args__", ())]
    symbol = f"{setting.symbol}: " if setting.symbol and setting.symbol != name else ""
    help = f"{symbol}{setting.help} ({told_default(cls, name, setting)})".replace("%", "%%")
    settings: dict[str, Any] = {"default": None, "dest": _key(setting, name), "help": help}
    if bool in kinds:
        group.add_argument(*options, action=argparse.BooleanOptionalAction, **settings)
        return
    if setting.longer:
        settings |= {"metavar": "|".join(shown_choices(setting)), "type": str}
    elif setting.choices:
        settings["choices"] = [choice for choice in setting.choices if choice]
    else:
        settings["metavar"] = setting.metavar or name.upper()
        settings["type"] = next((_TYPES[kind_of_value] for kind_of_value in kinds if kind_of_value in _TYPES), str)
    group.add_argument(*options, **settings)


def _key(setting: Setting, name: str) -> str:
    """Where argparse keeps an option's value."""
    return setting.called or name
