"""How a setting is declared: once, on its field. From there come its validation, the command line's option with its
help, the axis of a sweep, the label in a report, the table in the docs, and the schema.

    @settings
    class RunConfig:
        strength: float = setting("share of the schedule per round", default=0.5, low=0.0, open_low=True, high=1.0,
                                  symbol="gamma", label="Strength", vary="numbers")

A class of settings is a frozen pydantic dataclass: equal by value, copied by `dataclasses.replace`, strict about types,
and without fields that nobody declared. What it refuses is a `ConfigError` that names all fields that are at fault.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, get_origin

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from pie_engine.errors import ConfigError, PieError, mention, use

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What is declared of one field.

    Attributes:
        help: what it means, in a few words; without a full stop.
        low, high: limits; None for none.
        open_low: whether `low` itself is refused.
        choices: the names that it may be; empty for any.
        longer: the one of the choices that may go on after a colon, and how: "even:CLASSIFIER"; empty where none may.
        example: what a remedy passes; the default, where that is a value.
        open: what the default None stands for, in words.
        symbol: the paper's (arXiv 2309.11745).
        unit: of the value.
        label: in a report.
        vary: such values in words, where a sweep may vary it; empty where it may not.
        on_a_line: whether values of a sweep lie on a line, so that a stretch of them means something.
        published: spellings of the published script, beside its own.
        also: other names of the option that users give it by.
        metavar: how a value is called in a help text.
        called: what users call it where that is not the field's name.
        parse: makes the value of what a command line or a file gives; None takes it as it is.
    """

    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[str, ...] = ()
    longer: str = ""
    example: Any = None
    open: str = ""
    symbol: str = ""
    unit: str = ""
    label: str = ""
    vary: str = ""
    on_a_line: bool = True
    published: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    metavar: str = ""
    called: str = ""
    parse: Callable[[str], Any] | None = None


def setting(help: str, *, default: Any = ..., compare: bool = True, **declared: Any) -> Any:
    """A field: its meaning, its default, and what else `Setting` has.

    Args:
        default: without one the field is needed.
        compare: whether settings that differ in it alone are unequal.
    """
    spec = Setting(help, **declared)
    bounds: dict[str, Any] = {}
    if spec.low is not None:
        bounds["gt" if spec.open_low else "ge"] = spec.low
    if spec.high is not None:
        bounds |= {"le": spec.high, "allow_inf_nan": False} if isinstance(spec.high, float) else {"le": spec.high}
    extra: dict[str, Any] = {}
    if spec.longer:
        extra["pattern"] = f"^({'|'.join(spec.choices)}|{spec.longer.partition(':')[0]}:.+)$"
    elif spec.choices:
        extra["enum"] = [*spec.choices, *([None] if default is None else [])]
    field = pydantic.Field(default, description=spec.help, json_schema_extra=extra or None, **bounds)
    field.metadata.append(spec)
    return field if compare else dataclasses.field(default=field, compare=False)


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def settings(cls: type[T]) -> type[T]:
    """Make a class of settings of a class whose fields are declared by `setting`.

    Raises (the class's constructor):
        ConfigError: values of another type, outside their limits, or that contradict each other, all in one line.
    """
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    made: Any = pydantic_dataclass(frozen=True, config=config)(cls)
    validated, names = made.__init__, list(made.__pydantic_fields__)

    @functools.wraps(validated)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            validated(
                self,
                *(_frozen(made, name, value) for name, value in zip(names, values, strict=False)),
                *values[len(names) :],
                **{name: _frozen(made, name, value) for name, value in named.items()},
            )
        except pydantic.ValidationError as error:
            raise _refusal(made, error) from None
        for name, spec in declared(made):
            value = getattr(self, name)
            if spec.choices and value is not None and value not in spec.choices and not _goes_on(spec, value):
                raise _unknown(spec.called or name, value, spec)

    made.__init__ = __init__
    return made


def declared(cls: Any) -> Iterator[tuple[str, Setting]]:
    """The names and declarations of a class's settings, in order."""
    for name, field in cls.__pydantic_fields__.items():
        spec = _setting(field)
        if spec is not None:
            yield name, spec


def default_of(cls: Any, name: str) -> Any:
    """A field's default."""
    return cls.__pydantic_fields__[name].default


