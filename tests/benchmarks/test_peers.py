"""The script that measures peers, on the smallest model, with those that are installed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pie_engine.benchmarks import peers
from pie_engine.benchmarks.harness import BenchmarkError, results
from pie_engine.demo.assets import CHECKPOINT

# The demo, whose graphs are known: the cold process exports nothing.
WORDS = ["--checkpoint", CHECKPOINT, "--resolution", 64, "--steps", 1, "--rounds", 1, "--repeats", 1]


def test_two_peers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    words = [
        *WORDS,
        "--folder",
        tmp_path / "work",
        "--output",
        tmp_path,
        "--peers",
        "pie-engine onnxruntime",
        "diffusers",
    ]
    peers.main(list(map(str, words)))
    own, other = results.read(tmp_path / "peers.csv")
    assert (own["variant"], other["variant"]) == ("pie-engine onnxruntime", "diffusers")
    for one in (own, other):
        assert all(float(one[name]) > 0 for name in ("first_cold_s", "first_warm_s", "round_s", "host_peak_mb"))
        assert "torch " in one["packages"] and (one["resolution"], one["steps"]) == ("64", "1")
    # What the cold process kept is what the warm ones found.
    assert (tmp_path / "work" / "cache" / "pie-engine-onnxruntime" / "pie-engine" / "bundles").is_dir()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--peers", "a1111"], "no peer is called a1111; pass some of pie-engine onnxruntime, "),
        (["--rounds", "0"], "rounds, steps and repeats are at least 1; pass --rounds 2 --steps 5 --repeats 3"),
        (["--checkpoint", "nowhere", "--peers", "diffusers"], "diffusers ended with 1; the lines above say why"),
    ],
)
def test_bad_input(words: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=line):
        peers.main([*words, "--folder", str(tmp_path / "work"), "--output", str(tmp_path)])
    assert not list(tmp_path.glob("*.csv"))
