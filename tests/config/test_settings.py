"""A setting is declared once: what it refuses, and everywhere that it is found without another line."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pie_engine.cli.options import add_settings, options_of, settings_from
from pie_engine.cli.reference import reference, table
from pie_engine.config import BuildConfig, EngineConfig, MethodConfig, OutputConfig, RunConfig, RuntimeConfig
from pie_engine.config.axes import AXES, declared_axes
from pie_engine.config.settings import declared, schema, setting, settings
from pie_engine.errors import ConfigError

CLASSES = (RunConfig, MethodConfig, RuntimeConfig, OutputConfig, BuildConfig, EngineConfig)


@settings
class Example:
    """Two settings and nothing else."""

    steps: int = setting("rounds", default=10, low=1, high=100, symbol="N")
    damping: float = setting("what the rounds are damped by", default=0.5, low=0.0, high=1.0, vary="numbers", unit="dB")
    kind: str | None = setting("of the damping", default=None, choices=("soft", "hard"), open="soft")
    loud: bool = setting("say so", default=False)


def test_one_declaration_is_found_everywhere() -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser, Example)
    help = " ".join(parser.format_help().split())
    assert "--damping DAMPING what the rounds are damped by (0.5)" in help
    assert settings_from(parser.parse_args(["--damping", "0.25", "--loud"]), Example) == Example(
        damping=0.25, loud=True
    )
    assert settings_from(parser.parse_args([]), Example) == Example()
    assert options_of(Example)["damping"] == "--damping"
    own = schema(Example)["properties"]["damping"]
    assert (own["minimum"], own["maximum"], own["default"], own["type"]) == (0, 1, 0.5, "number")
    assert list(declared_axes(Example)) == ["damping"]
    assert declared_axes(Example)["damping"].parse("0.1") == 0.1
    rows = [row for row in table(Example) if "`damping`" in row]
    assert rows == ["| `damping` | `--damping` | what the rounds are damped by, in dB | [0, 1] | 0.5 | yes |"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps 0 is outside [1, 100]; pass steps=10"),
        ({"steps": True}, "steps True is not a whole number; pass steps=10"),
        ({"steps": "3"}, "steps '3' is not a whole number; pass steps=10"),
        ({"damping": float("nan")}, "damping nan is not a finite number; pass damping=0.5"),
        ({"damping": True}, "damping True is not a finite number; pass damping=0.5"),
        ({"kind": "odd"}, "kind 'odd' is unknown; pass one of soft, hard"),
        ({"kind": 3}, "kind 3 is unknown; pass one of soft, hard"),
        ({"loud": 1}, "loud 1 is not on or off; pass loud=False"),
        ({"damp": 1}, "Example has no setting 'damp'; did you mean damping?"),
        (
            {"steps": 0, "damping": 2},
            "steps 0 is outside [1, 100]; pass steps=10 | damping 2 is outside [0, 1]; pass damping=0.5",
        ),
    ],
)
def test_refusals_say_all_that_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(**values)
    assert str(caught.value) == message


def test_an_error_is_data() -> None:
    with pytest.raises(ConfigError) as caught:
        replace(Example(), steps=101)
    error = caught.value
    assert (error.field, error.value, error.limit, error.remedy) == ("steps", 101, "[1, 100]", "pass steps=10")


def test_values_are_one_type() -> None:
    """3 and 3.0 are the same setting, also where it is written."""
    assert repr(RunConfig(guidance_scale=3).guidance_scale) == "3.0"
    assert json.dumps(RunConfig(guidance_scale=np.float64(3)).to_dict()["guidance_scale"]) == "3.0"


def test_needed_ones() -> None:
    with pytest.raises(ConfigError, match="EngineConfig needs flavour; pass flavour='tensorrt'"):
        EngineConfig()  # type: ignore[call-arg]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_declared(cls: Any) -> None:
    assert [name for name, _ in declared(cls)] == list(cls.__pydantic_fields__)
    assert all(own.help and not own.help.endswith(".") for _, own in declared(cls))
    assert schema(cls)["additionalProperties"] is False


def test_the_reference_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference(), "run python -m pie_engine.cli.reference docs/settings.md"


def test_axes_are_the_settings_that_say_so() -> None:
    own = {name.replace("_", "-") for name, one in declared(RunConfig) if one.vary}
    assert own | {"dilate", "shift", "mask", "method"} == set(AXES)
    assert next(iter(AXES)) == "strength" and list(AXES)[-1] == "seed"
