"""The axes of a sweep, and the cells of their grid: each value checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from pie_engine.config import METHOD_OPTIONS, METHODS, MethodConfig
from pie_engine.config.axes import AXES, MASK, METHOD, OFF, ON, SEED, Axis, Value, show
from pie_engine.config.checks import one_of
from pie_engine.errors import ConfigError, use
from pie_engine.imaging.item import Item

if TYPE_CHECKING:
    from pie_engine.config import RunConfig

Grid = Mapping[str, Sequence[Value]]


def parse_axis(text: str) -> tuple[str, tuple[Value, ...]]:
    """Read "strength=0.1,0.2" as ("strength", (0.1, 0.2)).

    Raises:
        ConfigError: an unknown axis, no value, or one that cannot be read.
    """
    name, equals, listed = text.partition("=")
    name = name.strip().replace("_", "-")
    axis = _axis(name)
    if not equals or not listed.strip():
        raise ConfigError(f"grid '{text}' has no values; pass {use('grid', _example(name, axis))}")
    values = []
    for word in listed.split(","):
        try:
            values.append(axis.parse(word.strip()))
        except ValueError:
            raise ConfigError(
                f"grid {name} has '{word.strip()}', which is not one of its values ({axis.what}); "
                f"pass {use('grid', _example(name, axis))}"
            ) from None
    return name, tuple(values)


def parse_grid(texts: Sequence[str], seeds: str | None = None) -> dict[str, tuple[Value, ...]]:
    """Several axes; `seeds` is the short form of a seed axis.

    Raises:
        ConfigError: an axis twice; and see `parse_axis`.
    """
    grid: dict[str, tuple[Value, ...]] = {}
    for text in [*texts, *([] if seeds is None else [f"{SEED}={seeds}"])]:
        name, values = parse_axis(text)
        if name in grid:
            raise ConfigError(f"grid {name} is given twice; list all of its values in one")
        grid[name] = values
    return grid


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        values: by axis, in the order of `AXES`.
    """

    values: dict[str, Value]

    @property
    def name(self) -> str:
        """Names its folder: "strength=0.1_mask=on"; "as-given" where nothing is varied."""
        return "_".join(f"{name}={show(value)}" for name, value in self.values.items()) or "as-given"

    @property
    def label(self) -> str:
        """The same for people."""
        return ", ".join(f"{name} {show(value)}" for name, value in self.values.items()) or "the settings as given"

    def config(self, base: RunConfig) -> RunConfig:
        """The settings of its runs. Raises ConfigError: a value is out of range, or contradicts another."""
        settings: dict[str, Any] = {
            AXES[name].field: value for name, value in self.values.items() if not AXES[name].region and name != METHOD
        }
        return replace(base, **settings)

    def method(self, options: Mapping[str, Any]) -> MethodConfig:
        """What gives its frames, with those of the options that belong to it. Raises ConfigError: it lacks one."""
        name = str(self.values.get(METHOD, METHODS[0]))
        return MethodConfig(name, **{one: value for one, value in options.items() if name in METHOD_OPTIONS[one]})

    def item(self, item: Item) -> Item:
        """What it simulates of a patient."""
        region: dict[str, Any] = {
            AXES[name].field: value for name, value in self.values.items() if AXES[name].region and name != MASK
        }
        if self.values.get(MASK) == OFF:
            region = {"mask": None, "keep": None, "dilate": 0, "shift": (0, 0), "components": None}
        return replace(item, **region)


def make_cells(grid: Grid) -> list[Cell]:
    """Every combination of the axes' values but for the seeds, which repeat each cell.

    Raises:
        ConfigError: an unknown axis, an empty one, a value twice, or axes that contradict each other.
    """
    for name, values in grid.items():
        _axis(name)
        if not values:
            raise ConfigError(f"grid {name} has no values; pass {use('grid', _example(name, AXES[name]))}")
        shown = [show(value) for value in values]
        for one in shown:
            if shown.count(one) > 1:
                raise ConfigError(f"grid {name} has {one} twice; give each value once")
    for value in grid.get(METHOD, ()):
        one_of("grid method", value, METHODS)
    for value in grid.get(MASK, ()):
        one_of("grid mask", value, (ON, OFF))
    if OFF in grid.get(MASK, ()):
        for name in ("dilate", "shift"):
            if name in grid:
                raise ConfigError(f"grid mask=off leaves no region to {name}; sweep {name} without mask=off")
    axes = [name for name in AXES if name in grid and name != SEED]
    return [Cell(dict(zip(axes, values, strict=True))) for values in product(*(grid[name] for name in axes))]


def _example(name: str, axis: Axis | None = None) -> str:
    """An axis as it is written, with a value."""
    return f"{name}={'0.1,0.5' if axis is None else axis.example}"


def _axis(name: str) -> Axis:
    if name not in AXES:
        raise ConfigError(
            f"grid axis '{name}' is unknown (one of {', '.join(AXES)}); pass {use('grid', _example('strength'))}"
        )
    return AXES[name]
