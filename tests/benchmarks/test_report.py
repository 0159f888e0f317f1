"""Tables and plots from made-up results, and that this repository's documents are in line with its own."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pie_engine.benchmarks import report
from pie_engine.benchmarks.harness import results
from pie_engine.benchmarks.report_format import form
from pie_engine.benchmarks.report_markers import blocks
from pie_engine.benchmarks.report_plots import PLOTS
from pie_engine.benchmarks.report_rows import ReportError, Request
from pie_engine.benchmarks.report_tables import TABLES, figure, table

ROOT = Path(__file__).parents[2]
KEY = {
    "date": "2026-01-02T10:00Z", "device": "Some Processor (avx2)", "threads": 2, "versions": "torch 2.13.0",
    "revision": "aaaaaaaa",
}  # fmt: skip
STEP = {"shape": "2x4x64x64", "kept": 0, "dtype": "fp32", "gb_per_s": 40.0, "copy_gb_per_s": 20.0}
SETTING = {"model": "demo", "resolution": 128, "rounds": 10, "evaluations": 250, "batch": 1}
Write = Callable[..., None]


def times(seconds: float, speedup: float = 1.0) -> dict[str, Any]:
    return {
        "repeats": 5, "warm_up_s": 2 * seconds, "p20_s": 0.9 * seconds, "median_s": seconds, "p80_s": 1.1 * seconds,
        "speedup": speedup, "speedup_p20": 0.9 * speedup, "speedup_p80": 1.1 * speedup, "host_peak_mb": 1500.0,
        "device_peak_mb": 0.0,
    }  # fmt: skip


def progression(**changes: Any) -> list[dict[str, Any]]:
    """Two variants of a run."""
    work = {"load_s": 1.0, "psnr_db": "", "tflop": 1.5, "gflop_per_s": 300.0, "peak_gflop_per_s": 600.0, "share": 0.5}
    first, second = {"variant": "eager", **times(5.0)}, {"variant": "engine", **times(2.0, 2.5)}
    return [{**KEY, **SETTING, **row, **work, **changes} for row in (first, second)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two documents and no results."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Name\n\nBuilt in 5 s.\n\n## What is measured\n\n## State\n\nIn 3 s.\n")
    (tmp_path / "docs" / "performance.md").write_text("# Performance\n")
    return tmp_path


@pytest.fixture
def write(root: Path) -> Write:
    def append(name: str, rows: list[dict[str, Any]]) -> None:
        results.append(root / "benchmarks" / "results" / f"{name}.csv", rows)

    return append


def shown(root: Path, text: str) -> str:
    return table(Request.parse(text), root / "benchmarks" / "results")


def test_a_table_has_numbers_of_three_digits_and_its_origin(root: Path, write: Write) -> None:
    write("progression", progression())
    assert shown(root, "progression model=demo").splitlines() == [
        "| variant | median | speed-up | its p20 to p80 | host memory |",  # no device memory: it is not known
        "| --- | --- | --- | --- | --- |",
        "| eager | 5.00 s | 1.00 | 0.90 to 1.10 | 1.50 GB |",
        "| engine | 2.00 s | 2.50 | 2.25 to 2.75 | 1.50 GB |",
        "",
        "<sub>Some Processor (avx2), 2 threads; model demo, 128 x 128, 10 rounds, 250 guided steps, batch 1; "
        "revision aaaaaaaa (2026-01-02); `python benchmarks/progression.py --model demo --resolution 128 --rounds 10 "
        "--batch 1 --threads 2`</sub>",
    ]
    write("progression", progression(model="sd", rounds=1, evaluations=29))
    assert "--rounds 1 --batch 1 --threads 2 --strength 0.59`" in shown(root, "progression model=sd")
    assert "| engine | 1.50 | 600 | 2.50 s | 2.00 s | 0.80 | 50.0 % |" in shown(root, "floor")


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("median_s", 287.4, "287 s"), ("median_s", 0.0123456, "12.3 ms"), ("median_s", 22.53e-6, "22.5 us"),
        ("share", 1.034, "103.4 %"), ("host_peak_mb", 98.7e6, "98.7 MB"), ("gb_per_s", 0.0, "0"),
        ("gflop_per_s", 1234.5, "1234"), ("psnr_db", float("inf"), "equal"), ("step_speedup", 1.005, "1.00"),
    ],
)  # fmt: skip
def test_the_form_of_a_number(name: str, number: float, expected: str) -> None:
    assert form(name, number) == expected


def test_the_newest_run_of_each_row_wins_and_revisions_are_told(root: Path, write: Write) -> None:
    write("progression", progression(revision="old", date="2025-12-01T10:00Z", speedup=9.0))
    write("progression", progression())
    again = progression(revision="new", date="2026-01-03T10:00Z")[1:]
    write("progression", [row | {"median_s": 1.0} for row in again])
    write("progression", [row | {"median_s": 1.5} for row in again])  # within the same minute
    text = shown(root, "progression")
    assert "9.00" not in text
    assert text.count("| eager |") == text.count("| engine | 1.50 s |") == text.count("| engine |") == 1
    assert "revisions aaaaaaaa (2026-01-02), new (2026-01-03)" in text


def test_a_ladder_is_shown_whole(root: Path, write: Write) -> None:
    rows = [row | {"rung": i, "step_speedup": 1.0} for i, row in enumerate(progression())]
    write("ladder", rows)
    write("ladder", [row | {"revision": "new"} for row in rows[:1]])
    assert "| engine |" not in shown(root, "ladder")


def test_filters_and_settings_keep_rows_apart(root: Path, write: Write) -> None:
    write("progression", progression())
    write("progression", progression(resolution=256))
    write("progression", progression(model="sd"))
    both = shown(root, "progression model=demo")
    assert [line for line in both.splitlines() if line.startswith("**")] == ["**128 x 128**", "**256 x 256**"]
    assert not re.search(r"\*\*|128", shown(root, "progression model=demo resolution=256"))
    folder = root / "benchmarks" / "results"
    with pytest.raises(ReportError, match="2 rows fit"):
        figure(Request.parse("progression speedup model=sd"), folder)
    assert figure(Request.parse("progression speedup model=sd variant=engine"), folder) == "2.50"
    assert figure(Request.parse("progression speedup model=other"), folder) == "(not measured yet)"


def test_machines_have_tables_of_their_own(root: Path, write: Write) -> None:
    write("progression", progression())
    write("progression", progression(threads=1))
    write("progression", progression(device="NVIDIA H100", threads="", device_peak_mb=9000.0))
    text = shown(root, "progression")
    headings = ["**Some Processor (avx2), 2 threads**", "**Some Processor (avx2), 1 thread**", "**NVIDIA H100**"]
    assert [line for line in text.splitlines() if line.startswith("**")] == headings
    gpu = shown(root, "progression kind=gpu")
    assert ("Processor" in gpu, "| device memory |" in gpu) == (False, True)
    assert "| progression.csv | NVIDIA H100 | aaaaaaaa | torch 2.13.0 | 2026-01-02 |" in shown(root, "runs")


def test_what_is_missing_is_said_and_the_rest_is_filled(root: Path, write: Write) -> None:
    write("progression", progression())
    old = root / "benchmarks" / "results" / "components.csv"  # from before rows had keys
    old.write_text("component,machine\nunet,Some Processor\n")
    document = root / "docs" / "performance.md"
    names = [
        "growth model=sd",
        "components",
        "progression model=sd resolution=256",
        "throughput kind=gpu",
        "progression",
    ]
    text = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in names)
    document.write_text(text + "<!-- plot: ladder -->\n<!-- end -->\n")
    assert report.main(["--root", str(root)]) == 0
    lines = document.read_text().splitlines()
    assert [line for line in lines if line.startswith("Not")] == [
        "Not measured yet: `python benchmarks/growth.py --model sd`.",
        "Not measured yet: `python benchmarks/components.py`.",
        "Not measured yet: `python benchmarks/progression.py --model sd --resolution 256`.",
        "Not measured yet: `python benchmarks/throughput.py`, on a machine with an NVIDIA GPU.",
        "Not measured yet: `python benchmarks/ladder.py`.",
    ]
    assert "| engine | 2.00 s | 2.50 | 2.25 to 2.75 | 1.50 GB |" in lines


def test_a_second_run_changes_nothing_and_markers_stay(
    root: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("progression", progression())
    document = root / "docs" / "performance.md"
    value = '<!-- value: progression speedup variant="engine" -->'
    document.write_text(f"Before\n\n<!-- table: floor -->\n<!-- end -->\n\nIt is {value}<!-- end --> times faster.\n")
    assert report.main(["--root", str(root)]) == 0
    assert capsys.readouterr().out == "changed docs/performance.md\n"
    first = document.read_text()
    assert first.startswith("Before\n\n<!-- table: floor -->\n| variant |")
    assert first.endswith(f"</sub>\n<!-- end -->\n\nIt is {value}2.50<!-- end --> times faster.\n")
    assert report.main(["--root", str(root)]) == 0
    assert (document.read_text(), capsys.readouterr().out) == (first, "")


def test_check_names_stale_tables_and_typed_numbers(
    root: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("progression", progression())
    readme, document = root / "README.md", root / "docs" / "performance.md"
    document.write_text("<!-- table: progression -->\n<!-- end -->\n<!-- table: runs -->\n<!-- end -->\n")
    command = ["--root", str(root)]
    assert report.main(command) == 0
    assert report.main([*command, "--check"]) == 0  # README's other sections are not this script's
    filled = document.read_text()
    document.write_text(filled.replace("| engine | 2.00 s", "| engine | 1.90 s"))
    readme.write_text(
        readme.read_text().replace("measured\n", "measured\n\nIt takes 2.1 s, at 512 x 512: `run 3 s`.\n")
    )
    assert report.main([*command, "--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "README.md: typed number '2.1 s' in 'It takes 2.1 s, at 512 x 512: .'; "
        "put it in a block, or say it without one",
        "docs/performance.md: table: progression is stale; run python benchmarks/report.py",
    ]
    assert report.main(command) == 0
    assert document.read_text() == filled
    write("progression", progression(revision="new"))
    assert report.main([*command, "--check"]) == 1
    assert capsys.readouterr().err.count("is stale") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->\n<!-- end -->", "table 'nothing' is unknown"),
        ("<!-- plot: nothing -->\n<!-- end -->", "plot 'nothing' is unknown"),
        ("<!-- table: runs -->\n<!-- table: runs -->\n<!-- end -->", "<!-- table: runs --> has no <!-- end -->"),
        ("<!-- value: progression --><!-- end -->", "a value needs a table and a column"),
        ("<!-- table: model=demo -->\n<!-- end -->", "names nothing"),
    ],
)
def test_a_marker_that_means_nothing_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (root / "docs" / "performance.md").write_text(text)
    assert report.main(["--root", str(root), "--check"]) == 1
    assert message in capsys.readouterr().err


def all_results(write: Write) -> None:
    """Rows for every plot, with a gap in each that can have one."""
    rows = progression()
    write("progression", rows)
    write("ladder", [row | {"rung": i, "step_speedup": 1.0, "psnr_db": ("", "inf")[i]} for i, row in enumerate(rows)])
    write("components", [row | {"component": name} for row in rows for name in ("unet", "vae_decoder")][:3])
    grown = [row | {"batch": n, "items_per_s": n / 2} for row in rows for n in (1, 2, 4)]
    failed = {**rows[0], "batch": 8, "median_s": "", "host_peak_mb": "", "items_per_s": ""}
    write("throughput", [*grown, failed])
    varied = [row | {"factor": name, "value": n} for row in rows for name in ("rounds", "batch") for n in (1, 2, 20)]
    write("growth", varied)
    write("denoise_step", [{**KEY, "variant": name, **STEP, **times(1e-5)} for name in ("eager", "cpp")])


def test_plots_are_drawn_the_same_twice_and_checked_without_drawing(
    root: Path, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install '.[bench]')")
    all_results(write)
    document = root / "docs" / "performance.md"
    document.write_text("".join(f"<!-- plot: {name} -->\n<!-- end -->\n" for name in PLOTS))
    (root / "README.md").write_text("<!-- plot: progression model=demo -->\n<!-- end -->\n")
    command, folder = ["--root", str(root)], root / "docs" / "plots"
    assert report.main(command) == 0
    drawn = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(drawn) == len(PLOTS) + 1
    for name, data in drawn.items():
        assert b"Some Processor (avx2), 2 threads; revision aaaaaaaa (2026-01-02)" in data, name
        assert b"<dc:date>" not in data
        assert len(data) < 60_000
        xml.etree.ElementTree.fromstring(data)
    assert "](docs/plots/progression-demo-some-processor-avx2-2-threads.svg)" in (root / "README.md").read_text()
    assert "](plots/growth-some-processor-avx2-2-threads.svg)" in document.read_text()
    for path in folder.iterdir():
        path.unlink()
    assert report.main(command) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == drawn

    monkeypatch.setattr(report, "draw", lambda plot, group: pytest.fail("checking draws nothing"))
    assert report.main([*command, "--check"]) == 0
    (folder / "own.svg").write_text("<svg/>")  # somebody's own picture
    next(folder.glob("ladder*")).unlink()
    write("denoise_step", [{**KEY, "variant": "cpp", **STEP, **times(2e-5)}])
    document.write_text(document.read_text().replace("<!-- plot: growth -->", "<!-- plot: growth model=sd -->"))
    capsys.readouterr()
    assert report.main([*command, "--check"]) == 1
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "docs/performance.md: plot: growth model=sd is stale",
        "docs/plots/ladder-some-processor-avx2-2-threads.svg is missing",
        "docs/plots/denoise-step-some-processor-avx2-2-threads.svg is stale",
        "docs/plots/growth-some-processor-avx2-2-threads.svg belongs to no document",
    ]


def test_without_matplotlib_tables_are_filled_all_the_same(
    root: Path, write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("progression", progression())
    document = root / "docs" / "performance.md"
    document.write_text("<!-- plot: progression -->\n<!-- end -->\n<!-- table: progression -->\n<!-- end -->\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main(["--root", str(root)]) == 1
    assert capsys.readouterr().err == "report: plots need matplotlib, which is not installed: pip install '.[bench]'\n"
    assert "| engine | 2.00 s" in document.read_text()


def test_the_scripts_that_measure_the_tables_are_there() -> None:
    assert all(
        (ROOT / "benchmarks" / f"{made.source.script or made.source.csv}.py").exists() for made in TABLES.values()
    )


def test_this_repository_is_in_line_with_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().err
    assert all(blocks((ROOT / name).read_text()) for name in report.DOCUMENTS)
