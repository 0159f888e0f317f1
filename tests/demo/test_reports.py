import json

import numpy as np
import pytest

from pie_engine.demo import reports
from pie_engine.demo.assets import load_defaults
from pie_engine.demo.phantom import sample_patient
from pie_engine.demo.training.tokenizer import END, MAX_LENGTH, START, learn_merges, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, save_tokenizer(folder, reports.corpus())


@pytest.mark.parametrize(
    ("ctr", "expected"),
    [(0.42, ("normal",)), (0.51, ("borderline",)), (0.56, ("mild", "enlarged")), (0.66, ("enlarged", "severe"))],
)
def test_grades_follow_the_ratio(ctr, expected):
    assert reports.heart_grades(ctr) == expected


def test_reports_say_what_the_phantom_shows():
    rng = np.random.default_rng(0)
    healthy = {reports.report(sample_patient(1), rng) for _ in range(60)}
    assert len(healthy) > 8
    assert not any("enlarged" in text or text.startswith("Cardiomegaly") for text in healthy)
    fluid = sample_patient(1, ctr=0.65, effusion=0.4)
    side = "left" if fluid.effusion_left else "right"
    for _ in range(20):
        text = reports.report(fluid, rng).lower()
        assert "pleural effusion" in text and side in text and "large" in text
        assert "enlarged" in text or "cardiomegaly" in text


def test_merges_stop_when_every_word_is_one_token():
    assert learn_merges(["aab aab ab"]) == [("a", "b</w>"), ("a", "ab</w>")]


def test_every_word_of_a_report_is_one_token(tokenizer):
    _, tokens = tokenizer
    for text in [*reports.corpus(), load_defaults().prompt, load_defaults().healthy_prompt]:
        words = text.replace(".", " .").replace(",", " ,").lower().split()
        assert tokens.tokenize(text) == [word + "</w>" for word in words]
        assert len(words) + 2 <= MAX_LENGTH


def test_any_text_survives_the_round_trip(tokenizer):
    _, tokens = tokenizer
    ids = tokens("Cardiomegaly with pneumothorax, naïve 42!").input_ids
    assert ids[0] == tokens.bos_token_id and ids[-1] == tokens.eos_token_id
    decoded = tokens.decode(ids, skip_special_tokens=True).replace(" ", "")
    assert decoded == "cardiomegalywithpneumothorax,naïve42!"


def test_files_are_clip_s(tokenizer):
    folder, tokens = tokenizer
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version") and len(vocabulary) == 512 + len(merges) - 1 + 2
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert (tokens.bos_token, tokens.eos_token, tokens.pad_token) == (START, END, END)
    padded = tokens("", padding="max_length", max_length=MAX_LENGTH).input_ids
    assert padded == [tokens.bos_token_id] + [tokens.eos_token_id] * (MAX_LENGTH - 1)
