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
from pathlib import Path

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
from pie_engine.cli.completion import add_completion_option
from pie_engine.cli.parsing import Parser, canonical, parse
from pie_engine.cli.repeat import with_provenance
from pie_engine.cli.settings_file import with_file
from pie_engine.cli.spelling import LogFormatter, as_option, one_line
from pie_engine.errors import PieError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for anything the user can mend, 130 after an interrupt (143 after SIGTERM), 1 for a bug.
    """
    words = canonical(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].addFilter(_once())
    logging.getLogger().handlers[0].setFormatter(LogFormatter("pie-engine: %(message)s"))
    if not debug:
        _silence_libraries()
    try:
        with _interruptible():
            arguments = parse(_parser(), words, canonical(with_provenance(with_file(words))))
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pie-engine",
        description="Simulated disease progression in one patient's image (PIE, arXiv 2309.11745). Research use only.",
        epilog="pie-engine help COMMAND lists a command's options.",
        allow_abbrev=False,
    )
    add_completion_option(parser)
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


def _once() -> Callable[[logging.LogRecord], bool]:
    """A log filter that drops repetitions: an image is read twice, before a model is loaded and by the engine."""
    said: set[str] = set()

    def fresh(record: logging.LogRecord) -> bool:
        line = record.getMessage()
        new = line not in said
        said.add(line)
        return new

    return fresh


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
