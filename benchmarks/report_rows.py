"""Which rows of a results file are shown: those of the newest run, apart by machine and by setting."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pie_engine.benchmarks.harness import results

Row = dict[str, str]
MACHINE = ("device", "threads")
_STEPS, _STRENGTH = 50, 0.5  # what the scripts take unless told otherwise
# Shared columns that are told in words, in this order.
_SETTING = ("model", "resolution", "rounds", "evaluations", "batch", "shape")


class ReportError(Exception):
    """A marker that means nothing; one line."""


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

    def command(self, filters: dict[str, str]) -> str:
        """What measures the rows that the filters ask for."""
        given = [f"--{name} {shlex.quote(filters[name])}" for name in self.options if filters.get(name)]
        if "rounds" in self.options and filters.get("evaluations") and filters.get("rounds"):
            steps = int(filters["evaluations"]) // int(filters["rounds"])
            if steps != int(_STEPS * _STRENGTH):
                exact = steps / _STEPS
                given.append(f"--strength {exact if int(_STEPS * exact) == steps else (steps + 0.5) / _STEPS:g}")
        return " ".join([f"python benchmarks/{self.script or self.csv}.py", *given])


@dataclass(frozen=True)
class Request:
    """What a marker asks for: a name, further words, and filters by column."""

    name: str
    words: tuple[str, ...] = ()
    filters: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Request:
        """`name word ... column=value ...`; values with spaces are quoted as in a shell.

        Raises:
            ReportError: nothing is named.
        """
        parts = shlex.split(text)
        plain = [part for part in parts if "=" not in part]
        if not plain:
            raise ReportError(f"marker {text!r} names nothing")
        pairs = ((name, value) for name, _, value in (part.partition("=") for part in parts if "=" in part))
        return cls(plain[0], tuple(plain[1:]), dict(pairs))


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
        return ", ".join(words(name, self.shared[name]) for name in _SETTING if self.shared.get(name))

    @property
    def title(self) -> str:
        """What tells this group from the others; empty where it is the only one."""
        parts = [self.machine] if set(self.varying) & set(MACHINE) else []
        return ", ".join(parts + [words(name, self.shared[name]) for name in _SETTING if name in self.varying])

    @property
    def revisions(self) -> str:
        """The commits that the rows come from, with their days."""
        days: dict[str, str] = {}
        for row in self.rows:
            revision = row["revision"] or "unknown"
            days[revision] = max(days.get(revision, ""), row["date"][:10])
        word = "revision" if len(days) == 1 else "revisions"
        return f"{word} " + ", ".join(f"{revision} ({day})" for revision, day in days.items())

    @property
    def slug(self) -> str:
        """For a file's name: the machine, and what else tells this group from others."""
        return slug(self.machine, *(f"{name}{self.shared[name]}" for name in _SETTING if name in self.varying))

    def digest(self, name: str) -> str:
        """Of everything that a plot of these rows is drawn from."""
        text = json.dumps([name, self.shared, self.varying, self.rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def select(source: Source, filters: dict[str, str], folder: Path) -> list[Group]:
    """The newest rows that fit the filters, one group per machine and setting; none where nothing was measured.

    Args:
        filters: by column; `kind` is "cpu" or "gpu".
    """
    rows = [row for row in results.read(folder / f"{source.csv}.csv") if _fits(row, filters)]
    # Files from before rows were keyed cannot say what is newest on which machine.
    if not rows or not {"date", "revision", "device"} <= rows[0].keys():
        return []
    shared = [name for name in (*MACHINE, *source.setting) if name in rows[0]]
    key = [name for name in source.key if name in rows[0]]
    order = _Order(rows, key)
    together = key if source.run is None else [name for name in key if name in source.run]
    newest = results.newest(rows, *shared, *together)
    # Runs within the same minute carry the same date.
    latest = {tuple(row[name] for name in (*shared, *key)): row for row in newest}
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in latest.values():
        found.setdefault(tuple(row[name] for name in shared), []).append(row)
    varying = tuple(name for i, name in enumerate(shared) if len({values[i] for values in found}) > 1)
    return [
        Group(dict(zip(shared, values, strict=True)), varying, tuple(sorted(own, key=order)))
        for values, own in found.items()
    ]


def slug(*words: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def is_gpu(row: Row) -> bool:
    """Threads are counted on processors; names of NVIDIA's GPUs begin with the company's."""
    return not row.get("threads") or row.get("device", "").startswith("NVIDIA")


class _Order:
    """Sorts by key columns: numbers by size, words in the order in which the file first has them."""

    def __init__(self, rows: Iterable[Row], key: list[str]):
        self._key = key
        self._places: dict[str, dict[str, float]] = {}
        for name in key:
            texts = list(dict.fromkeys(row[name] for row in rows))
            try:
                self._places[name] = {text: float(text) for text in texts}
            except ValueError:
                self._places[name] = {text: float(i) for i, text in enumerate(texts)}

    def __call__(self, row: Row) -> tuple[float, ...]:
        return tuple(self._places[name][row[name]] for name in self._key)


def _fits(row: Row, filters: dict[str, str]) -> bool:
    kind = "gpu" if is_gpu(row) else "cpu"
    return all((kind if name == "kind" else row.get(name)) == value for name, value in filters.items())


def words(name: str, value: str) -> str:
    """A shared column in words."""
    found = {
        "model": f"model {value}",
        "resolution": f"{value} x {value}",
        "rounds": f"{value} round{'' if value == '1' else 's'}",
        "evaluations": f"{value} guided steps",
        "batch": f"batch {value}",
        "shape": value.replace("x", " x "),
    }
    return found[name]
