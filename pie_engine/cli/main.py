"""`pie-engine`: parse, run one command, and turn what goes wrong into one line.

Nothing heavy is imported here: `pie-engine --help` answers in well under a second.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from pie_engine import __version__
from pie_engine.cli import build, demo, run
from pie_engine.errors import PieError

# The published script's spellings. Underscores are accepted in every option.
_ALIASES = {
    "--step": "--steps",
    "--image-path": "--image",
    "--mask-path": "--mask",
    "--output-dir": "--output",
    "--output-path": "--output",
    "--pretrained-model-name-or-path": "--checkpoint",
    "--base": "--checkpoint",
    "--finetuned-path": "--unet",
    "--scale": "--guidance-scale",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 2 for anything the user can mend, 130 after an interrupt, 1 for a bug.
    """
    arguments = _parser().parse_args(_canonical(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.WARNING, format="pie-engine: %(message)s", stream=sys.stderr, force=True)
    if not arguments.debug:
        _silence_libraries()
    try:
        return arguments.main(arguments)
    except PieError as error:
        if arguments.debug:
            raise
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    except BrokenPipeError:
        return 0  # the reader of our output went away, which is its right
    except MemoryError:
        return _fail("out of memory; lower --resolution or close other programs", 2)
    except Exception as error:
        if arguments.debug:
            raise
        first = (str(error).splitlines() or [""])[0]
        return _fail(f"internal error ({type(error).__name__}: {first}); run again with --debug and report it", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pie-engine",
        description="Simulated disease progression in one patient's image (PIE, arXiv 2309.11745). Research use only.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pie-engine {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (build, run, demo):
        added = command.add_parser(commands)
        added.add_argument("--debug", action="store_true", help="show tracebacks and libraries' warnings")
        added.set_defaults(main=command.main)
    return parser


def _canonical(argv: Sequence[str]) -> list[str]:
    """Spell every option the engine's way: hyphens for underscores, then the aliases."""
    words: list[str] = []
    for index, word in enumerate(argv):
        if word == "--":
            return [*words, *argv[index:]]
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            option = option.replace("_", "-")
            word = _ALIASES.get(option, option) + equals + value
        words.append(word)
    return words


def _silence_libraries() -> None:
    import warnings

    warnings.simplefilter("ignore")
    for name in ("diffusers", "transformers", "torch", "onnxscript", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"pie-engine: error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
