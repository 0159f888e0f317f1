"""What a sweep may vary: the settings that say so, and the region of interest. Made from the declarations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pie_engine.config.method import MethodConfig
from pie_engine.config.run import RunConfig
from pie_engine.config.settings import declared, default_of, type_of

# What one axis takes: a number, a name, or (dx, dy).
Value = float | int | str | tuple[int, int]
ON, OFF = "on", "off"
SEED, STEPS, MASK, METHOD = "seed", "steps", "mask", "method"


@dataclass(frozen=True)
class Axis:
    """One setting that a sweep varies.

    Attributes:
        field: of `RunConfig`; of `Item` where `region` is set; of `MethodConfig` for METHOD.
        parse: from the command line's text; raises ValueError.
        what: such values, in words.
        example: one of them.
        ordered: whether values lie on a line, so that a stretch of them means something.
        region: whether it changes the region of interest and not the settings.
    """

    field: str
    parse: Callable[[str], Value]
    what: str
    example: str
    ordered: bool = True
    region: bool = False


def _pair(text: str) -> tuple[int, int]:
    dx, dy = (int(part) for part in text.split(":"))
    return dx, dy


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return parse


def declared_axes(cls: type) -> dict[str, Axis]:
    """The settings of a class that may be varied, by what users call them."""
    axes = {}
    for name, spec in declared(cls):
        if spec.vary:
            given = (spec.example, default_of(cls, name), *spec.choices)
            example = next(value for value in given if value is not None)
            kinds = [type_of(cls, name), *getattr(type_of(cls, name), "__args__", ())]
            parse = (
                _one_of(*spec.choices) if spec.choices else next(kind for kind in (int, float, str) if kind in kinds)
            )
            called = (spec.called or name).replace("_", "-")
            axes[called] = Axis(name, parse, spec.vary, show(example), ordered=spec.on_a_line)
    return axes


def _axes() -> dict[str, Axis]:
    settings = declared_axes(RunConfig)
    # The paper's axis first; then what lies on a line; the region; names; and what repeats a cell last.
    first, last = settings.pop("strength"), settings.pop(SEED)
    on_a_line = {name: axis for name, axis in settings.items() if axis.ordered}
    return {
        "strength": first,
        **on_a_line,
        "dilate": Axis("dilate", int, "whole numbers of pixels", "4", region=True),
        "shift": Axis("shift", _pair, "pixels right and down, DX:DY", "4:0", ordered=False, region=True),
        MASK: Axis("mask", _one_of(ON, OFF), "on and off", ON, ordered=False, region=True),
        **{name: axis for name, axis in settings.items() if name not in on_a_line},
        **declared_axes(MethodConfig),
        SEED: last,
    }


def show(value: Value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


# In the order in which cells are named; the first ordered axis of a sweep is the one that its plots run along.
AXES = _axes()
