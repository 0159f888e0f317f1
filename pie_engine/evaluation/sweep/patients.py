"""A table of patients, as studies and cohorts take it: a CSV file with a row each."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from pie_engine.errors import InputError, mention
from pie_engine.imaging import Region
from pie_engine.imaging.item import Item

COLUMNS = ("item_id", "image", "prompt", "mask")
_NEEDED = COLUMNS[:3]
# An id names folders: no separators, no leading dot, nothing that another system reserves.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_patients(path: str | Path) -> list[Item]:
    """Read a CSV file with the columns item_id, image and prompt, and mask if there are regions of interest.

    Paths are relative to the file. An empty mask means none; `FILE:BETA` gives a region its own beta. The ids name the
    items in their noise's seed, and folders.

    Raises:
        InputError: the file cannot be read, a column is missing or unknown, or a row lacks a value, names an image or a
            mask that does not exist, or has the id of another row, or one that cannot name a folder.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
    except OSError as error:
        raise InputError(f"patients file {path} cannot be read ({error.strerror}); pass a CSV file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"patients file {path} is not UTF-8; save it in that encoding") from error
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if any(row)]
    except (ValueError, csv.Error) as error:
        what = str(error) if isinstance(error, csv.Error) else "it is empty"
        raise InputError(
            f"patients file {path} is not a table ({what}); write the columns {', '.join(COLUMNS)}"
        ) from error
    names = [name.strip() for name in header]
    missing, unknown = set(_NEEDED) - set(names), set(names) - set(COLUMNS)
    if missing or unknown or len(set(names)) < len(names):
        wrong = f"lacks the column {min(missing)}" if missing else f"has the column {min(unknown or names)!r}"
        if not missing and not unknown:
            wrong = "names a column twice"
        raise InputError(f"patients file {path} {wrong}; its first line is {','.join(_NEEDED)} or {','.join(COLUMNS)}")
    if not rows:
        raise InputError(f"patients file {path} has no patient; write a line for each")
    items: dict[str, Item] = {}
    for row in rows:
        where = f"line {len(items) + 2} of {path}"
        if len(row) != len(names):
            raise InputError(f"{where} has {len(row)} values for {len(names)} columns; put quotes around a comma")
        item = _item({name: value.strip() for name, value in zip(names, row, strict=True)}, path.parent, where)
        if item.item_id in items:
            raise InputError(f"{where} has the id {item.item_id!r} of an earlier line; give each patient its own")
        items[str(item.item_id)] = item
    return list(items.values())


def check_id(item_id: str, where: str = mention("item_id")) -> None:
    """Refuse an id that cannot name a folder. Raises InputError."""
    if not _ID.fullmatch(item_id):
        raise InputError(
            f"{where} {item_id!r} cannot name a folder; use up to 64 letters, digits, dots, hyphens and underscores"
        )


def _item(values: dict[str, str], folder: Path, where: str) -> Item:
    for name in _NEEDED:
        if not values[name]:
            raise InputError(f"{where} has no {name}; write one")
    check_id(values["item_id"], f"{where}: the id")
    image = folder / values["image"]
    if not image.is_file():
        raise InputError(f"{where} names the image {image}, which does not exist; write it relative to the file")
    return Item(image, values["prompt"], _mask(values.get("mask", ""), folder, where), values["item_id"])


def _mask(text: str, folder: Path, where: str) -> list[Region] | None:
    if not text:
        return None
    region = Region.parse(str(folder / text))
    if not Path(str(region.source)).is_file():
        raise InputError(f"{where} names the mask {region.source}, which does not exist; write it relative to the file")
    return [region]
