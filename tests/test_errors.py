"""Errors as data: one message, spelled for whoever called."""

from __future__ import annotations

import pickle

import pytest

from pie_engine.errors import ConfigError, InputError, PieError, mention, use


def on_the_command_line(name: str, value: str | None) -> str:
    option = name.replace("_", "-")
    return option if value is None else f"--{option} {value}"


def test_one_message_for_both() -> None:
    error = ConfigError(
        f"{mention('num_inference_steps')} 0 is outside [1, 1000]; "
        f"pass {use('num_inference_steps', 50)}, or {use('x')}",
        field="num_inference_steps", value=0, limit="[1, 1000]",
    )  # fmt: skip
    assert str(error) == "num_inference_steps 0 is outside [1, 1000]; pass num_inference_steps=50, or x=..."
    assert error.told(on_the_command_line) == (
        "num-inference-steps 0 is outside [1, 1000]; pass --num-inference-steps 50, or --x ..."
    )
    assert (error.problem, error.remedy) == (
        "num_inference_steps 0 is outside [1, 1000]", "pass num_inference_steps=50, or x=...",
    )  # fmt: skip
    assert (error.field, error.value, error.limit) == ("num_inference_steps", 0, "[1, 1000]")


@pytest.mark.parametrize("kind", [ConfigError, InputError])
def test_what_python_expects(kind: type[PieError]) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        raise kind("no such thing")


def test_errors_travel_between_processes() -> None:
    error = ConfigError(f"a; pass {use('b', 1)}", field="b", value=2, limit="1")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is ConfigError
    assert (str(again), again.message, again.field, again.value, again.limit) == (
        str(error), error.message, "b", 2, "1",
    )  # fmt: skip
