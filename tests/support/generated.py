"""Files as strangers may write them: hypothesis strategies, each a known file with some of it changed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

# What breaks programs, before anything random: bounds, wrong signs, wrong kinds, numbers that are none.
EDGES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 17, 64, 10**5, 10**9, 2**63, -(2**63) - 1, 10**40, 0.0, -0.0, 0.5, 1e-320,
    1e300, -1e300, float("inf"), float("-inf"), float("nan"), "", "x", "0", "\0", "\ud800", "a" * 5000, "../../etc", [],
    {}, [[]], [None], [0], [-1], [1] * 50, ["x"] * 50, {"": ""}, {"a": {"b": [1]}},
]  # fmt: skip
VALUES = st.sampled_from(EDGES).map(copy.deepcopy) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 40) | st.floats(-2, 2)


def _paths(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(path for key, part in inner for path in _paths(part, (*place, key)))]


@st.composite
def changed(draw: st.DrawFn, original: dict[str, Any], *, most: int = 3) -> dict[str, Any]:
    """The value with up to `most` of its parts replaced, dropped, or others put beside them."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(_paths(value)[1:] or [("a",)]))
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if isinstance(holder, dict):
            action = draw(st.sampled_from(["replace", "replace", "number", "drop", "add"]))
            if action == "drop":
                holder.pop(path[-1], None)
            elif action == "add":
                holder[draw(st.text(max_size=10))] = draw(VALUES)
            else:
                holder[path[-1]] = draw(NUMBERS if action == "number" else VALUES)
        else:
            holder[path[-1]] = draw(VALUES)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them changed, cut or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["set", "set", "cut", "insert", "double"]))
        if action == "set" and data:
            data[place] = draw(st.integers(0, 255))
        elif action == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif action == "insert":
            data[place:place] = draw(st.binary(max_size=16))
        else:
            data[place:place] = data[place : place + 32]
    return bytes(data)
