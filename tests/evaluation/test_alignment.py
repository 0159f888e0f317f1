"""Prompts by rounds: similarities against transformers' own model, means and p by hand, and every refusal."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_runs import provenance, write_run
from PIL import Image
from scipy import stats
from tiny_clip import TOKENS, save_clip, tokens_by_hand

from pie_engine.errors import CheckpointError, InputError, OutputError
from pie_engine.evaluation import Run, align, read_prompts
from pie_engine.evaluation.align_plot import draw_alignment
from pie_engine.evaluation.align_summary import similarities_csv, summarise, to_line, to_table
from pie_engine.evaluation.align_texts import Aligned, Line
from pie_engine.metrics.controls import negate, shuffle_words

SEVERE, LEFT, NORMAL = "Severe cardiomegaly.", "A large left effusion.", "Normal lungs."


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_clip(folder)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with two prompts each."""
    folder = tmp_path_factory.mktemp("cohort")
    for patient, prompt in itertools.product((1, 2), (SEVERE, LEFT)):
        write_run(folder / f"{patient}-{prompt[:4]}", patient, prompt)
    return folder


def cosines(clip: tuple[Path, Any, Any], run: Path, texts: list[str]) -> np.ndarray:
    """[N + 1, texts], by transformers' own forward pass."""
    folder, model, processor = clip
    images = [Image.open(path) for path in sorted((run / "frames").glob("*.png"))]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=tokens_by_hand(folder, texts), pixel_values=pixels).logits_per_image
    return (logits / model.logit_scale.exp()).detach().numpy()


