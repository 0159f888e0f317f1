"""Axes, cells and designs: every value is checked before anything runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pie_engine import Item, RunConfig
from pie_engine.config import RoundSchedule
from pie_engine.errors import ConfigError, InputError, PieError
from pie_engine.evaluation.sweep.design import Design, evaluations
from pie_engine.evaluation.sweep.grid import AXES, make_cells, parse_axis, parse_grid
from pie_engine.evaluation.sweep.recipes import RECIPES, with_recipe
from pie_engine.imaging import Box

GREY = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)
PATIENT = Item(GREY, "x", Box(10, 10, 30, 30), "a", dilate=1, shift=(2, 0), keep=Box(0, 0, 5, 5))
BASE = RunConfig(steps=3, num_inference_steps=10)
MEASURED = replace(BASE, leakage=True)  # a column of every sweep


def test_axes_are_read_as_their_settings_are() -> None:
    assert parse_axis("strength=0.1, 5e-1") == ("strength", (0.1, 0.5))
    assert parse_axis("guidance_scale=3,7.5") == ("guidance-scale", (3.0, 7.5))
    assert parse_axis("shift=0:0,-4:2") == ("shift", ((0, 0), (-4, 2)))
    assert parse_axis("mask=on,off") == ("mask", ("on", "off"))
    assert parse_grid(["steps=2,4"], "0,1") == {"steps": (2, 4), "seed": (0, 1)}
    for axis in AXES:
        name, values = parse_axis(f"{axis}={AXES[axis].example}")
        (cell,) = make_cells({name: values})
        Design([PATIENT], BASE, {name: values}).check_patients()  # the example is a value that works
        assert cell.label in (f"{axis} {AXES[axis].example}", "the settings as given")


def test_cells_are_every_combination_and_seeds_repeat_them() -> None:
    grid = {"mask": ("on", "off"), "seed": (0, 7), "strength": (0.1, 0.5)}
    design = Design([PATIENT, replace(PATIENT, item_id="b")], BASE, grid)
    assert [cell.name for cell in design.cells] == [
        "strength=0.1_mask=on", "strength=0.1_mask=off", "strength=0.5_mask=on", "strength=0.5_mask=off",
    ]  # fmt: skip
    assert len(design.runs) == 4 * 2 * 2
    assert design.runs[0].folder == "runs/strength=0.1_mask=on/a_seed=0"
    assert len({run.folder for run in design.runs}) == len(design.runs)
    last = design.runs[-1]
    assert (last.config, last.item.item_id) == (replace(MEASURED, strength=0.5, seed=7), "b")
    bare = replace(PATIENT, item_id="b", mask=None, keep=None, dilate=0, shift=(0, 0))
    assert (last.item, last.patient.mask) == (bare, PATIENT.mask)
    assert evaluations(design.runs) == 2 * 2 * 2 * 3 * (1 + 5)  # patients, seeds, masks, rounds, steps of each strength


def test_regions_are_perturbed() -> None:
    design = Design([PATIENT], BASE, {"dilate": (-2, 4), "shift": ((3, -1),)})
    assert [(run.item.dilate, run.item.shift) for run in design.runs] == [(-2, (3, -1)), (4, (3, -1))]
    assert [run.cell.name for run in design.runs] == ["dilate=-2_shift=3:-1", "dilate=4_shift=3:-1"]
    assert len({run.variant for run in design.runs}) == 2


def test_fewer_rounds_cost_nothing() -> None:
    """They are the first of the longest: 6 rounds of 5 steps; with inversion twice that."""
    assert evaluations(Design([PATIENT], BASE, {"steps": (2, 6, 4)}).runs) == 30
    assert evaluations(Design([PATIENT], replace(BASE, inversion="ddim"), {"steps": (2, 6)}).runs) == 60


def test_an_even_pace_runs_its_pilot_and_shares_no_rounds() -> None:
    """A pilot of four rounds beside 5 more, of two beside 1; once more those by a classifier; 5 steps each."""
    even = replace(BASE, pace="even")
    assert evaluations(Design([PATIENT], even, {"steps": (2, 6)}).runs) == 5 * (2 + 1 + 4 + 5)
    assert evaluations(Design([PATIENT], replace(even, steps=6, pace="even:x.json"), {}).runs) == 5 * (4 + 5 + 5)
    assert evaluations(Design([PATIENT], replace(even, displacement=3.0, steps=6), {}).runs) == 5 * 6
    assert evaluations(Design([PATIENT], BASE, {"method": ("interpolation",)}).runs) == 15


def test_methods_are_an_axis_with_their_own_options() -> None:
    grid = {"method": ("pie", "control", "walk", "one-shot", "vae")}
    design = Design([PATIENT], BASE, grid, {"healthy_prompt": "normal", "total_strength": 0.5})
    assert [run.method.to_dict() for run in design.runs] == [
        {"name": "pie"},
        {"name": "control", "healthy_prompt": "normal"},
        {"name": "walk", "total_strength": 0.5},
        {"name": "one-shot", "total_strength": 0.5},
        {"name": "vae"},
    ]
    assert {run.config for run in design.runs} == {MEASURED}
    # 3 rounds of 5 steps twice; inversion and 3 frames of 5; edits of 1, 3 and 5 steps; nothing
    assert evaluations(design.runs) == 15 + 15 + 20 + 9
    inverted = Design(
        [PATIENT], replace(BASE, inversion="ddim"), {"method": ("walk", "one-shot")}, {"total_strength": 0.5}
    )
    assert evaluations(inverted.runs) == 20 + 2 * 9  # a walk inverts once anyhow, an edit each time


def test_frames_of_a_walk_depend_on_how_many_there_are() -> None:
    own = Design([PATIENT], BASE, {"method": ("walk",), "steps": (2, 4)})
    assert len({run.simulation for run in own.runs}) == 2
    assert evaluations(own.runs) == (3 + 5) * 10


def test_options_and_settings_that_no_method_takes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"healthy_prompt belongs to method control, which is not in the grid"):
        Design([PATIENT], BASE, {"method": ("pie", "walk")}, {"healthy_prompt": "normal"})
    with pytest.raises(ConfigError, match=r"pass healthy_prompt=TEXT"):
        Design([PATIENT], BASE, {"method": ("control",)})
    with pytest.raises(ConfigError, match=r"noise 'fresh' is not used by method 'walk'"):
        Design([PATIENT], BASE, {"method": ("walk",), "noise": ("fresh",)})
    with pytest.raises(ConfigError, match=r"grid method 'gan' is unknown"):
        Design([PATIENT], BASE, {"method": ("gan",)})


def test_nothing_varied_is_one_cell() -> None:
    design = Design([PATIENT], BASE, {})
    assert [run.folder for run in design.runs] == ["runs/as-given/a_seed=0"]
    assert design.runs[0].config == MEASURED


def test_recipes_are_grids_under_explicit_axes() -> None:
    assert with_recipe(None, {"steps": (3,)}) == {"steps": (3,)}
    assert with_recipe("strength", {"mask": ("on", "off")})["strength"] == tuple(n / 10 for n in range(1, 9))
    assert with_recipe("strength", {"strength": (0.2,)}) == {"strength": (0.2,)}
    for name, recipe in RECIPES.items():
        Design([PATIENT], BASE, with_recipe(name, {})).check_patients()
        assert recipe.question.endswith("?")
    with pytest.raises(ConfigError, match=r"recipe 'speed' is unknown; pass one of healthy, strength, mask"):
        with_recipe("speed", {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gamma=0.1", "grid axis 'gamma' is unknown (one of strength, steps,"),
        ("strength", "grid 'strength' has no values; pass grid='strength=0.5'"),
        ("strength=", "has no values"),
        ("strength=0.1,fast", "grid strength has 'fast', which is not one of its values (numbers)"),
        ("strength=0.1,,0.2", "grid strength has '', which is"),
        ("steps=2.5", "grid steps has '2.5', which is not one of its values (whole numbers); pass grid='steps=10'"),
        ("mask=yes", "grid mask has 'yes', which is not one of its values (on and off)"),
        ("shift=3", "grid shift has '3', which is not one of its values (pixels right and down, DX:DY)"),
        ("inversion=ddpm", "grid inversion has 'ddpm'"),
    ],
)
def test_axes_that_cannot_be_read(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axis(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED: list[tuple[dict[str, Any], type[PieError], str]] = [
    ({"strength": (0.1, 1.5)}, ConfigError, "strength 1.5 is outside (0, 1]"),
    ({"strength": (0.05,)}, ConfigError, "runs no denoising step"),
    ({"steps": (0,)}, ConfigError, "steps 0 is outside [1, 10000]"),
    ({"beta1": (2.0,)}, ConfigError, "beta1 2.0 is outside"),
    ({"seed": (-1,)}, ConfigError, "seed -1 is outside"),
    ({"noise": ("loud",)}, ConfigError, "noise 'loud' is unknown"),
    ({"mask": ("maybe",)}, ConfigError, "grid mask 'maybe' is unknown; pass one of on, off"),
    ({"gamma": (1,)}, ConfigError, "grid axis 'gamma' is unknown"),
    ({"strength": ()}, ConfigError, "grid strength has no values"),
    ({"strength": (0.5, 0.50)}, ConfigError, "grid strength has 0.5 twice"),
    ({"mask": ("on", "off"), "dilate": (0, 2)}, ConfigError, "grid mask=off leaves no region to dilate"),
]


@pytest.mark.parametrize(("grid", "kind", "line"), REFUSED)
def test_grids_that_cannot_run(grid: dict[str, Any], kind: type[PieError], line: str) -> None:
    with pytest.raises(kind) as caught:
        Design([PATIENT], BASE, grid)
    assert line in str(caught.value)


def test_patients_that_cannot_run() -> None:
    bare = replace(PATIENT, mask=None, dilate=0, shift=(0, 0), keep=None)
    for patients, line in (
        ([], "no patient is given"),
        ([PATIENT, PATIENT], "two patients have the id 'a'"),
        ([replace(PATIENT, item_id="a/b")], "item_id 'a/b' cannot name a folder"),
        ([PATIENT, replace(bare, item_id="b")], "grid mask=on needs a mask, and patient b has none"),
    ):
        with pytest.raises(InputError, match=line):
            Design(patients, BASE, {"mask": ("on", "off")})
    with pytest.raises(InputError, match="empty after 30 pixels are taken off its edge"):
        Design([PATIENT], BASE, {"dilate": (0, -30)}).check_patients()
    with pytest.raises(ConfigError, match="grid strength is given twice"):
        parse_grid(["strength=0.1", "strength=0.2"])
    schedule = RoundSchedule.parse([{"rounds": "1", "guidance_scale": 3}])
    with pytest.raises(ConfigError, match="leave out schedule"):
        Design([PATIENT], replace(BASE, schedule=schedule), {})
