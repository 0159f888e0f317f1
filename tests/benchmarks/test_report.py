"""Tables and plots from made-up results, and that this repository's documents are in line with its own."""

from __future__ import annotations

import re
import shutil
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pie_engine.benchmarks import report, report_plots
from pie_engine.benchmarks.harness import results
from pie_engine.benchmarks.report_plots import PLOTS, plot
from pie_engine.benchmarks.report_rows import ReportError
from pie_engine.benchmarks.report_tables import HEADINGS, TABLES, form, table

ROOT = Path(__file__).parents[2]
KEY = {
    "date": "2026-01-02T10:00Z", "device": "Some Processor (avx2)", "threads": 2, "versions": "torch 2.13.0",
    "revision": "aaaaaaaa",
}  # fmt: skip
STEP = {"shape": "2x4x64x64", "kept": 0, "dtype": "fp32", "gb_per_s": 40.0, "copy_gb_per_s": 20.0}
SETTING = {"model": "demo", "resolution": 128, "rounds": 10, "evaluations": 250, "batch": 1}
Write = Callable[..., None]
# Units that only a measurement has; "512 x 512" is a size.
TYPED = re.compile(
    r"(?<![\w.])\d+(?:\.\d+)? ?"
    r"(?:s|ms|us|µs|min|minutes|seconds|hours|GB|MB|GiB|MiB|[GT]B/s|[MGT]FLOP(?:/s)?|dB|%|times|x(?! ?\d))(?![\w/])"
)
BLOCK = re.compile(r"<!-- \[\[\[cog (.*?) \]\]\] -->\n(.*?)<!-- \[\[\[end\]\]\] -->", re.DOTALL)


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
def folder(tmp_path: Path) -> Path:
    """Of results, in a repository that holds nothing else."""
    return tmp_path / "benchmarks" / "results"


@pytest.fixture
def write(folder: Path) -> Write:
    def append(name: str, rows: list[dict[str, Any]]) -> None:
        results.append(folder / f"{name}.csv", rows)

    return append


def test_a_table_has_numbers_of_three_digits_and_its_origin(folder: Path, write: Write) -> None:
    write("progression", progression())
    assert table("progression", folder, model="demo").splitlines() == [
        # no device memory: it is not known
        "| variant | median | p20 to p80 | speed-up | its p20 to p80 | warm-up | loading | host memory |",
        "|---|---|---|---|---|---|---|---|",
        "| eager | 5.00 s | 4.50 s to 5.50 s | 1.00 | 0.90 to 1.10 | 10.0 s | 1.00 s | 1.50 GB |",
        "| engine | 2.00 s | 1.80 s to 2.20 s | 2.50 | 2.25 to 2.75 | 4.00 s | 1.00 s | 1.50 GB |",
        "",
        "<sub>Some Processor (avx2), 2 threads; model demo, 128 x 128, 10 rounds, 250 guided steps, batch 1; "
        "revision aaaaaaaa (2026-01-02); `python benchmarks/progression.py --model demo --resolution 128 --rounds 10 "
        "--batch 1 --threads 2`</sub>",
    ]
    write("progression", progression(model="sd", rounds=1, evaluations=29))
    sd = table("progression", folder, model="sd")
    assert "1 round, 29 guided steps" in sd and "--rounds 1 --batch 1 --threads 2 --strength 0.59`" in sd
    assert "| engine | 1.50 | 600 | 2.50 s | 2.00 s | 0.80 | 50.0 % |" in table("floor", folder)


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


def test_every_heading_has_a_column_in_the_results() -> None:
    """A renamed column of a script would silently lose its column in the documents."""
    for name, (source, headings) in TABLES.items():
        columns = set(results.read(results.FOLDER / f"{source.csv}.csv")[0])
        for heading in headings.split(" | "):
            names = re.split(r" |\.\.", HEADINGS.get(heading, heading).replace("=", ""))
            computed = HEADINGS.get(heading, "").startswith("=")
            optional = {"note", "device memory"}
            assert computed or heading in optional or columns & set(names), (name, heading)


