"""`--from PROVENANCE`: a run again, with the options that its provenance holds, on inputs that are what they were."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from pie_engine.cli.settings_file import OPTION, REGIONS, check_regions, region_pairs, to_words
from pie_engine.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.imaging import Region
    from pie_engine.imaging.item import Item

FROM = "--from"
KEY = "options"
# Options that name a model; one of them given beside takes the place of those that contradict it.
_INSTEAD = {
    "engine": ("checkpoint", "unet", "lora"),
    "checkpoint": ("engine",),
    "base": ("checkpoint", "engine"),
    "unet": ("engine",),
    "lora": ("lora",),
}


def add_from_option(parser: Any) -> None:
    """`--from`."""
    parser.add_argument(
        FROM, dest="from_", metavar="PROVENANCE",
        help="run again what this provenance.json says; options given beside it hold instead of its own",
    )  # fmt: skip


def with_provenance(words: Sequence[str]) -> list[str]:
    """The words of a command line, those of its --from PROVENANCE put before them, so that later ones hold.

    Raises:
        ConfigError: the file cannot be read, or is no provenance of a run of the command line.
    """
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == FROM and (equals or index + 1 < len(words)):
            options = _read(value if equals else words[index + 1]).options
            return [words[0], *to_words(_without_replaced(options, words)), *words[1:]]
    return list(words)


def check_inputs(arguments: argparse.Namespace, item: Item, config: RunConfig) -> None:
    """Refuse inputs that are not what they were, but for those that other options name.

    Raises:
        InputError: a file has other contents.
    """
    from pie_engine.imaging.regions.region import as_regions, content_hash

    provenance = _read(arguments.from_)
    options, inputs = provenance.options, provenance.input
    if arguments.image == options.get("image") and content_hash(item.image) != inputs.image_sha256:
        raise InputError(_changed(f"image {item.image}", "--image"))
    stored, given = check_regions(options.get(REGIONS)), region_pairs(vars(arguments))
    for name, regions, facts in (
        ("mask", as_regions(item.mask), inputs.roi.regions),
        ("keep", as_regions(item.keep), inputs.roi.keep),
    ):
        if [pair for pair in stored if _group(pair) == name] == [pair for pair in given if _group(pair) == name]:
            _check_regions(name, regions, facts)
    if arguments.schedule is not None and arguments.schedule == options.get("schedule"):
        now = None if config.schedule is None else config.schedule.to_list()
        if now != provenance.settings.get("schedule"):
            raise InputError(_changed(f"schedule {arguments.schedule}", "--schedule"))


def check_model(arguments: argparse.Namespace, hashes: dict[str, str]) -> None:
    """Refuse a model whose weights are not those of the provenance, unless other options name it.

    Raises:
        InputError: a component has other weights.
    """
    provenance = _read(arguments.from_)
    options = provenance.options
    names = ("engine", "checkpoint", "unet", "lora")
    if any((getattr(arguments, name) or None) != options.get(name) for name in names):
        return
    for name, digest in provenance.model.hashes.items():
        if hashes.get(name) != digest:
            where = options.get("engine") or options.get("unet") or options.get("checkpoint")
            raise InputError(_changed(f"{name} of {where}", "--engine or --checkpoint"))


def _check_regions(name: str, regions: Sequence[Region], facts: Sequence[dict[str, Any]]) -> None:
    from pie_engine.imaging.regions.region import content_hash

    for region, fact in itertools.zip_longest(regions, facts):
        if region is None or fact is None:
            raise InputError(f"{FROM} tells of {len(facts)} regions and has options for {len(regions)}; pass them anew")
        if isinstance(region.source, str | Path) and content_hash(region.source) != fact.get("sha256"):
            raise InputError(_changed(f"{name} {region.source}", f"--{name}"))


def _changed(what: str, option: str) -> str:
    return f"{what} is not what the run was made with (another SHA-256); put it back, or pass another with {option}"


class _Read(BaseModel, defer_build=True):
    """What is read of a provenance.json, which may be anybody's. Most commands read none, so nothing is built yet."""


class _Roi(_Read):
    regions: list[dict[str, Any]] = []
    keep: list[dict[str, Any]] = []


class _Input(_Read):
    image_sha256: str
    roi: _Roi = _Roi()


class _Model(_Read):
    hashes: dict[str, str]


class _Provenance(_Read):
    options: dict[str, Any]
    settings: dict[str, Any]
    input: _Input
    model: _Model


def _read(path: str) -> _Provenance:
    try:
        provenance = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(provenance, dict) or "settings" not in provenance:
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{FROM} {path} cannot be read ({error}); pass the provenance.json of a run") from error
    if not isinstance(provenance.get(KEY), dict):
        raise ConfigError(
            f"{FROM} {path} holds no {KEY}: it is not of pie-engine run, or of an earlier version; pass the options, "
            f"or {OPTION} FILE"
        )
    try:
        return _Provenance.model_validate(provenance, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{FROM} {path} is not what a run writes ({where}: {first['msg']}); pass the provenance.json of a run"
        ) from None


def _without_replaced(options: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Options that do not add to those given on the command line, where these take their place."""
    given = {word.partition("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    replaced = {other for name in given for other in _INSTEAD.get(name, ())}
    groups = {_group({name: ""}) for name in given}
    kept = {name: value for name, value in options.items() if name not in replaced and name != "output"}
    if REGIONS in kept:
        kept[REGIONS] = [pair for pair in check_regions(kept[REGIONS]) if _group(pair) not in groups]
    return kept


def _group(pair: dict[str, Any]) -> str:
    """Which regions a pair of `regions` belongs to: "mask" or "keep"; another option's own name."""
    name = next(iter(pair))
    return "mask" if name == "finding" else name.partition("_")[0] if name.startswith(("mask", "keep")) else name
