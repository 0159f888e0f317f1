"""Checks of one value: each refusal names the value, the limit and the remedy."""

from __future__ import annotations

import math

from pie_engine.errors import ConfigError, mention

# Pixels of a side. Stable Diffusion v1.x was trained at 512, and attention grows with the fourth power of the side.
MAX_RESOLUTION = 2048


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is none of `allowed`. Raises ConfigError."""
    if value not in allowed:
        limit = ", ".join(allowed)
        raise ConfigError(
            f"{mention(name)} {value!r} is unknown; pass one of {limit}", field=name, value=value, limit=limit
        )


def number(name: str, value: object, low: float, high: float, remedy: str, *, open_low: bool = False) -> None:
    """Refuse what is no finite number in [low, high], or in (low, high] with `open_low`. Raises ConfigError."""
    # bool is an int in Python; a flag passed as a number is a caller's mistake, not a 1.
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == math.inf:
        what = "a finite number"
        raise ConfigError(f"{mention(name)} {value!r} is not {what}; {remedy}", field=name, value=value, limit=what)
    if value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        limits = f"{low:g}, {high:g}" if isinstance(high, float) else f"{low}, {high}"
        limit = f"{left}{limits}]"
        raise ConfigError(f"{mention(name)} {value} is outside {limit}; {remedy}", field=name, value=value, limit=limit)


def integer(name: str, value: object, low: int, high: int, remedy: str) -> None:
    """Refuse what is no whole number in [low, high]. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int):
        what = "a whole number"
        raise ConfigError(f"{mention(name)} {value!r} is not {what}; {remedy}", field=name, value=value, limit=what)
    number(name, value, low, high, remedy)
