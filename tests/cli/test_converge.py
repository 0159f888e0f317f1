"""`pie-engine converge`: on folders with planted numbers, and on a run of the golden checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pie_engine import Item, OutputConfig, PieEngine, RunConfig
from pie_engine.evaluation.converge import check_run, check_runs
from pie_engine.evaluation.converge_plot import draw_increments
from pie_engine.outputs.figure import NOTE, new_figure

SVG = "{http://www.w3.org/2000/svg}"


def planted(folder: Path, rate: float, rounds: int = 8, **settings: Any) -> Path:
    """A run's provenance with increments 0.4 rate^n and an outside that stays."""
    increments = [0.4 * rate**n for n in range(1, rounds + 1)]
    displacement = [math.fsum(increments[:n]) for n in range(1, rounds + 1)]
    change = {"increment_inside": increments, "displacement_inside": displacement}
    provenance = {
        "settings": {"beta1": 0.01, "beta2": 0.75, "noise": "shared", "inversion": "noise", "semantics": "engine"}
        | settings,
        "input": {"roi": {"regions": [{"kind": "picture"}]}},
        "simulated": {"roi_share": 0.2},
        "backend": {"precision": "fp32"},
        "change": {**change, "displacement_outside": [0.001] * rounds},
    }
    folder.mkdir()
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_table_and_verdict(pie: Any, tmp_path: Path) -> None:
    outcome = pie("converge", planted(tmp_path / "run", 0.75))
    assert (outcome.code, outcome.err) == (0, "")
    head, *lines = outcome.out.splitlines()
    assert head.split() == ["round", "increment", "ratio", "constant", "edit", "displacement", "outside"]
    assert lines[0].split() == ["1", "3.000e-01", "3.000e-01", "0.3000", "1.0e-03"]
    assert lines[7].split() == ["8", "4.005e-02", "0.750", "4.005e-02", "1.0799", "1.0e-03"]
    assert lines[9:] == [
        "verdict     converges: the late rate's interval, 0.750 to 0.750, lies below 1",
        "rate        0.750 (95 %: 0.750 to 0.750) in rounds 1 to 8, half-life 2.41 rounds",
        "late rate   0.750 (95 %: 0.750 to 0.750) in rounds 4 to 8, half-life 2.41 rounds",
        "ratios      from 0.750 to 0.750, one increment to the one before",
        "remaining   at most 0.12 after the last round, in latent units, if the rate holds",
        "inside      as beta2 predicts: yes, displacement 2.7 against 2.7 times the edit; rate 0.750 against 0.75",
        "            so late rounds carry 1.000 of a change into the next",
        "outside     as beta1 predicts: yes, displacement 0.01 against 0.0101 times the edit",
        "            (a displacement that does not add up stays at beta1 = 0.01)",
        "measured    on latents at least half inside the region (--save-latents tells more), provenance.json",
        "paper       its bound needs numbers that no run has (docs/convergence.md)",
    ]


def test_many_rounds_are_shown_by_twelve(pie: Any, tmp_path: Path) -> None:
    lines = pie("converge", planted(tmp_path / "run", 0.99, rounds=100)).out.splitlines()
    assert [int(line.split()[0]) for line in lines[1:13]] == [1, 10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]


def test_undecided_says_how_many_rounds_are_needed(pie: Any, tmp_path: Path) -> None:
    folder = planted(tmp_path / "run", 0.75, rounds=5, noise="fresh")
    change = json.loads((folder / "provenance.json").read_text())["change"]
    edit(folder, change=change | {"increment_inside": [math.exp(0.3 * (-1) ** n) for n in range(5)]})
    out = pie("converge", folder).out
    assert "verdict     undecided: " in out
    assert "            about --steps 20 would decide, if it goes on like this\n" in out
    assert "noise       fresh: " in out


def test_what_cannot_be_compared_is_said(pie: Any, tmp_path: Path) -> None:
    several = planted(tmp_path / "several", 0.6)
    edit(several, input={"roi": {"regions": [{"beta": 0.9}, {}]}})
    assert "not compared: the regions have several betas (0.75, 0.9)" in pie("converge", several).out
    own = planted(tmp_path / "own", 0.9)
    edit(own, input={"roi": {"regions": [{"beta": 0.9}, {"beta": 0.9}]}})
    assert "as beta2 predicts: yes" in pie("converge", own).out
    official = pie("converge", planted(tmp_path / "official", 0.75, semantics="official", noise="fresh")).out
    assert "as beta     not compared: as published" in official
    assert "predicts" not in official
    bare = planted(tmp_path / "bare", 0.75)
    change = json.loads((bare / "provenance.json").read_text())["change"] | {"displacement_outside": None}
    edit(bare, simulated={"roi_share": None}, input={}, change=change)
    out = pie("converge", bare).out
    assert "as predicted without a mask, where nothing is blended: no, displacement 3.6 against 8 times" in out
    assert "outside" not in out
    still = planted(tmp_path / "still", 0.0)
    assert "verdict     converges: nothing changes in any round\ninside      not compared" in pie("converge", still).out


