"""Ids of the items of one call: what noise is drawn by, and results are kept by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pie_engine.errors import InputError, Notice, argument, mention
from pie_engine.imaging.image import read_stored
from pie_engine.imaging.item import ALONE, Item
from pie_engine.imaging.limits import check_regular
from pie_engine.imaging.regions.region import content_hash

log = logging.getLogger(__name__)


def check_item_ids(items: Sequence[Item]) -> list[Item]:
    """The items of one call, each with an id: one id names one image, for noise is drawn and results are kept by it.

    Several items without an id take the first 16 digits of their image's SHA-256, and which frame or slice of it they
    are. So two prompts for one image share its noise, and can be compared.

    Raises:
        InputError: two images have one id; or an image without an id cannot be read.
    """
    if len(items) == 1:
        return [item if item.item_id is not None else replace(item, item_id=ALONE) for item in items]
    named = [item if item.item_id is not None else replace(item, item_id=_content_id(item)) for item in items]
    by_id: dict[str | None, list[int]] = {}
    for index, item in enumerate(named):
        by_id.setdefault(item.item_id, []).append(index)
    for item_id, (first, *others) in by_id.items():
        for other in others:
            if _content_id(named[other]) != _content_id(named[first]):
                raise InputError(
                    f"items {first + 1} and {other + 1} have the {mention('item_id')} {item_id!r} and different "
                    f"images, which would share their noise; pass {argument('item_id')} that differ, or none",
                    field="item_id", value=item_id,
                )  # fmt: skip
        if others and items[first].item_id is None:
            log.warning(
                Notice(
                    f"%d items have one image and no {mention('item_id')}: they share its noise and the id %s; pass "
                    f"{argument('item_id')} where their results are kept by it"
                ),
                1 + len(others), item_id,
            )  # fmt: skip
    return named


def _content_id(item: Item) -> str:
    """An id of the image's content, which can name a folder. Raises InputError: it cannot be read."""
    image, reading = item.image, item.reading
    try:
        if isinstance(image, str | Path):
            check_regular(Path(image), "image", "pass the path of an image")
        digest = content_hash(image)
    except (OSError, ValueError):
        read_stored(image, reading=reading)  # says what is wrong, and what to pass
        raise
    parts = [(name, getattr(reading, name)) for name in ("frame", "axis", "slice")]
    return "-".join([digest[:16], *(f"{name}{value}" for name, value in parts if value is not None)])
