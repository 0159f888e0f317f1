"""The options that say whether PIE or a baseline gives the frames, for every command that runs one."""

from __future__ import annotations

import argparse
from typing import Any

from pie_engine.cli.options import add_settings, settings_from
from pie_engine.config import METHOD_OPTIONS, MethodConfig


def add_method_options(group: Any) -> None:
    """The options of `MethodConfig`."""
    add_settings(group, MethodConfig)


def add_baseline_options(group: Any) -> None:
    """What single baselines need to know."""
    add_settings(group, MethodConfig, only=METHOD_OPTIONS)


def method_from(arguments: argparse.Namespace) -> MethodConfig:
    """The method that the options ask for, validated."""
    return settings_from(arguments, MethodConfig)