def test_json(pie: Any, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    said = json.loads(pie("converge", planted(tmp_path / "run", 0.75), "--json", "--output", plot).out)
    assert said["settings"] == {"beta1": 0.01, "betas_inside": [0.75], "noise": "shared", "semantics": "engine"}
    assert (said["trend"]["verdict"], said["plot"], said["paper_bound"]) == ("converges", str(plot), None)
    assert said["inside"]["limit"] == pytest.approx(3)
    assert said["rounds"]["increments"][0] == pytest.approx(0.3)


def texts_of(svg: Path) -> set[str]:
    return {"".join(element.itertext()).strip() for element in ElementTree.parse(svg).getroot().iter(f"{SVG}text")}


def test_svg_says_what_was_measured_fitted_and_predicted(pie: Any, tmp_path: Path) -> None:
    run, plot = planted(tmp_path / "run", 0.5, inversion="ddim"), tmp_path / "plot.svg"
    outcome = pie("converge", run, "--output", plot)
    assert outcome.out.endswith(f"look at {plot}\n")
    texts = texts_of(plot)
    assert {"measured", "fitted: r = 0.500 (0.500 to 0.500)", "constant edit: beta2^n, beta2 = 0.75"} <= texts
    assert "Change per round inside the region of interest, inversion" in texts
    content = plot.read_bytes()
    assert b"not for diagnosis" in content and len(content) < 20_000
    pie("converge", run, "--output", plot)
    assert plot.read_bytes() == content


def lines_of(*folders: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The plot's lines by their names, [points, 2], and its axes."""
    with new_figure() as figure:
        axes = figure.subplots()
        draw_increments(axes, check_runs(folders))
    return {str(line.get_label()): np.array(line.get_xydata()) for line in axes.lines}, axes


def test_a_decay_is_a_straight_line(tmp_path: Path) -> None:
    lines, axes = lines_of(planted(tmp_path / "run", 0.5))
    assert axes.get_yscale() == "log"
    measured, fitted, predicted = lines.values()
    assert next(iter(lines)) == "measured"
    assert measured == pytest.approx(np.array([(n, 0.4 * 0.5**n) for n in range(1, 9)]))
    assert fitted == pytest.approx(measured)
    assert predicted == pytest.approx(np.array([(n, 0.2 * 0.75 ** (n - 1)) for n in range(1, 9)]))


def test_what_no_logarithm_shows_is_left_out(tmp_path: Path) -> None:
    """An increment of zero, and a prediction that falls far below what was measured."""
    folder = planted(tmp_path / "run", 0.75, beta2=0.001)
    change = json.loads((folder / "provenance.json").read_text())["change"]
    increments = [0.5, 0.0, *[0.25] * 6]
    edit(folder, change=change | {"increment_inside": increments})
    lines, axes = lines_of(folder)
    assert lines["measured"].tolist() == [[n, value] for n, value in enumerate(increments, 1) if value]
    low, high = axes.get_ylim()
    assert 0.02 < low < 0.25 and 0.5 < high < 1
    assert [f"{tick:g}" for tick in axes.get_yticks() if low <= tick <= high] == ["0.05", "0.1", "0.2", "0.5"]


def test_png_has_three_lines(pie: Any, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    assert pie("converge", planted(tmp_path / "run", 0.6), "--output", plot).code == 0
    with Image.open(plot) as opened:
        assert opened.text["Comment"] == NOTE
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    for colour in ((0, 114, 178), (213, 94, 0), (0, 122, 90)):
        assert (np.abs(pixels - colour).max(-1) < 12).sum() > 300


def test_folders_of_runs(pie: Any, tmp_path: Path) -> None:
    """A row for each run, wherever it lies; a line for each in the plot."""
    for name, rate in (("a", 0.5), ("b", 0.75), ("c", 1.0)):
        (tmp_path / "runs" / "cell").mkdir(parents=True, exist_ok=True)
        planted(tmp_path / "runs" / "cell" / name, rate)
    plot = tmp_path / "plot.svg"
    outcome = pie("converge", tmp_path / "runs", "--output", plot)
    assert (outcome.code, outcome.err) == (0, "")
    rows = outcome.out.splitlines()
    assert rows[0].split()[:3] == ["run", "rounds", "verdict"]
    names = [str(tmp_path / "runs" / "cell" / name) for name in "abc"]
    assert [row.split()[0] for row in rows[1:4]] == names
    assert "0.500 [0.500, 0.500]" in rows[1] and rows[2].split()[-2:] == ["yes", "yes"]
    assert rows[-2:] == ["3 runs; converges: 2, does not converge: 1", f"look at {plot}"]
    assert set(names) <= texts_of(plot)
    said = json.loads(pie("converge", tmp_path / "runs", "--json").out)
    assert [run["run"] for run in said["runs"]] == names
    alone = json.loads(pie("converge", names[0], "--json").out)
    assert {**alone, "plot": 0} == {**said["runs"][0], "plot": 0}
    assert check_run(Path(names[0])).found == check_runs([tmp_path / "runs"])[0].found
    planted(tmp_path / "runs" / "cell" / "short", 0.5, rounds=2)
    outcome = pie("converge", tmp_path / "runs")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "cell/short: 2 rounds cannot show convergence" in outcome.err
    assert "cell/a is named twice" in pie("converge", tmp_path / "runs", names[0]).err


def test_a_real_run(pie: Any, checkpoint: Path, image: Path, mask: Path, tmp_path: Path) -> None:
    """Latents decide where they were saved; damaged ones are refused and not passed over."""
    engine = PieEngine.load(checkpoint=checkpoint, backend="torch", device="cpu")
    config = RunConfig(steps=4, num_inference_steps=4, guidance_scale=1.0, resolution=128)
    result = engine.run(Item(image, "heart", mask), config)
    result.save(tmp_path / "run", OutputConfig(latents=True, report=False))
    said = json.loads(pie("converge", tmp_path / "run", "--json").out)
    assert said["source"] == "latents.safetensors"
    latent_mask = np.asarray(Image.open(tmp_path / "run/mask.png")).reshape(16, 8, 16, 8).mean((1, 3))
    inside = latent_mask == 255
    assert 0 < inside.sum() < (latent_mask > 0).sum()
    apart = np.diff(np.concatenate([result.original_latent[None], result.latents]), axis=0)[..., inside]
    assert said["rounds"]["increments"] == pytest.approx(np.sqrt((apart**2).mean((1, 2))).tolist(), rel=1e-5)
    assert [len(trend["ratios"]) for trend in said["channels"]] == [2] * 4
    (tmp_path / "run/latents.safetensors").unlink()
    said = json.loads(pie("converge", tmp_path / "run", "--json").out)
    assert (said["source"], said["channels"]) == ("provenance.json", None)
    assert said["rounds"]["increments"] == result.change.increment_inside


def test_refusals(pie: Any, tmp_path: Path) -> None:
    good = planted(tmp_path / "good", 0.75)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, content in (
        ("text", "no JSON"),
        ("list", "[]"),
        ("other", '{"files": []}'),
        ("bundle", '{"settings": {"beta1": 0.01}, "change": {}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(content)
    for name, change in (("numbers", {"increment_inside": ["x"] * 8}), ("nan", {"increment_inside": [math.nan] * 8})):
        folder = planted(tmp_path / name, 0.75)
        edit(folder, change=json.loads((folder / "provenance.json").read_text())["change"] | change)
    damaged = planted(tmp_path / "damaged", 0.75)
    (damaged / "latents.safetensors").write_bytes(b"x" * 100)
    shape = planted(tmp_path / "shape", 0.75)
    arrays = {"latents": np.zeros((7, 4, 16, 16), np.float32), "original_latent": np.zeros((4, 16, 16), np.float32)}
    save_file(arrays, shape / "latents.safetensors")
    no_mask = planted(tmp_path / "no_mask", 0.75)
    save_file(arrays | {"latents": np.zeros((8, 4, 16, 16), np.float32)}, no_mask / "latents.safetensors")
    odd_mask = Path(shutil.copytree(no_mask, tmp_path / "odd_mask"))
    Image.fromarray(np.zeros((130, 128), np.uint8)).save(odd_mask / "mask.png")
    fp8 = planted(tmp_path / "fp8", 0.75)
    edit(fp8, backend={"precision": "fp8"})
    again = "does not hold what a run writes"
    for words, line in (
        (["missing"], "is not a folder; pass a folder that pie-engine run wrote, or one that holds such folders"),
        (["file"], "is a file; pass a folder"),
        (["empty"], "holds no provenance.json, nor does a folder in it"),
        (["text"], f"{again} (JSONDecodeError in its files); run pie-engine run again"),
        *(
            ([name], again)
            for name in ("list", "other", "bundle", "numbers", "damaged", "shape", "no_mask", "odd_mask")
        ),
        (["fp8"], again),
        (["nan"], "a change is negative or not finite"),
        ([planted(tmp_path / "one", 0.75, rounds=1)], "1 round cannot show convergence (at least 3 needed)"),
        ([planted(tmp_path / "two", 0.75, rounds=2)], "2 rounds cannot show convergence"),
        ([good, "--output", tmp_path / "plot.jpg"], "does not end in .png, .svg or .pdf; pass another name"),
        ([good, "--output", tmp_path / "nowhere" / "plot.svg"], "there is no folder"),
        ([planted(tmp_path / "still", 0.0), "--output", tmp_path / "plot.svg"], "no change to plot in any round"),
    ):
        first, *rest = words
        outcome = pie("converge", tmp_path / first, *rest)
        assert (outcome.code, outcome.out) == (2, ""), words
        assert outcome.err.startswith("pie-engine: error: "), words
        assert line in outcome.err, words
        assert outcome.err.count("\n") == 1, words
    assert not (tmp_path / "plot.svg").exists()
