"""What stands beside the times: arithmetic against hand counts, the machine, its revision, and the results' files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from pie_engine.benchmarks.harness import BenchmarkError, machine, results
from pie_engine.benchmarks.harness.arithmetic import count_flops, progression_flops
from pie_engine.benchmarks.random_checkpoint import make_scheduler, make_text_encoder, make_unet, make_vae
from pie_engine.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def full_size() -> dict[str, float]:
    """Operations of Stable Diffusion v1.4 at 512 pixels, from modules without memory."""
    with torch.device("meta"):
        unet, vae, text_encoder = make_unet(), make_vae(), make_text_encoder()
    scheduler = dict(make_scheduler().config)
    checkpoint = Checkpoint(unet, vae, text_encoder, None, scheduler, {}, {})  # type: ignore[arg-type]
    return count_flops(checkpoint, 512)


# Multiplications with an addition, in units of 1e9; each tolerance is half of the last digit that is given.
@pytest.mark.parametrize(
    ("component", "multiplications", "tolerance"),
    [("unet", 401.6, 0.05), ("vae_encoder", 558, 0.5), ("vae_decoder", 1257, 0.5)],
)
def test_full_size_counts_are_the_known_ones(
    full_size: dict[str, float], component: str, multiplications: float, tolerance: float
) -> None:
    assert abs(full_size[component] / 2e9 - multiplications) <= tolerance


def test_text_encoder_against_its_formula(full_size: dict[str, float]) -> None:
    tokens, width, layers, hidden = 77, 768, 12, 3072
    products = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    assert full_size["text_encoder"] == 2 * layers * products


def test_small_counts_follow_the_side() -> None:
    from golden import GOLDEN

    checkpoint = load_checkpoint(GOLDEN / "checkpoint_ddim")
    small, large = (count_flops(checkpoint, side) for side in (32, 64))
    assert small["text_encoder"] == large["text_encoder"]
    for name in ("unet", "vae_encoder", "vae_decoder"):
        assert large[name] > 3.5 * small[name]  # convolutions: four times; embeddings: once


def test_a_progression_is_the_sum_of_its_calls() -> None:
    calls = {"text_encoder": 1.0, "vae_encoder": 10.0, "unet": 100.0, "vae_decoder": 1000.0}
    assert progression_flops(calls, rounds=3, steps=5, guided=True) == 3 * 5 * 2 * 100 + 3 * 1000 + 2 * 1 + 10
    assert progression_flops(calls, rounds=3, steps=5, guided=False) == 3 * 5 * 100 + 3 * 1000 + 1 + 10
    # As published: text, image, background and mask's image are encoded in each round.
    official = 3 * 5 * 2 * 100 + 3 * 1000 + 3 * (2 * 1 + 3 * 10)
    assert progression_flops(calls, rounds=3, steps=5, guided=True, official=True) == official
    assert progression_flops(calls, rounds=3, steps=5, guided=True, official=True, batch=4) == 4 * official


def test_what_identifies_a_result() -> None:
    facts = machine.identify("cpu", 2)
    assert list(facts) == ["date", "device", "threads", "versions", "revision"]
    assert facts["threads"] == 2 and facts["device"]
    assert f"torch {torch.__version__}" in facts["versions"].split("; ")
    assert facts["versions"].startswith("python ")
    assert machine.identify("cpu", None)["threads"] == ""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "test")
        monkeypatch.setenv(f"{name}_EMAIL", "test@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for folder in ("code", "docs", "tests", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("1\n")
    (tmp_path / "README.md").write_text("1\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def revision() -> str:
    machine.revision.cache_clear()
    try:
        return machine.revision()
    finally:
        machine.revision.cache_clear()


def test_a_revision_is_dirty_where_code_differs(repository: Path) -> None:
    clean = revision()
    assert len(clean) == 8 and set(clean) <= set("0123456789abcdef")
    for decides_nothing in (
        "benchmarks/results/x.csv",
        "docs/performance.md",
        "README.md",
        "code/NOTES.md",
        "tests/t.py",
    ):
        (repository / decides_nothing).write_text("2\n")
        assert revision() == clean, decides_nothing
    (repository / "code" / "b.py").write_text("new\n")
    assert revision() == f"{clean}-dirty"
    (repository / "code" / "b.py").unlink()
    (repository / "code" / "a.py").write_text("2\n")
    assert revision() == f"{clean}-dirty"


def test_no_repository_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path / "absent")
    assert revision() == ""


def test_limits_are_positive() -> None:
    by_dtype = machine.limits_of("cpu", ["fp32", "bf16"], 1, scale=32)
    assert list(by_dtype) == ["fp32", "bf16"]
    for limits in by_dtype.values():
        assert min(limits.matmul_flops, limits.convolution_flops, limits.copy_bytes) > 0
        assert limits.flops == max(limits.matmul_flops, limits.convolution_flops)


def test_rows_are_appended_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    assert results.read(path) == []
    results.append(path, [{"a": 1 / 3, "b": "x, y"}, {"a": 123456789.0, "b": 'with "quotes"'}])
    results.append(path, [{"a": 2, "b": ""}])
    text = path.read_text()
    assert text.splitlines()[0] == "a,b" and text.count("a,b") == 1
    assert results.read(path) == [
        {"a": "0.333333", "b": "x, y"},
        {"a": "1.23457e+08", "b": 'with "quotes"'},
        {"a": "2", "b": ""},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["results.csv"]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results.append(path, [{"a": 1, "b": 2}])
    before = path.read_bytes()
    with pytest.raises(BenchmarkError, match=r"has other columns \(b, c\); move it away"):
        results.append(path, [{"a": 1, "c": 2}])
    with pytest.raises(BenchmarkError, match=r"has other columns \(their order\)"):
        results.append(path, [{"b": 2, "a": 1}])
    with pytest.raises(ValueError):
        results.append(path, [{"a": 1, "b": 2}, {"a": 1, "z": 2}])  # the second row does not share them
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    results.append(path, [{"a": 1}])

    def fail(self: Path, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError):
        results.append(path, [{"a": 2}])
    assert path.read_text() == "a\n1\n"


def test_the_newest_run_of_each_key() -> None:
    def row(device: str, date: str, revision: str, variant: str) -> dict[str, str]:
        return {"device": device, "date": date, "revision": revision, "variant": variant}

    rows = [
        row("x", "2026-01-01", "a", "eager"),
        row("x", "2026-01-01", "a", "engine"),
        row("y", "2026-01-02", "a", "eager"),
        row("x", "2026-01-03", "b", "eager"),
    ]
    assert results.newest(rows, "device") == rows[2:]
    assert results.newest(rows, "device", "variant") == rows[1:]
    assert results.newest([], "device") == []