def test_the_newest_run_of_each_row_wins_and_revisions_are_told(folder: Path, write: Write) -> None:
    write("progression", progression(revision="old", date="2025-12-01T10:00Z", speedup=9.0))
    write("progression", progression())
    again = progression(revision="new", date="2026-01-03T10:00Z")[1:]
    write("progression", [row | {"median_s": 1.0} for row in again])
    write("progression", [row | {"median_s": 1.5} for row in again])  # within the same minute
    text = table("progression", folder)
    assert "9.00" not in text
    assert text.count("| eager |") == text.count("| engine | 1.50 s |") == text.count("| engine |") == 1
    assert "revisions aaaaaaaa (2026-01-02), new (2026-01-03)" in text


def test_a_ladder_is_shown_whole(folder: Path, write: Write) -> None:
    rows = [row | {"rung": i, "speedup_over_previous": 1.0} for i, row in enumerate(progression())]
    write("ladder", rows)
    write("ladder", [row | {"revision": "new"} for row in rows[:1]])
    assert "| engine |" not in table("ladder", folder)


def test_filters_and_settings_keep_rows_apart(folder: Path, write: Write) -> None:
    write("progression", progression())
    write("progression", progression(resolution=256))
    write("progression", progression(model="sd"))
    both = table("progression", folder, model="demo")
    assert [line for line in both.splitlines() if line.startswith("**")] == ["**128 x 128**", "**256 x 256**"]
    assert not re.search(r"\*\*|128", table("progression", folder, model="demo", resolution=256))


def test_machines_have_tables_of_their_own(folder: Path, write: Write) -> None:
    write("progression", progression())
    write("progression", progression(threads=1))
    write("progression", progression(device="NVIDIA H100", threads="", device_peak_mb=9000.0))
    text = table("progression", folder)
    headings = ["**Some Processor (avx2), 2 threads**", "**Some Processor (avx2), 1 thread**", "**NVIDIA H100**"]
    assert [line for line in text.splitlines() if line.startswith("**")] == headings
    gpu = table("progression", folder, kind="gpu")
    assert ("Processor" in gpu, "| device memory |" in gpu) == (False, True)
    assert "| NVIDIA H100 | aaaaaaaa | torch 2.13.0 | 2026-01-02 | progression.csv |" in table("runs", folder)


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, write: Write) -> None:
    write("progression", progression())
    (folder / "components.csv").write_text("component,machine\nunet,Some Processor\n")  # from before rows had keys
    assert table("growth", folder, model="sd") == "Not measured yet: `python benchmarks/growth.py --model sd`."
    assert table("components", folder) == "Not measured yet: `python benchmarks/components.py`."
    assert table("progression", folder, model="sd", resolution=256) == (
        "Not measured yet: `python benchmarks/progression.py --model sd --resolution 256`."
    )
    assert table("throughput", folder, kind="gpu") == (
        "Not measured yet: `python benchmarks/throughput.py`, on a machine with an NVIDIA GPU."
    )
    assert plot("ladder", root=tmp_path) == "Not measured yet: `python benchmarks/ladder.py`."
    with pytest.raises(ReportError, match="table 'nothing' is unknown; pass one of progression"):
        table("nothing", folder)
    with pytest.raises(ReportError, match="plot 'nothing' is unknown; pass one of progression"):
        plot("nothing", root=tmp_path)


def all_results(write: Write) -> None:
    """Rows for every plot, with a gap in each that can have one."""
    rows = progression()
    write("progression", rows)
    write("ladder", [row | {"rung": i, "psnr_db": ("", "inf")[i]} for i, row in enumerate(rows)])
    write("components", [row | {"component": name} for row in rows for name in ("unet", "vae_decoder")][:3])
    grown = [row | {"batch": n, "items_per_s": n / 2} for row in rows for n in (1, 2, 4)]
    failed = {**rows[0], "batch": 8, "median_s": "", "host_peak_mb": "", "items_per_s": ""}
    write("throughput", [*grown, failed])
    varied = [row | {"factor": name, "value": n} for row in rows for name in ("rounds", "batch") for n in (1, 2, 20)]
    write("growth", varied)
    write("denoise_step", [{**KEY, "variant": name, **STEP, **times(1e-5)} for name in ("eager", "cpp")])


