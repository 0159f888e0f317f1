"""Methods against one another: runs made by hand, whose confidence is known, and what compare makes of them."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from progressions import SIDE
from tiny_clip import save_clip

from pie_engine import Result, RunConfig, evaluation
from pie_engine.cli.main import main
from pie_engine.errors import ConfigError, InputError, OutputError
from pie_engine.metrics import measure_change

# The classifiers made here are TorchScript.
compare = functools.partial(evaluation.compare, trust=True)

CONFIDENCE = "confidence: bright"
Save = Callable[..., Path]


class _Brightness(torch.nn.Module):
    """The mean of a grey picture, [N, 1, H, W] to [N, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.jit.script(_Brightness()).save(str(folder / "m.pt"))
    spec = {"file": "m.pt", "name": "bright", "size": SIDE, "channels": 1, "range": [0, 1], "mean": 0, "std": 1}
    (folder / "bright.json").write_text(json.dumps({**spec, "activation": "none"}))
    return folder / "bright.json"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a run: frame n is the input, of mean grey 80, brighter by levels[n - 1], and grain that keeps the mean."""
    place = np.indices((SIDE, SIDE)).sum(0)
    blocks, checks = (np.where(place // width % 2, 1, -1)[:, :, None].repeat(3, 2) for width in (8, 1))

    def write(
        name: str, patient: str, method: dict[str, Any] | None, *levels: int, grain: int = 0, **more: Any
    ) -> Path:
        frames = [80 + 30 * blocks]
        frames += [frames[0] + level + grain * n * checks for n, level in enumerate(levels, 1)]
        stack, latents = np.stack(frames).astype(np.uint8), np.zeros((len(levels), 4, 8, 8), np.float32)
        change = measure_change(latents, latents[0], stack[1:], None, stack, None, None)
        config = RunConfig(steps=len(levels), resolution=SIDE, **more)
        provenance = {
            "statement": "",
            "synthetic": True,
            "item_id": name,
            "input": {"image_sha256": patient * 64},
            "settings": config.to_dict(),
            "simulated": {"prompt": "healthy" if method and method["name"] == "control" else "x", "roi_share": None},
            "change": change.to_dict(),
            **({} if method is None else {"method": method}),
        }
        Result(stack, latents, latents[0], None, change, config, provenance).save(tmp_path / "runs" / name)
        return tmp_path / "runs" / name

    (tmp_path / "runs").mkdir()
    return write


WALK = {"name": "walk", "total_strength": 1.0}


def test_by_hand(save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save("a", "0", None, 51, 102, 103)
    save("b", "1", {"name": "pie"}, 51, 102, 103)
    save("c", "0", WALK, 26, 51, 77, grain=6)
    save("d", "1", WALK, 26, 51, 77, grain=9)
    save("e", "0", {"name": "previous"}, 0, 0, 0)
    save("f", "1", {"name": "previous"}, 0, 0, 0)
    said: list[str] = []
    with caplog.at_level(logging.WARNING):
        summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], on_run=said.append)
    assert not caplog.messages
    assert len(said) == 6
    assert list(summary["methods"]) == ["pie", "previous", "walk"]
    assert summary["methods"]["walk"]["patients"] == summary["methods"]["walk"]["runs"] == 2
    assert summary["methods"]["pie"]["final"][CONFIDENCE]["mean"] == pytest.approx(183 / 255)
    assert [one["mean"] for one in summary["methods"]["walk"]["rounds"][CONFIDENCE]] == pytest.approx(
        [80 / 255, 106 / 255, 131 / 255, 157 / 255]
    )
    still, walk = summary["matched"]
    assert (still["method"], still["patients"], still["confidence"]["defined"]) == ("previous", 2, 0)
    assert still["confidence"]["mean"] is None
    assert (walk["method"], walk["classifier"], walk["similarity_measure"]) == ("walk", "bright", "ssim_inside")
    # Again, from the table: what PIE's lines and the walk's say at the similarities in which they bend.
    with (tmp_path / "out" / "compare.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["pie"] * 8 + ["previous"] * 8 + ["walk"] * 8

    def curve(method: str, patient: str) -> np.ndarray:
        own = [r for r in rows if r["method"] == method and r["patient"] == patient * 12 and r["round"] != "0"]
        return np.array([[float(r["ssim_inside"]), float(r["confidence_bright"])] for r in own])

    expected = []
    for patient in "01":
        a, b = curve("pie", patient)[::-1], curve("walk", patient)[::-1]
        assert (np.diff(a[:, 0]) > 0).all()
        assert (np.diff(b[:, 0]) > 0).all()
        low, high = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
        x = np.linspace(low, high, 200_001)
        apart = np.interp(x, a[:, 0], a[:, 1]) - np.interp(x, b[:, 0], b[:, 1])
        expected.append((apart.mean(), apart[0]))
    assert [row["confidence"]["mean"] for row in walk["by_patient"]] == pytest.approx(
        [e[0] for e in expected], abs=1e-5
    )
    assert [row["confidence"]["end"] for row in walk["by_patient"]] == pytest.approx([e[1] for e in expected])
    assert min(expected[0]) > 0.05  # grain costs similarity and gains nothing
    mean = walk["confidence"]["mean"]
    assert mean["mean"] == pytest.approx((expected[0][0] + expected[1][0]) / 2, abs=1e-5)
    # Of two patients a resample's mean is either's own with 1/4, and theirs with 1/2.
    assert (mean["low"], mean["high"], mean["n"]) == (
        pytest.approx(min(e[0] for e in expected), abs=1e-5),
        pytest.approx(max(e[0] for e in expected), abs=1e-5),
        2,
    )
    # Equal confidence: the walk's frames 2 and 3 lie between PIE's 1 and 2, and bear grain.
    assert walk["similarity"]["defined"] == 2
    assert walk["similarity"]["end"]["mean"] > 0.05
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.size[0] > 1000
        assert "research use only" in picture.text["Comment"]
    with (tmp_path / "out" / "means.csv").open(encoding="utf-8") as file:
        means = {(row["method"], row["round"], row["measure"]): row for row in csv.DictReader(file)}
    last = means["walk", "3", "confidence_bright"]
    assert (float(last["mean"]), last["n"]) == (pytest.approx(157 / 255), "2")
    compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], figures="pdf")  # replaces itself
    assert (tmp_path / "out" / "compare.pdf").read_bytes().startswith(b"%PDF")


def test_latex(save: Save, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("a", "0", None, 51, 102)
    save("b", "0", WALK, 26, 51)
    words = ["compare", str(tmp_path / "runs"), "--classifier", str(classifier), "--output", str(tmp_path / "out")]
    words.append("--trust")
    assert main([*words, "--format", "latex"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("% \\usepackage{booktabs}\n\\begin{table}\n")
    assert captured.out.count("\\begin{table}") == captured.out.count("\\end{table}") == 4
    assert "ssim\\_inside" in captured.out and "PIE minus & confidence at equal similarity" in captured.out
    assert captured.err.splitlines()[-1].startswith(f"{tmp_path / 'out'}: compare.csv, means.csv, compare.png")
    assert main([*words, "--format", "latex", "--json"]) == 2
    assert "not allowed with" in capsys.readouterr().err
    assert main([*words, "--format", "word"]) == 2
    assert main([*words, "--figures", "gif"]) == 2


def test_equal_frames_are_equally_good(save: Save, classifier: Path, tmp_path: Path) -> None:
    save("a", "0", None, 30, 60, 90)
    save("b", "0", WALK, 10, 30, 60, 90, 120)
    (row,) = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier])["matched"]
    for what in ("confidence", "similarity"):
        assert row[what]["mean"]["mean"] == pytest.approx(0, abs=1e-9)
        assert row[what]["end"]["mean"] == pytest.approx(0, abs=1e-9)
        assert row[what]["mean"]["low"] is None


def test_several_runs_of_a_patient_are_averaged_first(save: Save, classifier: Path, tmp_path: Path) -> None:
    save("a", "0", None, 51, 102, seed=1)
    save("b", "0", None, 51, 102, seed=2)
    save("c", "0", WALK, 26, 51, 77, grain=6)
    save("d", "0", WALK, 26, 51, 77, grain=9, seed=1)
    alone = []
    for name in "cd":
        runs = [tmp_path / "runs" / "a", tmp_path / "runs" / name]
        (row,) = compare(runs, tmp_path / name, classifiers=[classifier])["matched"]
        alone.append(row["confidence"]["mean"]["mean"])
    (row,) = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier])["matched"]
    assert row["patients"] == row["confidence"]["defined"] == 1
    assert row["confidence"]["mean"]["mean"] == pytest.approx(sum(alone) / 2)


def test_what_is_mixed_is_said(save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save("a", "0", None, 51, 102)
    save("b", "1", None, 51, 102)
    save("c", "0", WALK, 51, 77, guidance_scale=3.0)
    save("d", "0", {**WALK, "total_strength": 0.5}, 51, 77)
    save("e", "0", {"name": "control", "healthy_prompt": "healthy"}, 1, 2)
    with caplog.at_level(logging.WARNING):
        summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier])
    assert list(summary["methods"]) == ["pie", "control", "walk 0.5", "walk 1"]
    # The control's prompt is another one on purpose.
    assert caplog.messages == [
        "the runs differ in guidance_scale beside the method: the comparison mixes them",
        *(
            f"patients with runs of both PIE and {name}: 1; the others are not matched"
            for name in ("control", "walk 0.5", "walk 1")
        ),
    ]


def test_methods_that_differ_in_their_options_are_said(
    save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save("a", "0", None, 51, 102)
    save("b", "0", {**WALK, "start_prompt": ""}, 51, 77)
    save("c", "0", {**WALK, "start_prompt": "lung"}, 51, 77)
    with caplog.at_level(logging.WARNING):
        compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier])
    assert caplog.messages == ["the runs differ in start prompt beside the method: the comparison mixes them"]


def test_settings_tell_runs_of_one_method_apart(
    save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save("a", "0", None, 51, 102, beta2=0.75)
    save("b", "0", None, 30, 60, beta2=1.0)
    save("c", "1", None, 51, 102, beta2=1.0)
    save("d", "0", WALK, 51, 77)
    save("e", "1", WALK, 51, 77)
    with caplog.at_level(logging.WARNING):
        summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], by=["beta2", "strength"])
    # They do not differ in their strength.
    assert list(summary["methods"]) == ["pie, beta2 0.75", "pie, beta2 1", "walk"]
    assert [(row["pie"], row["method"], row["patients"]) for row in summary["matched"]] == [
        ("pie, beta2 0.75", "walk", 1),
        ("pie, beta2 1", "walk", 2),
    ]
    assert summary["methods"]["pie, beta2 1"]["final"][CONFIDENCE]["mean"] == pytest.approx((140 + 182) / 2 / 255)
    assert summary["differ"] == []
    assert caplog.messages == [
        "by strength: no method's runs differ in it",
        "patients with runs of both pie, beta2 0.75 and walk: 1; the others are not matched",
    ]
    # What each has against the walk is what it has without the other.
    pair = [tmp_path / "runs" / name for name in "ad"]
    (alone,) = compare(pair, tmp_path / "alone", classifiers=[classifier])["matched"]
    assert summary["matched"][0]["by_patient"] == alone["by_patient"]
    words = ["--classifier", str(classifier), "--trust", "--output", str(tmp_path / "out"), "--quiet"]
    assert main(["compare", str(tmp_path / "runs"), *words, "--by", "beta2", "--by", "guidance-scale"]) == 0
    assert "pie, beta2 0.75 minus walk" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "runs"), *words, "--by", "gamma"]) == 2
    assert "by 'gamma' is not a setting of the runs; pass one of beta1, beta2," in capsys.readouterr().err


def test_clip_is_matched_too(save: Save, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    save_clip(tmp_path / "clip")
    save("a", "0", None, 51, 102, 153)
    save("b", "0", WALK, 26, 51, 77, grain=9)
    summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], clip=tmp_path / "clip")
    assert [row["similarity_measure"] for row in summary["matched"]] == ["clip_i", "ssim_inside"]
    assert list(summary["models"]["clip"]) == ["model.safetensors"]


def test_a_setting_that_no_name_shows_is_said(
    save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save("a", "0", None, 51, 102, beta2=0.75)
    save("b", "0", WALK, 51, 77, beta2=1)
    with caplog.at_level(logging.WARNING):
        summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], by=["beta2"])
    assert list(summary["methods"]) == ["pie", "walk"]
    assert [own["settings"] for own in summary["methods"].values()] == [{"beta2": 0.75}, {"beta2": 1}]
    assert caplog.messages == [
        "by beta2: no method's runs differ in it",
        "the runs differ in beta2 beside the method: the comparison mixes them",
    ]


def test_whole_numbers_are_the_same_setting_however_written(save: Save, classifier: Path, tmp_path: Path) -> None:
    save("a", "0", None, 51, 102, beta2=1)
    save("b", "1", None, 51, 102, beta2=1.0)
    save("c", "0", None, 51, 102, beta2=0.5)
    save("d", "0", WALK, 51, 77)
    summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], by=["beta2"])
    assert list(summary["methods"]) == ["pie, beta2 0.5", "pie, beta2 1", "walk"]


def test_a_round_that_one_patient_alone_has_is_drawn_without_an_interval(
    save: Save, classifier: Path, tmp_path: Path
) -> None:
    for name, patient, method in (("a", "0", None), ("b", "1", None), ("c", "0", WALK), ("d", "1", WALK)):
        save(name, patient, method, *([51, 77, 102] if patient == "0" else [51, 77]))
    summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier])
    assert [one["low"] is None for one in summary["methods"]["pie"]["rounds"][CONFIDENCE]] == [False] * 3 + [True]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000


def test_structures_are_matched_too(save: Save, classifier: Path, tmp_path: Path) -> None:
    save("a", "0", None, 51, 102, 103)
    save("b", "0", WALK, 26, 51, 77)
    (tmp_path / "maps").mkdir()
    blocks = (np.indices((SIDE, SIDE)).sum(0) // 8 % 2 * 255).astype(np.uint8)
    for name in "ab":
        Image.fromarray(blocks).save(tmp_path / "maps" / f"{name}.png")
    summary = compare([tmp_path / "runs"], tmp_path / "out", classifiers=[classifier], structures=tmp_path / "maps")
    assert [row["similarity_measure"] for row in summary["matched"]] == ["ssim_inside", "structure_kept"]
    # The pattern is the input's, and ever less of its surroundings: more light in both methods, the same depth for it.
    kept = {name: [one["mean"] for one in own["rounds"]["structure_kept"]] for name, own in summary["methods"].items()}
    assert kept["pie"][0] == kept["walk"][0] == 1 and kept["pie"][1] == pytest.approx(kept["walk"][2])
    assert all(b < a for own in kept.values() for a, b in itertools.pairwise(own))


def test_refusals(save: Save, classifier: Path, tmp_path: Path) -> None:
    pie, walk = save("a", "0", None, 51), save("b", "0", WALK, 51)
    odd = save("c", "0", {"name": "walk", "total_strength": "x"}, 51)
    other = save("d", "1", WALK, 51)
    cases: list[tuple[type[Exception], list[Path], list[Path], str]] = [
        (
            InputError,
            [pie],
            [classifier],
            r"the runs are of pie alone; pass PIE's and a baseline's \(method=NAME\)",
        ),
        (InputError, [walk], [classifier], "the runs are of walk alone"),
        (InputError, [pie, odd], [classifier], "does not say which method made it"),
        (InputError, [tmp_path / "nowhere"], [classifier], "is not a folder"),
        (InputError, [pie, other], [classifier], "no patient has runs of both PIE and a baseline"),
        (ConfigError, [pie, walk], [], "no classifier is given"),
        (ConfigError, [pie, walk], [tmp_path / "none.json"], r"none\.json cannot be read"),
    ]
    for kind, folders, classifiers, line in cases:
        with pytest.raises(kind, match=line) as caught:
            compare(folders, tmp_path / "out", classifiers=classifiers)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r"holds no summary\.json of an earlier result"):
        compare([pie, walk], pie, classifiers=[classifier])
