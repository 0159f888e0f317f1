"""`pie-engine`: parse, run one command, and turn what goes wrong into one line.

Nothing heavy is imported here: `pie-engine --help` answers in well under a second.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from pie_engine import __version__
from pie_engine.cli import (
    align,
    bench,
    build,
    clean,
    compare,
    converge,
    demo,
    doctor,
    ensemble,
    evaluate,
    inspect,
    mask,
    refit,
    run,
    sweep,
    view,
)
from pie_engine.cli.settings_file import with_file
from pie_engine.cli.spelling import LogFormatter, as_option, one_line
from pie_engine.config import RunConfig
from pie_engine.config.settings import declared
from pie_engine.errors import ConfigError, PieError

# The published script's spellings, beside those that settings declare. Underscores are accepted in every option.
_ALIASES = {
    **{
        f"--{spelling}": f"--{as_option(own.called or name, None)}"
        for name, own in declared(RunConfig)
        for spelling in own.published
    },
    "--image-path": "--image",
    "--mask-path": "--mask",
    "--output-dir": "--output",
    "--output-path": "--output",
    "--pretrained-model-name-or-path": "--checkpoint",
    "--base": "--checkpoint",
    "--finetuned-path": "--unet",
    "-o": "--output",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for anything the user can mend, 130 after an interrupt (143 after SIGTERM), 1 for a bug.
    """
    words = _canonical(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].addFilter(_once())
    logging.getLogger().handlers[0].setFormatter(LogFormatter("pie-engine: %(message)s"))
    if not debug:
        _silence_libraries()
    try:
        with _interruptible():
            arguments = _parse(_canonical(with_file(words)))
            code = arguments.main(arguments)
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output went away, which is its right; Python would complain when it flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        number, *said = interrupt.args or (signal.SIGINT,)
        return _fail(said[0] if said else "interrupted; nothing was written", 128 + number)
    except Exception as error:
        if debug:
            raise
        return _fail(*_explain(error))
    finally:
        _remove_compiler_folder()


def _remove_compiler_folder() -> None:
    """torch makes a folder for what it compiles as soon as its compiler is imported, which exporting does.

    Nobody asked for it while it is empty; with `compile` it holds what the next run need not compile again.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))  # torch sets it then
    if "torch._dynamo" in sys.modules and folder.name.startswith("torchinductor_"):
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def _explain(error: Exception) -> tuple[str, int]:
    """One line and an exit code: 2 for what the user can mend, 1 for a bug."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, PieError):
        return error.told(as_option), 2
    # PyTorch's own out-of-memory errors are RuntimeErrors, told apart by name (GPU) or text (CPU).
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in first:
        return "out of memory; lower --resolution or close other programs", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.filename or first}); free some space, or set TMPDIR to another disk", 2
    return f"internal error ({type(error).__name__}: {first}); run again with --debug and report it", 1


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM (kill, a batch system's time limit) clean up as Ctrl-C does, and let neither get lost.

    A library that is interrupted while it is imported may raise something else instead.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt(number)

    replaced = {}
    if threading.current_thread() is threading.main_thread():
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) == default:
                replaced[number] = signal.signal(number, stop)
    try:
        yield
    except Exception:
        if received:
            raise KeyboardInterrupt(received[0]) from None
        raise
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other error, instead of after twenty lines of usage."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        option, _, problem = message.partition(": ")
        if problem == "expected one argument":
            message += f" (one that begins with a hyphen is written {option}=VALUE)"
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parse(words: list[str]) -> argparse.Namespace:
    """The command and its options. Raises ConfigError: see `_Parser`; an option that there is not, with the nearest."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    for option, other in (("--checkpoint", "--base"),):
        if sum(word.partition("=")[0] == option for word in words) > 1:
            raise ConfigError(f"{option} is given twice ({other} is another name of it); pass one checkpoint")
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        own = arguments.own_parser
        options = [option for action in own._actions for option in action.option_strings]
        close = get_close_matches(unknown[0].partition("=")[0], options, n=1)
        nearest = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; {nearest}see {own.prog} --help")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pie-engine",
        description="Simulated disease progression in one patient's image (PIE, arXiv 2309.11745). Research use only.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pie-engine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands_in_order = (
        build, refit, inspect, run, mask, view, evaluate, compare, align, converge, ensemble, sweep, bench, demo,
        doctor, clean,
    )  # fmt: skip
    for command in commands_in_order:
        added = command.add_parser(commands)
        added.add_argument("--debug", action="store_true", help="show tracebacks and libraries' warnings")
        added.set_defaults(main=command.main, own_parser=added)
    return parser


def _canonical(argv: Sequence[str]) -> list[str]:
    """Spell every option the engine's way: hyphens for underscores, then the aliases.

    A negative number, or a list that begins with one, is tied to its option by "=": argparse takes -1e-3, -inf and
    -5,0 for options of their own.
    """
    words: list[str] = []
    for index, word in enumerate(argv):
        if word == "--":
            return [*words, *argv[index:]]
        if word in _ALIASES or word.startswith("--"):
            option, equals, value = word.partition("=")
            option = option.replace("_", "-")
            word = _ALIASES.get(option, option) + equals + value
        elif words and words[-1].startswith("--") and "=" not in words[-1] and _is_negative_number(word):
            words[-1] += f"={word}"
            continue
        words.append(word)
    return words


def _once() -> Callable[[logging.LogRecord], bool]:
    """A log filter that drops repetitions: an image is read twice, before a model is loaded and by the engine."""
    said: set[str] = set()

    def fresh(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in said
        said.add(line)
        return new

    return fresh


def _is_negative_number(word: str) -> bool:
    try:
        for part in word.split(","):
            float(part)
    except ValueError:
        return False
    return word.startswith("-")


def _silence_libraries() -> None:
    import warnings

    warnings.simplefilter("ignore")
    for name in ("diffusers", "transformers", "torch", "onnxscript", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _fail(message: str, code: int) -> int:
    # Names and manifests may hold line breaks and terminal codes; the message stays one plain line.
    sys.stderr.write(f"pie-engine: error: {one_line(message)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
