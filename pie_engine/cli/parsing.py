"""The parser of the command line: its spellings, and refusals of one line that name the nearest word there is."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn

from pie_engine.cli.spelling import as_option
from pie_engine.config import RunConfig
from pie_engine.config.settings import declared
from pie_engine.errors import ConfigError

# The published script's spellings, beside those that settings declare. Underscores are accepted in every option.
_ALIASES = {
    **{
        f"--{spelling}": f"--{as_option(setting.called or name, None)}"
        for name, setting in declared(RunConfig)
        for spelling in setting.published
    },
    "--image-path": "--image",
    "--mask-path": "--mask",
    "--output-dir": "--output",
    "--output-path": "--output",
    "--pretrained-model-name-or-path": "--checkpoint",
    "--finetuned-path": "--unet",
    "-o": "--output",
}


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other error, instead of after twenty lines of usage."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        names, colon, problem = message.partition(": ")
        option = names.partition("/")[0] if names.startswith("--") else names
        message = option + colon + problem
        if problem == "expected one argument":
            message += f" (one that begins with a hyphen is written {option}=VALUE)"
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse(parser: argparse.ArgumentParser, words: Sequence[str], filed: Sequence[str]) -> argparse.Namespace:
    """The command and its options.

    Args:
        words: as they were written, by `canonical`.
        filed: the same with those of a settings file put before them.

    Raises:
        ConfigError: see `Parser`; a command or an option that there is not, with the nearest; an option that is given
            by two of its names.
    """
    if words and words[0].startswith("-"):
        _refuse_options_first(parser, words)
        return parser.parse_args(words)
    if words:
        command = _command(parser, words[0])
        _refuse_unknown(command, filed)
        _refuse_two_names(command, words)
    arguments, rest = parser.parse_known_args(filed)
    if rest:
        raise ConfigError(f"unrecognized arguments: {' '.join(rest)}; see {arguments.own_parser.prog} --help")
    return arguments


def canonical(words: Sequence[str]) -> list[str]:
    """Spell every option the engine's way: hyphens for underscores, then the aliases.

    A negative number, or a list that begins with one, is tied to its option by "=": argparse takes -1e-3, -inf and
    -5,0 for options of their own. "help COMMAND" becomes "COMMAND --help".
    """
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    spelled: list[str] = []
    for index, word in enumerate(words):
        if word == "--":
            return [*spelled, *words[index:]]
        if word in _ALIASES or word.startswith("--"):
            option, equals, value = word.partition("=")
            option = option.replace("_", "-")
            word = _ALIASES.get(option, option) + equals + value
        elif spelled and spelled[-1].startswith("--") and "=" not in spelled[-1] and _is_negative_number(word):
            spelled[-1] += f"={word}"
            continue
        spelled.append(word)
    return spelled


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands' parsers by their names, in order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def _command(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    known = commands_of(parser)
    if name in known:
        return known[name]
    nearest = _nearest(name, known) or f"it is one of {', '.join(known)}; "
    raise ConfigError(f"there is no command {name!r}; {nearest}see {parser.prog} --help")


def _refuse_options_first(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    option = words[0].partition("=")[0]
    if option in _options(parser):
        return
    owner = next((word for word in words if word in commands_of(parser)), None)
    remedy = f"write it after {owner}" if owner else "write a command first"
    raise ConfigError(f"{option} stands before any command; {remedy}; see {parser.prog} --help")


def _refuse_unknown(command: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Before argparse looks for what is required: the option that is misspelled may be just that."""
    options = _options(command)
    for option, rest in _given(words):
        if option not in options:
            nearest = _nearest(option, options)
            said = " ".join([option, *rest])
            raise ConfigError(f"there is no option {said}; {nearest}see {command.prog} --help")


def _refuse_two_names(command: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """By one name the later value holds, as a settings file needs; by two, one of them would be lost unseen."""
    options = _options(command)
    names: dict[str, str] = {}
    for option, _ in _given(words):
        action = options[option]
        first = names.setdefault(action.dest, option)
        switch = isinstance(action, argparse.BooleanOptionalAction)
        # Actions that share a place and differ, such as --mask and --mask-box, each add to it.
        if first != option and not switch and first in action.option_strings:
            extra = "; a fine-tuned U-Net over a base is --unet" if action.dest == "checkpoint" else ""
            raise ConfigError(f"{first} and {option} are two names of one option; pass one of them{extra}")


def _given(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The options among a command's words, each with the word after it if that may be its value."""
    for index, word in enumerate(words[1:], 1):
        if word == "--":
            return
        if word.startswith("--") and " " not in word.partition("=")[0]:  # argparse's own rule
            option, equals, value = word.partition("=")
            following = words[index + 1 : index + 2]
            yield option, [value] if equals else [one for one in following if not one.startswith("-")]


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return parser._option_string_actions


def _nearest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _is_negative_number(word: str) -> bool:
    try:
        for part in word.split(","):
            float(part)
    except ValueError:
        return False
    return word.startswith("-")
