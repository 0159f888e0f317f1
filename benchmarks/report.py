"""Tables, figures and plots of the documents, made from benchmarks/results/*.csv.

    python benchmarks/report.py            fill README.md and docs/performance.md, draw docs/plots/*.svg
    python benchmarks/report.py --check    change nothing; say what is stale, and exit with 1 if anything is

Between `<!-- KIND: NAME column=value ... -->` and `<!-- end -->` stands what this script makes. KIND is "table", "plot"
or "value" (then NAME is followed by the column that is shown). NAME is one of `report_tables.TABLES` or
`report_plots.PLOTS`; the filters pick rows by their columns, or by kind=cpu and kind=gpu. The newest rows of each
machine and setting are shown, each machine and setting apart. Only plots need matplotlib (`pip install '.[bench]'`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pie_engine.benchmarks.report_markers import Block, differing, fill, typed_numbers
from pie_engine.benchmarks.report_plots import PLOTS, Plot, digest_of, draw
from pie_engine.benchmarks.report_rows import Group, ReportError, Request, select, slug
from pie_engine.benchmarks.report_tables import figure, missing, table

ROOT = Path(__file__).parents[1]
# Each document, and the section of it that may hold no typed measurement; empty for all of it.
DOCUMENTS = {"README.md": "What is measured", "docs/performance.md": ""}
AGAIN = "run python benchmarks/report.py"


@dataclass
class Report:
    """The documents below `root`, and what is to stand in them.

    Attributes:
        plots: by path, what the documents' markers ask for; complete once all documents are filled.
    """

    root: Path
    plots: dict[Path, tuple[Plot, Group]] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """Folder of the CSV files."""
        return self.root / "benchmarks" / "results"

    @property
    def drawn(self) -> list[Path]:
        """The plots of this script that there are; other pictures are nobody's business here."""
        return [path for path in sorted((self.root / "docs" / "plots").glob("*.svg")) if digest_of(path)]

    def filled(self, name: str) -> str:
        """A document's text with all blocks made anew."""
        path = self.root / name
        return fill(path.read_text(encoding="utf-8"), lambda block: self._content(block, path.parent))

    def check(self) -> list[str]:
        """What is not in line with the results, one line each."""
        stale = []
        for name, section in DOCUMENTS.items():
            text, filled = (self.root / name).read_text(encoding="utf-8"), self.filled(name)
            stale += [f"{name}: {block} is stale; {AGAIN}" for block in differing(text, filled)]
            typed = typed_numbers(text, section)
            stale += [f"{name}: typed number {place}; put it in a block, or say it without one" for place in typed]
        for path, (plot, group) in self.plots.items():
            if digest_of(path) != group.digest(plot.name):
                word = "stale" if path.exists() else "missing"
                stale.append(f"{path.relative_to(self.root)} is {word}; {AGAIN}")
        left = [path for path in self.drawn if path not in self.plots]
        return stale + [f"{path.relative_to(self.root)} belongs to no document; {AGAIN}" for path in left]

    def write(self) -> list[str]:
        """Fill the documents and draw the plots; the names of what changed.

        Raises:
            ReportError: matplotlib is missing; the documents are filled nevertheless.
        """
        changed = []
        for name in DOCUMENTS:
            path, filled = self.root / name, self.filled(name)
            if path.read_text(encoding="utf-8") != filled:
                path.write_text(filled, encoding="utf-8")
                changed.append(name)
        for path in self.drawn:
            if path not in self.plots:
                path.unlink()
                changed.append(str(path.relative_to(self.root)))
        for path, (plot, group) in self.plots.items():
            made = draw(plot, group)
            if not path.exists() or path.read_bytes() != made:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(made)
                changed.append(str(path.relative_to(self.root)))
        return changed

    def _content(self, block: Block, folder: Path) -> str:
        request = Request.parse(block.request)
        if block.kind == "table":
            return table(request, self.results)
        if block.kind == "value":
            return figure(request, self.results)
        if request.name not in PLOTS:
            raise ReportError(f"plot {request.name!r} is unknown; pass one of {', '.join(PLOTS)}")
        plot = PLOTS[request.name]
        groups = [group for group in select(plot.source, request.filters, self.results) if plot.suits(group)]
        lines = []
        for group in groups:
            path = self.root / "docs" / "plots" / f"{slug(plot.name, *request.filters.values(), group.slug)}.svg"
            self.plots[path] = (plot, group)
            shown = path.relative_to(folder).as_posix()
            lines.append(f"![{plot.title}: {', '.join(filter(None, (group.setting, group.machine)))}]({shown})")
        return "\n\n".join(lines) or missing(plot.source, request.filters)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md, docs and benchmarks/results")
    arguments = parser.parse_args(words)
    report = Report(arguments.root)
    try:
        if arguments.check:
            stale = report.check()
            for line in stale:
                sys.stderr.write(line + "\n")
            return 1 if stale else 0
        for name in report.write():
            print(f"changed {name}")
    except ReportError as error:
        sys.stderr.write(f"report: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