def test_plots_are_drawn_the_same_twice_and_checked_without_drawing(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install '.[bench]')")
    all_results(write)
    links = [plot(name, root=tmp_path) for name in PLOTS]
    assert links[0].endswith("](plots/progression-some-processor-avx2-2-threads.svg)")
    demo = plot("progression", root=tmp_path, model="demo")
    assert demo.endswith("](plots/progression-demo-some-processor-avx2-2-threads.svg)")
    plots = tmp_path / "docs" / "plots"
    drawn = {path.name: path.read_bytes() for path in plots.iterdir()}
    assert len(drawn) == len(PLOTS) + 1
    for name, data in drawn.items():
        assert b"Some Processor (avx2), 2 threads; revision aaaaaaaa (2026-01-02)" in data, name
        assert b"<dc:date>" not in data
        assert len(data) < 60_000
        xml.etree.ElementTree.fromstring(data)
    path = plots / "ladder-some-processor-avx2-2-threads.svg"
    path.unlink()
    assert [plot(name, root=tmp_path) for name in PLOTS] == links
    assert path.read_bytes() == drawn[path.name]

    monkeypatch.setattr(report_plots, "draw", lambda *_: pytest.fail("what is current, or only checked, is not drawn"))
    assert [plot(name, root=tmp_path) for name in PLOTS] == links
    assert [plot(name, root=tmp_path, check=True) for name in PLOTS] == links
    path.unlink()
    write("denoise_step", [{**KEY, "variant": "cpp", **STEP, **times(2e-5)}])
    stale = [plot(name, root=tmp_path, check=True) for name in ("ladder", "denoise-step")]
    assert [line.partition(" is not")[0] for line in stale] == [
        "plots/ladder-some-processor-avx2-2-threads.svg", "plots/denoise-step-some-processor-avx2-2-threads.svg",
    ]  # fmt: skip


def test_plots_say_that_they_need_matplotlib(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("progression", progression())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match="plots need matplotlib, which is not installed: pip install"):
        plot("progression", root=tmp_path)


def test_the_scripts_that_measure_the_tables_are_there() -> None:
    assert all((ROOT / "benchmarks" / f"{source.script or source.csv}.py").exists() for source, _ in TABLES.values())


def test_this_repository_is_in_line_with_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().out
    documents = {name: (ROOT / name).read_text(encoding="utf-8") for name in report.DOCUMENTS}
    assert all(BLOCK.search(text) for text in documents.values())
    others = [path for path in (ROOT / "docs").rglob("*.md") if str(path.relative_to(ROOT)) not in documents]
    assert [path.name for path in others if "[[[cog" in path.read_text(encoding="utf-8")] == []
    linked = " ".join(documents.values())
    assert [path.name for path in (ROOT / "docs" / "plots").iterdir() if f"plots/{path.name})" not in linked] == []


def test_a_changed_cell_is_shown_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in report.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    document = tmp_path / "docs" / "performance.md"
    right = document.read_text(encoding="utf-8")
    block = next(match for match in BLOCK.finditer(right) if "ladder" in match[1])
    wrong = right.replace(block[2], block[2].replace(" s |", " min |", 1))
    document.write_text(wrong, encoding="utf-8")
    assert report.main(["--check"], root=tmp_path) == 5
    told = capsys.readouterr()
    assert re.search(r"^-.* min \|", told.out, re.MULTILINE) and "run python benchmarks/report.py" in told.err
    assert document.read_text(encoding="utf-8") == wrong
    assert report.main([], root=tmp_path) == 0
    assert document.read_text(encoding="utf-8") == right
    document.write_text(right.replace('table("ladder")', 'table("leader")'), encoding="utf-8")
    assert report.main(["--check"], root=tmp_path) not in (0, 5)
    assert "ReportError: table 'leader' is unknown" in "".join(capsys.readouterr())


def test_measured_numbers_stand_in_blocks() -> None:
    """A number that somebody typed goes stale without a test that says so."""
    text = BLOCK.sub("", (ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)\n]*\)|^ {4}.*$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if TYPED.search(line)] == []