def type_of(cls: Any, name: str) -> Any:
    """A field's type, as it is annotated."""
    return cls.__pydantic_fields__[name].annotation


def schema(cls: Any) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a class of settings."""
    found: dict[str, Any] = pydantic.TypeAdapter(cls).json_schema()
    return found


def _frozen(cls: Any, name: str, value: Any) -> Any:
    """A list as a tuple, where that is what a field keeps."""
    field = cls.__pydantic_fields__.get(name)
    takes = field is not None and get_origin(field.annotation) is tuple
    return tuple(value) if takes and isinstance(value, list) else value


def _setting(field: FieldInfo) -> Setting | None:
    return next((part for part in field.metadata if isinstance(part, Setting)), None)


def _refusal(cls: Any, error: pydantic.ValidationError) -> PieError:
    """pydantic's findings in our own words; several are told together."""
    found = [_one(cls, part) for part in error.errors(include_url=False)]
    if len(found) == 1:
        return found[0]
    return ConfigError(" | ".join(one.message for one in found), field=found[0].field)


def _one(cls: Any, part: Any) -> PieError:
    raised = part.get("ctx", {}).get("error")
    if isinstance(raised, PieError):  # raised by the class itself
        return raised
    names = list(cls.__pydantic_fields__)
    where = part["loc"][0] if part["loc"] else ""
    name = names[where] if isinstance(where, int) and where < len(names) else str(where)
    if part["type"] == "unexpected_keyword_argument":
        close = get_close_matches(name, names, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
        return ConfigError(f"{cls.__name__} has no setting {name!r}; {remedy}", field=name, value=part["input"])
    field = cls.__pydantic_fields__.get(name)
    spec = None if field is None else _setting(field)
    if spec is None:
        return ConfigError(f"{cls.__name__}: {part['msg']} ({name})", field=name or None, value=part["input"])
    if part["type"] in ("missing", "missing_argument"):
        example = spec.example or (spec.choices or ("...",))[0]
        return ConfigError(f"{cls.__name__} needs {mention(name)}; pass {use(name, example)}", field=name)
    return _refuse(name, part["input"], part["type"], spec, field.annotation, field.default)


def _refuse(name: str, value: Any, kind: str, spec: Setting, annotation: Any, default: Any) -> PieError:
    called = spec.called or name
    if spec.choices:
        return _unknown(called, value, spec)
    remedy = f"pass {use(called, default if spec.example is None else spec.example)}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        text = f"{spec.low:g}, {spec.high:g}" if isinstance(spec.high, float) else f"{spec.low}, {spec.high}"
        limit = f"{'(' if spec.open_low else '['}{text}]"
        message = f"{mention(called)} {value} is outside {limit}; {remedy}"
        return ConfigError(message, field=name, value=value, limit=limit)
    for base, what in ((bool, "on or off"), (int, "a whole number"), (float, "a finite number"), (str, "text")):
        if base in _kinds(annotation):
            message = f"{mention(called)} {value!r} is not {what}; {remedy}"
            return ConfigError(message, field=name, value=value, limit=what)
    what = " or ".join(getattr(kind, "__name__", str(kind)) for kind in _kinds(annotation) if kind is not type(None))
    message = f"{mention(called)} of type {type(value).__name__} is not a {what}; {remedy}"
    return ConfigError(message, field=name, value=value, limit=what)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The types that a field takes."""
    return getattr(annotation, "__args__", None) or (annotation,)


def shown_choices(spec: Setting) -> tuple[str, ...]:
    """The names that a setting may be, as help and docs show them."""
    return (*(choice for choice in spec.choices if choice), *([spec.longer] if spec.longer else []))


def _goes_on(spec: Setting, value: str) -> bool:
    """Whether a value is the choice that more may follow, with what follows it."""
    choice, colon, rest = value.partition(":")
    return bool(spec.longer and colon and rest) and choice == spec.longer.partition(":")[0]


def _unknown(name: str, value: Any, spec: Setting) -> ConfigError:
    limit = ", ".join(shown_choices(spec))
    return ConfigError(
        f"{mention(name)} {value!r} is unknown; pass one of {limit}", field=name, value=value, limit=limit
    )
