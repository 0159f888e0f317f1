"""`pie-engine demo`: the main job on the checkpoint that ships with the package."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> argparse.ArgumentParser:
    return commands.add_parser("demo", help="placeholder")


def main(arguments: argparse.Namespace) -> int:
    return 0
