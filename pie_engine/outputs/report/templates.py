"""The templates of this folder, rendered with every value escaped: prompts, names and ids may hold anything."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def read_asset(name: str) -> str:
    """A file of this folder."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def render(name: str, **values: Any) -> Markup:
    """A template with its values; what it gives may stand in another."""
    # The environment has escaped every value.
    return Markup(_ENVIRONMENT.get_template(name).render(values))  # nosec B704


_ENVIRONMENT = Environment(
    loader=FunctionLoader(read_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["px"] = lambda value: f"{value:.2f}"
