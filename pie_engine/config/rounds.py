"""What changes from round to round: a schedule of prompt, strength and guidance."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pie_engine.config.checks import number
from pie_engine.errors import ConfigError, mention, use

# A value for all rounds of a span, or those of its first and its last, with a straight line between.
Ramp = float | tuple[float, float]

_KEYS = ("rounds", "prompt", "strength", "guidance_scale")
_EXAMPLE = '{"rounds": "1-3", "guidance_scale": 5}'
# Stops int(T * gamma) from losing a step to a last digit of the straight line: 0.2 + 0.2 / 2 is 0.30000000000000004.
_DIGITS = 9


class RoundKind(NamedTuple):
    """What rounds have in common that run the same operations: k denoising steps, with or without guidance."""

    denoising_steps: int
    guided: bool


@dataclass(frozen=True)
class RoundSettings:
    """What one round runs with.

    Attributes:
        prompt: in place of the item's own; None keeps that.
        strength: gamma.
        guidance_scale: g.
        kind: k = int(T * gamma) denoising steps, as the published code counts them, and whether g > 1.
    """

    prompt: str | None
    strength: float
    guidance_scale: float
    kind: RoundKind

    @classmethod
    def of(cls, prompt: str | None, strength: float, guidance_scale: float, total: int) -> RoundSettings:
        """Settings of a round whose whole schedule has `total` steps."""
        return cls(prompt, strength, guidance_scale, RoundKind(int(total * strength), guidance_scale > 1.0))


@dataclass(frozen=True)
class RoundRange:
    """Rounds in a row and what holds in them; what is None is the run's own.

    Attributes:
        first, last: rounds, counted from 1.
        prompt: in place of every item's own.
        strength: gamma in (0, 1]; a pair is those of the first and the last round, with a straight line between.
        guidance_scale: g in [0, 100], or such a pair.

    Raises:
        ConfigError: a value is out of range or of another type.
    """

    first: int
    last: int
    prompt: str | None = None
    strength: Ramp | None = None
    guidance_scale: Ramp | None = None

    def __post_init__(self) -> None:
        for bound in (self.first, self.last):
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 1:
                raise ConfigError(f"schedule: round {bound!r} is not a whole number from 1 on; write {_EXAMPLE}")
        if self.last < self.first:
            raise ConfigError(f"schedule: rounds {self.name} end before they begin; write {self.last}-{self.first}")
        if self.prompt is None and self.strength is None and self.guidance_scale is None:
            raise ConfigError(f"schedule: rounds {self.name} change nothing; leave them out, or write {_EXAMPLE}")
        if self.prompt is not None:
            self._check_prompt(self.prompt)
        self._check("strength", self.strength, 1.0, 0.5, open_low=True)
        self._check("guidance_scale", self.guidance_scale, 100.0, 7.5)

    @property
    def name(self) -> str:
        """The rounds in words: "3" or "1-3"."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def value(self, name: str, index: int) -> float | None:
        """`strength` or `guidance_scale` of a round, counted from 1, or None."""
        ramp: Ramp | None = getattr(self, name)
        if not isinstance(ramp, tuple):
            return ramp
        low, high = ramp
        return round(low + (high - low) * (index - self.first) / (self.last - self.first), _DIGITS)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a file."""
        changes = {"prompt": self.prompt, "strength": self.strength, "guidance_scale": self.guidance_scale}
        given = {name: list(v) if isinstance(v, tuple) else v for name, v in changes.items() if v is not None}
        return {"rounds": self.name, **given}

    def _check_prompt(self, prompt: object) -> None:
        if not isinstance(prompt, str):
            raise ConfigError(f"schedule: prompt {prompt!r} of rounds {self.name} is not text; write a string")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"schedule: prompt {prompt!a} of rounds {self.name} is not valid UTF-8; save it so"
            ) from None

    def _check(self, name: str, ramp: Any, high: float, usual: float, *, open_low: bool = False) -> None:
        if ramp is None:
            return
        if isinstance(ramp, tuple) and len(ramp) != 2:
            raise ConfigError(
                f"schedule: {name} of rounds {self.name} has {len(ramp)} values; write one, or those of the first and "
                "the last round"
            )
        if isinstance(ramp, tuple) and self.first == self.last:
            raise ConfigError(f"schedule: {name} of round {self.name} has two values; write one for a single round")
        for value in ramp if isinstance(ramp, tuple) else (ramp,):
            number(
                f"schedule: {name} of rounds {self.name}", value, 0.0, high, f"write {usual:g}", open_low=open_low
            )  # fmt: skip


@dataclass(frozen=True)
class RoundSchedule:
    """Prompt, strength and guidance of rounds that differ from the run's own.

    Attributes:
        ranges: in the order of their rounds; no round is in two. Rounds in none run with the run's settings.

    Raises:
        ConfigError: there is no span, or two share a round.
    """

    ranges: tuple[RoundRange, ...]

    def __post_init__(self) -> None:
        if not self.ranges:
            raise ConfigError(f"schedule: there are no rounds in it; write [{_EXAMPLE}]")
        ordered = tuple(sorted(self.ranges, key=lambda span: span.first))
        for before, after in itertools.pairwise(ordered):
            if after.first <= before.last:
                raise ConfigError(
                    f"schedule: round {after.first} is in both {before.name} and {after.name}; name each round once"
                )
        object.__setattr__(self, "ranges", ordered)

    @classmethod
    def read(cls, path: str | Path) -> RoundSchedule:
        """Read a JSON file: a list of objects with "rounds" and any of "prompt", "strength" and "guidance_scale".

        Raises:
            ConfigError: the file cannot be read, or does not hold a schedule.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
        except OSError as error:
            raise ConfigError(f"schedule {path} cannot be read ({error.strerror}); pass a JSON file") from None
        except UnicodeDecodeError:
            raise ConfigError(f"schedule {path} is not UTF-8; save it in that encoding") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"schedule {path} is not JSON ({error}); write [{_EXAMPLE}]") from None
        return cls.parse(value)

    @classmethod
    def parse(cls, value: object) -> RoundSchedule:
        """From a list of mappings, as in a file. Raises ConfigError."""
        if not isinstance(value, list):
            raise ConfigError(f"schedule: a list is expected, not {type(value).__name__}; write [{_EXAMPLE}]")
        return cls(tuple(_range(entry) for entry in value))

    def to_list(self) -> list[dict[str, Any]]:
        """As it stands in a file."""
        return [span.to_dict() for span in self.ranges]

    def rounds(self, steps: int, total: int, strength: float, guidance_scale: float) -> tuple[RoundSettings, ...]:
        """Settings of all `steps` rounds of `total` denoising steps; those given hold where the schedule is silent.

        Raises:
            ConfigError: the schedule names more rounds.
        """
        end = self.ranges[-1].last
        if end > steps:
            raise ConfigError(
                f"schedule: round {end} is beyond the {steps} of {mention('steps')}; pass {use('steps', end)}"
            )
        spans = {index: span for span in self.ranges for index in range(span.first, span.last + 1)}
        found = []
        for index in range(1, steps + 1):
            span = spans.get(index)
            if span is None:
                found.append(RoundSettings.of(None, strength, guidance_scale, total))
                continue
            gamma, scale = span.value("strength", index), span.value("guidance_scale", index)
            gamma, scale = strength if gamma is None else gamma, guidance_scale if scale is None else scale
            found.append(RoundSettings.of(span.prompt, gamma, scale, total))
        return tuple(found)


def _range(entry: object) -> RoundRange:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"schedule: {entry!r} is not an object; write {_EXAMPLE}")
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise ConfigError(f"schedule: key {unknown[0]!r} is unknown; pass one of {', '.join(_KEYS)}")
    if "rounds" not in entry:
        raise ConfigError(f"schedule: {dict(entry)!r} names no rounds; write {_EXAMPLE}")
    first, last = _bounds(entry["rounds"])
    ramps = {
        name: tuple(entry[name]) if isinstance(entry.get(name), list) else entry.get(name)
        for name in ("strength", "guidance_scale")
    }
    return RoundRange(first, last, entry.get("prompt"), **ramps)


def _bounds(rounds: object) -> tuple[int, int]:
    """3, "3" or "1-3" as the first and the last round."""
    if isinstance(rounds, int) and not isinstance(rounds, bool):
        return rounds, rounds
    found = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", rounds) if isinstance(rounds, str) else None
    if found is None:
        raise ConfigError(f'schedule: rounds {rounds!r} do not name rounds; write 3 or "1-3"')
    return int(found[1]), int(found[2] or found[1])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand in it once: of two, json would drop the first in silence."""
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"key {twice!r} stands in an object twice")
    return dict(pairs)
