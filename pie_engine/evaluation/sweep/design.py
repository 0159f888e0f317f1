"""What a sweep runs: every cell of a grid, on every patient, with every seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pie_engine.config import METHOD_OPTIONS, MethodConfig, RunConfig
from pie_engine.config.axes import AXES, MASK, METHOD, ON, SEED, STEPS
from pie_engine.errors import ConfigError, InputError, argument, mention, use
from pie_engine.evaluation.sweep.grid import Cell, Grid, make_cells
from pie_engine.evaluation.sweep.patients import check_id
from pie_engine.imaging.item import Item, check_item
from pie_engine.imaging.item_ids import check_item_ids
from pie_engine.rounds.pace import least_rounds


@dataclass(frozen=True)
class PlannedRun:
    """One progression of a sweep.

    Attributes:
        cell: where in the grid.
        item: what is simulated of the patient, as the cell has it.
        patient: the patient as given; its region is what the run is measured against.
        config: the settings, as the cell has them.
        method: what gives the frames.
    """

    cell: Cell
    item: Item
    patient: Item
    config: RunConfig
    method: MethodConfig

    @property
    def folder(self) -> str:
        """Below the sweep's folder."""
        return f"runs/{self.cell.name}/{self.item.item_id}_seed={self.config.seed}"

    @property
    def variant(self) -> tuple[object, ...]:
        """Equal for runs of one image with one region of interest."""
        return (self.item.item_id, *((name, value) for name, value in self.cell.values.items() if AXES[name].region))

    @property
    def simulation(self) -> tuple[object, ...]:
        """Equal for runs that differ in their number of rounds alone: the shorter is the beginning of the longer.

        Of a baseline and of an even pace it is not: their frames depend on how many there are.
        """
        apart = not self.method.is_pie or self.config.even
        values = tuple((name, value) for name, value in self.cell.values.items() if apart or name != STEPS)
        return (values, self.item.item_id, self.config.seed)


@dataclass(frozen=True)
class Design:
    """The patients, the settings that all runs share, and the grid; every setting is checked when it is made.

    Attributes:
        patients: with ids that differ and can name folders.
        base: what the grid does not vary.
        grid: values by axis (`pie_engine.evaluation.sweep.grid.AXES`); "seed" repeats every cell.
        options: of the methods in the grid, by their names in `MethodConfig`.
        cells, runs: all of them, in the grid's order.

    Raises:
        ConfigError: an axis or a value that cannot be used. InputError: an id is given twice, or names no folder.
    """

    patients: Sequence[Item]
    base: RunConfig
    grid: Grid
    options: Mapping[str, Any] = field(default_factory=dict)
    cells: list[Cell] = field(init=False)
    runs: list[PlannedRun] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.patients:
            raise InputError("no patient is given; pass at least one")
        object.__setattr__(self, "patients", check_item_ids(self.patients))
        seen: set[str | None] = set()
        for patient in self.patients:
            check_id(str(patient.item_id))
            if patient.item_id in seen:
                raise InputError(f"two patients have the id {patient.item_id!r}; give each its own")
            seen.add(patient.item_id)
            if ON in self.grid.get(MASK, ()) and patient.mask is None:
                raise InputError(
                    f"grid mask=on needs a mask, and patient {patient.item_id} has none; pass {argument('mask')}, "
                    f"or name one in {argument('patients')}",
                    field="mask",
                )
        if self.base.schedule is not None:
            raise ConfigError(
                f"a schedule fixes per round what a sweep varies; leave out {argument('schedule')}", field="schedule"
            )
        if self.base.tolerance is not None:
            raise ConfigError(
                f"a tolerance repeats frames whose increments a sweep measures; leave out {argument('tolerance')}",
                field="tolerance",
            )
        for option in self.options:
            owners = METHOD_OPTIONS[option]
            if not set(owners) & set(self.grid.get(METHOD, ())):
                raise ConfigError(
                    f"{mention(option)} belongs to method {' and '.join(owners)}, which is not in the grid; "
                    f"add it to {use('grid', f'method=pie,{owners[0]}')}, or leave the option out",
                    field=option,
                    value=self.options[option],
                )
        object.__setattr__(self, "cells", make_cells(self.grid))
        object.__setattr__(self, "runs", list(self._runs()))

    @property
    def seeds(self) -> list[Any]:
        """Every cell is simulated with each of them; `RunConfig` says what a seed is."""
        return list(self.grid.get(SEED, (self.base.seed,)))

    @property
    def prompts(self) -> list[str]:
        """What the patients are asked for, each prompt once; a cell's means mix them."""
        return sorted({patient.prompt for patient in self.patients})

    def check_patients(self) -> None:
        """Read every image and region as the cells have them, and refuse what cannot be used.

        Raises:
            InputError, ConfigError: see `pie_engine.imaging.item.check_item`.
        """
        for run in {run.variant: run for run in self.runs}.values():
            check_item(run.item, run.config)

    def _runs(self) -> Iterator[PlannedRun]:
        for cell in self.cells:
            # Leakage is one of the columns.
            settings, method = replace(cell.config(self.base), leakage=True), cell.method(self.options)
            method.check(settings)
            for seed in self.seeds:
                config = replace(settings, seed=seed)
                for patient in self.patients:
                    yield PlannedRun(cell, cell.item(patient), patient, config, method)


def evaluations(runs: Sequence[PlannedRun]) -> int:
    """U-Net evaluations that simulating these takes: of runs that share a simulation, the longest counts.

    Samplers of more than one evaluation per step (PNDM) need a few more; one-shot edits may need fewer.
    """
    return sum(cost(run) for run in longest(runs).values())


def cost(run: PlannedRun) -> int:
    """U-Net evaluations of one run: N int(T gamma), and as many again for DDIM inversion; a baseline's own.

    An even pace adds its pilot's rounds, at least, and once more all of them where a classifier sets it; the first is
    the pilot's.
    """
    config, method = run.config, run.method
    if method.is_pie or method.name == "interpolation":
        pilot, spared = least_rounds(config)
        rounds = pilot + (config.steps - spared) * (2 if config.even and config.severity else 1)
        return rounds * config.denoising_steps * (2 if config.inversion == "ddim" else 1)
    steps = int(config.num_inference_steps * (1.0 if method.total_strength is None else method.total_strength))
    if method.name == "walk":
        return (config.steps + 1) * steps
    if method.name == "one-shot":
        edits = sum(max(1, steps * n // config.steps) for n in range(1, config.steps + 1))
        return edits * (2 if config.inversion == "ddim" else 1)
    return 0


def longest(runs: Sequence[PlannedRun]) -> dict[tuple[object, ...], PlannedRun]:
    """By simulation, the run with the most rounds."""
    found: dict[tuple[object, ...], PlannedRun] = {}
    for run in runs:
        known = found.get(run.simulation)
        if known is None or known.config.steps < run.config.steps:
            found[run.simulation] = run
    return found
