"""`--config FILE` and `--print-config`: the options of a command as a file, so that a run can be repeated.

The file is a mapping (YAML or JSON) of options without their hyphens, in Python's spelling or the command line's, to
values; true and false for switches, and a list for what may be given several times. Options whose order matters stand
in one list, `regions`, as single pairs: {mask: roi.png}, {finding: Pneumonia}. What stands on the command line goes
before what the file says.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pie_engine.config.settings import declared
from pie_engine.errors import ConfigError, quoted

OPTION, PRINT = "--config", "--print-config"
REGIONS = "regions"
# What regions are made of, by where argparse keeps them.
_ORDERED = {"mask": {"file": "mask", "label": "mask-label"}, "keep": {"file": "keep", "label": "keep-label"}}
# What a command does with its result, which is not how the result comes about.
_LEFT_OUT = {"command", "main", "own_parser", "debug", "quiet", "json", "print_config", "config", "resume", "from_"}


def add_config_options(parser: Any) -> None:
    """`--config` and `--print-config`."""
    parser.add_argument(OPTION, metavar="FILE", help="take options from this YAML or JSON file (see --print-config)")
    parser.add_argument(
        PRINT, action="store_true", help="print all options as they hold, as a file for --config, and stop there"
    )


def with_file(words: Sequence[str]) -> list[str]:
    """The words of a command line, those of its --config FILE put before them, so that later ones hold.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping.
    """
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == OPTION and (equals or index + 1 < len(words)):
            rest = [*words[1:index], *words[index + (1 if equals else 2) :]]
            return [words[0], *to_words(read(value if equals else words[index + 1])), *rest]
    return list(words)


def read(path: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises ConfigError: there is none."""
    import yaml  # JSON is YAML

    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date that there is not
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"config {path} cannot be read ({reason}); write one with --print-config") from error
    if not isinstance(options, dict):
        raise ConfigError(f"config {path} holds no mapping of options; write one with --print-config")
    return options


def to_words(options: dict[str, Any]) -> list[str]:
    """A mapping as a command line has it.

    Raises:
        ConfigError: a value is not a number, a text or a list of these, or `regions` is not a list of single pairs.
    """
    words: list[str] = []
    for name, value in options.items():
        if name == REGIONS:
            for pair in check_regions(value):
                words += to_words(pair)
            continue
        option = f"--{str(name).replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        else:
            words += [f"{option}={_scalar(str(name), one)}" for one in (value if isinstance(value, list) else [value])]
    return words


def check_regions(value: Any) -> list[dict[str, Any]]:
    """What stands under `regions`. Raises ConfigError: it is not a list of single pairs."""
    pairs = [] if value is None else value
    if not isinstance(pairs, list) or any(
        not isinstance(pair, dict) or len(pair) != 1 or REGIONS in pair for pair in pairs
    ):
        raise ConfigError(f"{REGIONS} is not a list of single pairs; write [{{mask: roi.png}}]")
    return pairs


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, dict | list | tuple | set):
        kind = type(value).__name__
        raise ConfigError(f"{quoted(name)} has a {kind} for its value; write a number, a text or a list of these")
    return value


def to_text(arguments: argparse.Namespace, resolved: Sequence[Any]) -> str:
    """The options of a command as they hold, as YAML; see `to_mapping`."""
    import yaml

    head = f"# pie-engine {arguments.command} --config FILE\n"
    return head + yaml.safe_dump(to_mapping(arguments, resolved), sort_keys=False, allow_unicode=True, width=10_000)


def to_mapping(arguments: argparse.Namespace, resolved: Sequence[Any]) -> dict[str, Any]:
    """The options of a command as they hold, as a file has them: those given, and all settings of `resolved`."""
    parser = arguments.own_parser
    values = {name: value for name, value in vars(arguments).items() if name not in _LEFT_OUT}
    settings: dict[str, Any] = {}
    for config in resolved:
        for name, setting in declared(type(config)):
            key = setting.called or name
            if setting.parse is None:  # what is read from a file keeps its file's name
                values.pop(key, None)
                settings[_option(parser, key)] = getattr(config, name)
    regions = region_pairs(values)
    for name in _ORDERED:
        values.pop(name, None)
    given = {_option(parser, name): _plain(value) for name, value in values.items()}
    options = {name: value for name, value in given.items() if value not in (None, [])}
    if regions:
        options[REGIONS] = regions
    return {**options, **{name: _plain(value) for name, value in settings.items() if value is not None}}


def region_pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """All regions among a command's values, as a file has them."""
    return [pair for name in _ORDERED for pair in _pairs(name, values.get(name))]


def _option(parser: argparse.ArgumentParser, key: str) -> str:
    """An option's name by where argparse keeps its value."""
    for action in parser._actions:
        if action.dest == key and action.option_strings:
            return action.option_strings[0].removeprefix("--").replace("-", "_")
    return key


def _pairs(name: str, words: list[tuple[str, str]] | None) -> list[dict[str, str]]:
    """Regions in their order."""
    pairs = []
    for kind, text in words or []:
        option = _ORDERED[name].get(kind, kind if kind == "finding" else f"{name}-{kind}")
        pairs.append({option.replace("-", "_"): text})
    return pairs


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return [_plain(one) for one in value] if isinstance(value, list) else value
