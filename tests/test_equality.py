"""Dataclasses that hold arrays answer `==` with yes or no, on every Python, and by what they mean."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pie_engine
from pie_engine import Item
from pie_engine.equality import ByContent, same
from pie_engine.imaging import Box, ImageSource, Reading, Region
from pie_engine.imaging.mapping import Lookup, Mapping, VoiLookup
from pie_engine.rounds.plan import Batch

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)
# What a field may hold that has an `==` of its own; `Regions` names an array among others.
ARRAYS, TENSORS = re.compile(r"\b(np\.ndarray|NDArray|Array|Regions)\b"), re.compile(r"\bTensor\b")


def dataclasses() -> Iterator[type]:
    """Those of the whole package, each once."""
    seen = set()
    for module in pkgutil.walk_packages(pie_engine.__path__, "pie_engine."):
        if module.name.endswith(("__main__", "._ops")):  # a library of torch's, no module
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name:
                seen.add(value)
    yield from sorted(seen, key=lambda found: (found.__module__, found.__name__))


def test_every_dataclass_that_holds_arrays_says_what_equality_it_means() -> None:
    """The one that dataclasses write by themselves asks an array for its truth."""
    found, by_content, by_identity = list(dataclasses()), set(), set()
    assert len(found) > 100
    for cls in found:
        compared = (str(field.type) for field in fields(cls) if field.compare)
        types = " ".join(kind for kind in compared if "Callable" not in kind)
        if TENSORS.search(types):
            by_identity.add(cls.__name__)
            assert cls.__eq__ is object.__eq__, f"{cls.__module__}.{cls.__name__} holds tensors: eq=False"
        elif ARRAYS.search(types):
            by_content.add(cls.__name__)
            assert cls.__eq__ is ByContent.__eq__, f"{cls.__module__}.{cls.__name__} holds arrays: eq=False, ByContent"
    assert {"Item", "Roi", "Result", "Schedule", "Mask", "Lookup", "VoiLookup"} <= by_content
    assert {"Batch", "Buffers", "Part", "Round"} <= by_identity


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (GREY, GREY.copy(), True),
        (GREY, GREY[:, :3], False),
        (GREY, GREY + 1, False),
        (GREY, GREY.astype(np.uint16), False),  # another picture: 255 is white in one alone
        (GREY, GREY.tolist(), False),
        (GREY, None, False),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True),
        (np.array(["a"]), np.array(["a"]), True),
        ([GREY, "a"], [GREY.copy(), "a"], True),
        ([GREY], (GREY,), False),
        ([GREY], [GREY, GREY], False),
        ({"a": (GREY, 1)}, {"a": (GREY.copy(), 1)}, True),
        ({"a": GREY}, {"b": GREY}, False),
        ({"a": GREY}, {"a": GREY + 1}, False),
        (1, 1.0, True),
    ],
)
def test_what_is_the_same(one: object, other: object, equal: bool) -> None:
    assert same(one, other) is same(other, one) is equal


def test_items_are_equal_by_what_they_hold() -> None:
    item = Item(GREY, "x", [Region(GREY > 3, beta=0.5), Box(0, 0, 2, 2)], keep=GREY > 9)
    again = Item(GREY.copy(), "x", [Region(GREY > 3, beta=0.5), Box(0, 0, 2, 2)], keep=GREY > 9)
    assert item == again
    for other in (
        replace(item, image=GREY + 1),
        replace(item, prompt="y"),
        replace(item, mask=[Region(GREY > 4, beta=0.5), Box(0, 0, 2, 2)]),
        replace(item, mask=None),
        replace(item, keep=None),
    ):
        assert item != other
    assert item != "x"
    assert Item(Image.fromarray(GREY), "x") == Item(Image.fromarray(GREY.copy()), "x")
    assert item in [again] and [item] == [again]


def test_what_can_be_hashed_still_is() -> None:
    named = Item(Path("a.png"), "x", "roi.png")
    assert hash(named) == hash(replace(named)) and {named: 1}[replace(named)] == 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(Item(GREY, "x"))


def test_tables_of_one_kind_alone_are_equal() -> None:
    entries = np.arange(4)
    assert Mapping(VoiLookup(entries, 0, 2)) == Mapping(VoiLookup(entries.copy(), 0, 2))
    assert Mapping(VoiLookup(entries, 0, 2)) != Mapping(VoiLookup(entries[::-1], 0, 2))
    assert Lookup(entries, 0, 2) != VoiLookup(entries, 0, 2)


def test_the_hash_of_an_image_stands_for_it() -> None:
    assert ImageSource.of(GREY, Reading()) == ImageSource.of(GREY.copy(), Reading())
    assert ImageSource.of(GREY, Reading()) != ImageSource.of(GREY + 1, Reading())


def test_what_holds_tensors_is_equal_to_itself_alone() -> None:
    batch = Batch(torch.zeros(1, 3, 8, 8), None, ["x"], ["0"])
    assert batch == batch and batch != replace(batch)
    assert hash(batch) == hash(batch)
