"""Which rows of a results file are shown: the newest, grouped by machine and setting."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pie_engine.benchmarks.harness import results

Row = dict[str, str]
MACHINE = ("device", "threads")
STEPS, STRENGTH = 50, 0.5  # what the scripts take unless told otherwise
WORDS = {
    "model": "model {}", "resolution": "{0} x {0}", "rounds": "{} rounds", "evaluations": "{} guided steps",
    "batch": "batch {}", "shape": "{}", "backend": "{}", "steps": "{} guided steps a round",
}  # fmt: skip


class ReportError(Exception):
    """A block asks for what does not exist."""


@dataclass(frozen=True)
class Source:
    """A results file and how its rows belong together.

    Attributes:
        csv: name of the file, without ".csv".
        key: columns that tell the rows of one table apart, and their order in it.
        setting: columns that rows of one table share, beside the machine.
        options: of the script, by column: a filter by one of them becomes part of the command.
        run: of `key`, the columns whose rows have to come from the same run; all of them unless given.
        script: that measures; named as the file unless given.
    """

    csv: str
    key: tuple[str, ...]
    setting: tuple[str, ...] = ("model", "resolution", "rounds", "evaluations", "batch")
    options: tuple[str, ...] = ("model", "resolution", "rounds", "batch", "threads")
    run: tuple[str, ...] | None = None
    script: str = ""

    def command(self, values: dict[str, str]) -> str:
        """What measures rows with these values."""
        given = [f"--{name} {shlex.quote(values[name])}" for name in self.options if values.get(name)]
        if "rounds" in self.options and values.get("evaluations") and values.get("rounds"):
            steps = int(values["evaluations"]) // int(values["rounds"])
            if steps != int(STEPS * STRENGTH):
                exact = steps / STEPS
                given.append(f"--strength {exact if int(STEPS * exact) == steps else (steps + 0.5) / STEPS:g}")
        return " ".join([f"python benchmarks/{self.script or self.csv}.py", *given])


@dataclass(frozen=True)
class Group:
    """Rows of one machine in one setting.

    Attributes:
        shared: the machine's and the setting's columns.
        varying: those of them that tell this group from the others that were asked for.
    """

    shared: dict[str, str]
    varying: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def machine(self) -> str:
        """The device's name and the threads, if they were set."""
        device, threads = (self.shared.get(name, "") for name in MACHINE)
        return f"{device}, {threads} thread{'' if threads == '1' else 's'}" if threads else device

    @property
    def setting(self) -> str:
        """The other shared columns in words."""
        return ", ".join(in_words(name, self.shared[name]) for name in WORDS if self.shared.get(name))

    @property
    def title(self) -> str:
        """What tells this group from the others; empty where it is the only one."""
        machine = [self.machine] if set(self.varying) & set(MACHINE) else []
        return ", ".join(machine + [in_words(name, self.shared[name]) for name in WORDS if name in self.varying])

    @property
    def revisions(self) -> str:
        """The commits that the rows come from, with their days."""
        days: dict[str, str] = {}
        for row in self.rows:
            revision = row["revision"] or "unknown"
            days[revision] = max(days.get(revision, ""), row["date"][:10])
        each = ", ".join(f"{revision} ({day})" for revision, day in days.items())
        return f"revision{'s' if len(days) > 1 else ''} {each}"

    @property
    def slug(self) -> str:
        """For a file's name: the machine, and what else tells this group from others."""
        return slug(self.machine, *(f"{name}{self.shared[name]}" for name in WORDS if name in self.varying))

    def digest(self, name: str) -> str:
        """Of everything that a plot of these rows is drawn from."""
        text = json.dumps([name, self.shared, self.varying, self.rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def select(source: Source, filters: dict[str, str], folder: Path = results.FOLDER) -> list[Group]:
    """The newest rows that fit the filters, one group per machine and setting; none where nothing was measured.

    Args:
        filters: by column; `kind` is "cpu" or "gpu".
    """
    rows = [
        row
        for row in results.read(folder / f"{source.csv}.csv")
        if all((_kind(row) if name == "kind" else row.get(name)) == value for name, value in filters.items())
    ]
    # Files from before rows were keyed cannot say what is newest on which machine.
    if not rows or not {"date", "revision", "device"} <= rows[0].keys():
        return []
    shared = [name for name in (*MACHINE, *source.setting) if name in rows[0]]
    key = [name for name in source.key if name in rows[0]]
    places = {name: _places([row[name] for row in rows]) for name in key}
    together = key if source.run is None else [name for name in key if name in source.run]
    # Runs within the same minute carry the same date: of those the later row counts.
    newest = {
        tuple(row[name] for name in (*shared, *key)): row for row in results.newest(rows, *shared, *together)
    }.values()
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in newest:
        groups.setdefault(tuple(row[name] for name in shared), []).append(row)
    varying = tuple(name for i, name in enumerate(shared) if len({values[i] for values in groups}) > 1)
    return [
        Group(
            dict(zip(shared, values, strict=True)),
            varying,
            tuple(sorted(members, key=lambda row: [places[name][row[name]] for name in key])),
        )
        for values, members in groups.items()
    ]


def _kind(row: Row) -> str:
    """Threads are counted on processors; names of NVIDIA's GPUs begin with the company's."""
    return "gpu" if not row.get("threads") or row.get("device", "").startswith("NVIDIA") else "cpu"


def _places(texts: list[str]) -> dict[str, float]:
    """The order of a column's values: numbers by size, words as the file first has them."""
    try:
        return {text: float(text) for text in texts}
    except ValueError:
        return {text: float(i) for i, text in enumerate(dict.fromkeys(texts))}


def slug(*words: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def in_words(name: str, value: str) -> str:
    """A shared column in words."""
    text = WORDS[name].format(value.replace("x", " x ") if name == "shape" else value)
    return text.removesuffix("s") if text == "1 rounds" else text