def test_every_similarity_against_transformers(clip: Any, cohort: Path, tmp_path: Path) -> None:
    summary = align([cohort], tmp_path / "out", clip=clip[0], prompts=[NORMAL, SEVERE], seed=4)
    with (tmp_path / "out" / "align.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6 * 3  # runs, texts, rounds
    found = {(row["run"], row["role"], row["text"], int(row["round"])): float(row["similarity"]) for row in rows}
    for own, other in ((SEVERE, LEFT), (LEFT, SEVERE)):
        run = cohort / f"1-{own[:4]}"
        orders = shuffle_words(own, seed=4)
        expected = cosines(clip, run, [own, other, NORMAL, negate(own), "", *orders])
        for column, (role, text) in enumerate(
            (("own", own), ("other", other), ("line", NORMAL), ("negated", negate(own)), ("empty", ""))
        ):
            values = [found[str(run), role, text, index] for index in range(3)]
            assert values == pytest.approx(expected[:, column], abs=1e-5), role
        shuffled = [found[str(run), "shuffled", orders[0], index] for index in range(3)]
        assert shuffled == pytest.approx(expected[:, 5:].mean(axis=1), abs=1e-5)
    both = [cosines(clip, cohort / f"{patient}-Seve", [SEVERE])[:, 0] for patient in (1, 2)]
    (_, severe) = summary["rounds"]  # in the order of the runs' names
    assert severe["prompt"] == SEVERE
    assert severe["texts"][0]["similarity"] == pytest.approx(np.mean(both, axis=0), abs=1e-5)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    with Image.open(tmp_path / "out" / "align.png") as picture:
        assert picture.width > 600 and picture.height > 500
    assert list(summary["models"]["clip"]) == ["model.safetensors"]
    align([cohort], tmp_path / "out", clip=clip[0])  # an earlier result is replaced


def aligned(patient: int, prompt: str, rises: dict[str, float], controls: tuple[float, float] = (0.0, 0.0)) -> Aligned:
    """One run whose similarities all begin at 0.2 and rise by half of `rises` in each of two rounds."""
    run = Run(Path("r"), f"{patient}-{prompt}", provenance(patient, prompt, 2))
    texts = [("own", prompt), *(("other", text) for text in rises if text != prompt)]
    values = {text: 0.2 + rise * np.array([0, 0.5, 1]) for text, rise in rises.items()}
    lines = [Line(role, text, values[text]) for role, text in texts]
    shuffled, empty = (0.2 + rise * np.array([0, 0.5, 1]) for rise in controls)
    return Aligned(run, prompt, (*lines, Line("shuffled", "x", shuffled), Line("empty", "", empty)))


def test_means_over_patients_and_the_test_by_hand() -> None:
    """Patient 1 has two runs with prompt a (two seeds), patient 2 one with each."""
    runs = [
        aligned(1, "a", {"a": 0.30, "b": 0.10}, (0.20, 0.0)),
        aligned(1, "a", {"a": 0.10, "b": 0.00}, (0.00, 0.0)),
        aligned(1, "b", {"a": 0.05, "b": 0.25}, (0.05, 0.1)),
        aligned(2, "a", {"a": 0.40, "b": 0.20}, (0.10, 0.2)),
        aligned(2, "b", {"a": 0.30, "b": 0.30}, (0.30, 0.3)),
    ]
    summary = summarise(runs, ["a", "b"], [], permutations=100, seed=0)
    assert (summary["runs"], summary["patients"]) == (5, 2)
    rises = {one["role"]: one for one in summary["rises"]}
    # Patient 1: (0.30 + 0.10 + 0.25) / 3; patient 2: (0.40 + 0.30) / 2.
    assert rises["own"]["rise"]["mean"] == pytest.approx((0.65 / 3 + 0.35) / 2)
    assert rises["own"]["own_minus"] is None
    assert rises["other"]["rise"]["mean"] == pytest.approx((0.15 / 3 + 0.25) / 2)
    assert rises["other"]["own_minus"]["mean"] == pytest.approx((0.50 / 3 + 0.10) / 2)
    assert rises["shuffled"]["own_minus"]["mean"] == pytest.approx((0.40 / 3 + 0.15) / 2)
    assert "negated" not in rises
    matrix = [[cell["mean"] for cell in row] for row in summary["matrix"]]
    np.testing.assert_allclose(matrix, [[(0.2 + 0.4) / 2, (0.05 + 0.2) / 2], [(0.05 + 0.3) / 2, (0.25 + 0.3) / 2]])
    assert summary["rounds"][0]["texts"][0]["similarity"] == pytest.approx([0.2, 0.35, 0.5])
    # Cells after the mean over seeds: 1a (0.20, 0.05), 1b (0.05, 0.25), 2a (0.40, 0.20), 2b (0.30, 0.30).
    test = summary["test"]
    kept, swapped = (0.20 + 0.25) / 2, (0.05 + 0.05) / 2
    kept2, swapped2 = (0.40 + 0.30) / 2, (0.20 + 0.30) / 2
    sums = [(first + second) / 2 for first in (kept, swapped) for second in (kept2, swapped2)]
    assert test["observed"] == pytest.approx(sums[0])
    assert test["expected"] == pytest.approx(np.mean(sums))
    assert (test["p"], test["exact"], test["arrangements"]) == (0.25, True, 4)
    assert (test["per_patient"], test["between"]) == (2, 0)
    assert to_line(test).endswith(
        "p = 0.25 (all 4 exchanges, within each of 2 patients); so few runs give no p below 0.25"
    )


def test_patients_with_one_prompt_exchange_theirs() -> None:
    """Against scipy, which permutes the prompts of patients."""
    rng = np.random.default_rng(6)
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    scores = rng.normal(0, 0.02, (7, 3))
    scores[np.arange(7), labels] += 0.02
    runs = [
        aligned(patient, "abc"[own], dict(zip("abc", scores[patient], strict=True)))
        for patient, own in enumerate(labels)
    ]
    test = summarise(runs, ["a", "b", "c"], [], permutations=1000, seed=0)["test"]
    theirs = stats.permutation_test(
        (labels,),
        lambda drawn: scores[np.arange(7), drawn.astype(int)].mean(),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=5040,
        vectorized=False,
    )
    assert test["observed"] == pytest.approx(theirs.statistic)
    assert test["p"] == pytest.approx(theirs.pvalue)
    assert (test["per_patient"], test["between"], test["arrangements"]) == (0, 7, 210)
    assert "(all 210 exchanges, among 7 patients)" in to_line(test)


def test_right_prompts_are_told_from_none() -> None:
    rng = np.random.default_rng(1)

    def p_value(effect: float) -> float:
        runs = [
            aligned(patient, own, {text: rng.normal() + effect * (text == own) for text in "abcd"})
            for patient, own in itertools.product(range(8), "abcd")
        ]
        test = summarise(runs, list("abcd"), [], permutations=2000, seed=0)["test"]
        assert not test["exact"] and test["counted"] == 2001 and test["arrangements"] == 24**8
        return float(test["p"])

    assert p_value(2.0) == 1 / 2001
    without = [p_value(0.0) for _ in range(12)]
    assert stats.binom.sf(sum(p <= 0.1 for p in without) - 1, 12, 0.1) > 0.001


def test_when_there_is_nothing_to_exchange(clip: Any, tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", 1, SEVERE)
    summary = align([one], tmp_path / "out", clip=clip[0])
    assert summary["test"] == {"undefined": "all runs have one prompt; add runs towards another prompt"}
    table = str(to_table(summary))
    assert "not tested, as all runs have one prompt; add runs towards another prompt" in table
    assert table.startswith("1 run of 1 patient towards 1 prompt; ") and "no interval with one patient" in table
    assert "other runs' prompts" not in table


def test_an_empty_prompt_and_lines_without_effect(clip: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", 1, "")
    write_run(tmp_path / "runs" / "b", 2, "cardiomegaly")
    summary = align([tmp_path / "runs"], tmp_path / "out", clip=clip[0], prompts=["cardiomegaly", NORMAL, NORMAL])
    roles = [[one["role"] for one in made["texts"]] for made in summary["rounds"]]
    assert roles == [["own", "other", "line"], ["own", "other", "line", "negated", "empty"]]
    assert [one["text"] for one in summary["rises"] if one["role"] == "line"] == [NORMAL]


def test_what_was_not_read(clip: Any, tmp_path: Path) -> None:
    long = "The heart is not markedly enlarged . No normal lungs , a large effusion ."
    run = write_run(tmp_path / "run", 1, long)
    facts = json.loads((run / "provenance.json").read_text())
    facts["simulated"]["prompt_cut_off"] = "effusion ."
    (run / "provenance.json").write_text(json.dumps(facts))
    summary = align([run], tmp_path / "out", clip=clip[0], prompts=[NORMAL])
    assert summary["truncated"] == [
        {
            "text": long,
            "tokens": 17,
            "limit": TOKENS,
            "cut_off_by_clip": ", a large effusion .",
            "cut_off_by_model": "effusion .",
        }
    ]
    table = str(to_table(summary))
    assert "(17 tokens, CLIP reads 12): CLIP did not read ', a large effusion .'" in table
    assert "the model did not read 'effusion .'" in table


def test_runs_that_mix_settings_and_rounds(clip: Any, tmp_path: Path, caplog: Any) -> None:
    write_run(tmp_path / "runs" / "a", 1, SEVERE, rounds=1, guidance_scale=3.0)
    write_run(tmp_path / "runs" / "b", 2, SEVERE, rounds=2, guidance_scale=5.0)
    with caplog.at_level(logging.WARNING):
        summary = align([tmp_path / "runs"], tmp_path / "out", clip=clip[0])
    assert "the runs differ in guidance_scale, steps: their means mix them" in caplog.text
    own = summary["rounds"][0]["texts"][0]["similarity"]
    last = cosines(clip, tmp_path / "runs" / "b", [SEVERE])
    assert len(own) == 3 and own[2] == pytest.approx(last[2, 0], abs=1e-5)


def test_a_picture_of_many_prompts_and_rounds_is_bounded() -> None:
    """Eight prompts and sixty rounds: a matrix each for six, ten rounds, and what was left out is said."""
    texts = [{"role": "own", "text": "word " * 60, "similarity": [0.1 + 0.001 * n for n in range(61)]}]
    rounds = [{"prompt": f"prompt {index} " * 20, "texts": texts} for index in range(8)]
    with Image.open(io.BytesIO(draw_alignment({"rounds": rounds})["align.png"])) as picture:
        assert picture.width < 2000 and picture.height < 1500
        assert "simulated" in picture.info["Comment"]


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff Normal heart. \r\n\r\nÉpanchement\n".encode())
    assert read_prompts(file) == ["Normal heart.", "Épanchement"]
    for content, line in (
        (b"\n \n", "holds no text; write one prompt per line"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"x" * 1_000_001, "is longer than 1,000,000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=line):
            read_prompts(file)
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError\)"):
        read_prompts(tmp_path / "none.txt")


def test_refusals_leave_nothing(clip: Any, cohort: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    silent = write_run(tmp_path / "silent", 1, SEVERE)
    facts = json.loads((silent / "provenance.json").read_text())
    (silent / "provenance.json").write_text(json.dumps(facts | {"simulated": {}}))
    schedule = [{"rounds": "1", "guidance_scale": 5}, {"rounds": "2", "prompt": NORMAL}]
    changing = write_run(tmp_path / "changing", 1, SEVERE, schedule=schedule)
    for folder, where, checkpoint, permutations, kind, line in (
        (
            cohort,
            output,
            tmp_path / "none",
            10,
            CheckpointError,
            "is not a folder; pass the folder of a CLIP checkpoint",
        ),
        (cohort, output, clip[0], 0, InputError, "0 permutations are too few; pass at least 1"),
        (
            tmp_path / "none",
            output,
            clip[0],
            10,
            InputError,
            "is not a folder; pass a folder that pie-engine run wrote",
        ),
        (silent, output, clip[0], 10, InputError, "does not say its prompt; run pie-engine run again"),
        (changing, output, clip[0], 10, InputError, r"changes over its rounds \(schedule\); leave that run out"),
        (cohort, tmp_path / "other", clip[0], 10, OutputError, r"holds no summary\.json of an earlier result"),
    ):
        with pytest.raises(kind, match=line):
            align([folder], where, clip=checkpoint, permutations=permutations)
        assert not output.exists()


def test_the_table_of_every_similarity() -> None:
    rows = list(csv.reader(similarities_csv([aligned(3, "a", {"a": 0.2, "b, c": 0.1})]).splitlines()))
    assert rows[0] == ["run", "item_id", "patient", "prompt", "role", "text", "round", "similarity"]
    assert rows[2] == ["3-a", "p3", "0" * 12, "a", "own", "a", "1", "0.30000000000000004"]
    assert rows[4][4:7] == ["other", "b, c", "0"]
