"""What it means that two values are equal where they hold arrays, whose own `==` gives an array and no answer."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


class ByContent:
    """Equality of a dataclass that holds arrays: of one class, and all fields that compare are `same`.

    For `@dataclass(eq=False)`, which else writes its own `==`. What holds torch's tensors is a place to compute in, and
    equal to itself alone: `eq=False` without this.
    """

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(same(getattr(self, name), getattr(other, name)) for name in _compared(self))

    def __hash__(self) -> int:  # raises TypeError where a field has no hash, as arrays have none
        return hash(tuple(getattr(self, name) for name in _compared(self)))


def same(one: Any, other: Any) -> bool:
    """Equal; arrays if type, shape and elements are, NaN being equal to itself; lists, tuples and dicts by theirs."""
    if one is other:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype):
            return False
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        alike = isinstance(one, list) == isinstance(other, list) and len(one) == len(other)
        return alike and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def _compared(value: Any) -> list[str]:
    return [field.name for field in fields(value) if field.compare]
