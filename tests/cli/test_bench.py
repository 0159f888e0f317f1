"""`pie-engine bench`: its table, its JSON, what it refuses, and what it does where memory runs out. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from local_subject import Local

from pie_engine.benchmarks import quick, quick_model
from pie_engine.benchmarks.harness import BenchmarkError, MemoryRanOut, remote
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.cli.bench import report
from pie_engine.kernels.dispatch import select

# Two steps of one round at the smallest side, and limits from tiny sizes.
SMALL = (
    "bench", "--quick", "--device", "cpu", "--resolution", 32, "--threads", 1, "--limits-scale", 32,
)  # fmt: skip
PUBLISHED = "eager fp32, as published"


def check_found(found: dict[str, Any]) -> None:
    assert found["machine"]["device"] and found["machine"]["threads"] == 1
    assert found["versions"]["pie-engine"] and found["date"]
    assert found["limits"]["fp32"]["flops"] > 0
    assert found["config"] == {
        "model": found["config"]["model"], "dtype": "fp32", "rounds": 1, "strength": 0.04, "resolution": 32,
        "batch": found["config"]["batch"], "repeats": 1, "device": "cpu", "threads": 1, "evaluations": 2,
    }  # fmt: skip
    for row in found["rows"]:
        assert row["dtype"] == "fp32" and row["repeats"] == 1
        assert len(row["seconds"]) == len(row["warm_up_seconds"]) == 1
        assert 0 < row["p20_s"] <= row["median_s"] <= row["p80_s"]
        assert row["median_s"] == pytest.approx(row["seconds"][0] / row["batch"])  # per item
        assert row["host_peak_mb"] > 0 and row["device_peak_mb"] == 0
    first, *others = found["rows"]
    assert found["baseline"] == first["variant"] and first["speedup"] == 1
    for row in others:
        assert row["speedup"] == pytest.approx(first["median_s"] / row["median_s"])
    part = found["round"]
    fastest = min(
        (row for row in found["rows"] if row["variant"].startswith("engine")), key=lambda row: row["median_s"]
    )
    assert part["variant"] == fastest["variant"] and part["round_s"] > 0
    assert part["fused_step"] == select("cpu").name  # what a run takes
    assert sum(part[f"{name}_share"] for name in ("unet", "step", "decode", "rest")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "length"),
    [
        ((), (3, 0.5, 3)),
        (("--quick",), (1, 0.04, 1)),
        (("--quick", "--rounds", 2), (2, 0.04, 1)),
        (("--strength", 0.25, "--quick", "--repeats", 4), (1, 0.25, 4)),
    ],
)
def test_quick_is_short_where_nothing_else_is_said(
    pie: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[Any, ...], length: tuple[float, ...]
) -> None:
    asked = []

    def bench(config: quick.Quick, on_line: Any) -> None:
        asked.append((config.rounds, config.strength, config.repeats))
        raise BenchmarkError("enough")

    monkeypatch.setattr(quick, "bench", bench)
    assert pie("bench", *words).code == 2
    assert asked == [length]


def test_a_checkpoint_beside_eager(pie: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (quick, remote):
        monkeypatch.setattr(module, "Remote", Local)  # a bundle below has the processes
    path = tmp_path / "found.json"
    path.write_text("an earlier one")
    outcome = pie(
        *SMALL, "--checkpoint", checkpoint, "--backend", "torch,onnxruntime", "--batch", 2, "--json", "--output", path
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1 and json.loads(path.read_text()) == found
    assert list(tmp_path.iterdir()) == [path]
    check_found(found)
    assert [row["variant"] for row in found["rows"]] == [PUBLISHED, "engine, torch fp32", "engine, onnxruntime fp32"]
    assert [row["batch"] for row in found["rows"]] == [1, 2, 2]
    assert found["config"]["model"] == str(checkpoint) and found["notes"] == []
    for row in found["rows"]:
        assert row["share"] == pytest.approx(row["gflop_per_s"] / row["peak_gflop_per_s"])
        assert row["gflop_per_s"] == pytest.approx(1e3 * row["tflop"] / row["median_s"])
    # Published, text and three images are encoded in a round; the engine encodes text and one image once.
    assert found["rows"][0]["tflop"] > found["rows"][1]["tflop"] == found["rows"][2]["tflop"]
    told = outcome.err.splitlines()
    assert "measuring what this machine reaches at best" in told
    assert any(line.startswith(f"warm-up: {PUBLISHED}: ") for line in told)
    table = report(found)
    assert max(map(len, table)) <= 100
    title = "Times PER ITEM: the engine runs 2 at once, eager PyTorch one; memory is of all"
    assert title in table and f"speed-up: median of the ratios, repeat by repeat, over {PUBLISHED}" in table
    line = table[table.index(title) + 2]
    assert line.startswith(PUBLISHED) and "1.00 x" in line and line.endswith("%")


def test_a_bundle_alone(pie: Any, bundle: Any) -> None:
    outcome = pie(*SMALL, "--engine", bundle.path, "--backend", "onnxruntime", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    place = lines.index("Times of one progression, of one item")
    assert lines[place + 2].startswith("engine, onnxruntime fp32") and lines[place + 2].endswith("-       -")
    assert lines[place + 3] == "speed-up: median of the ratios, repeat by repeat, over engine, onnxruntime fp32"
    assert "note             eager PyTorch runs checkpoints, so backends are compared with one another; pass" in lines
    assert any(line.startswith("a round of       engine, onnxruntime fp32: ") for line in lines)


REFUSALS: list[tuple[list[Any], str]] = [
    (["--engine", "x", "--checkpoint", "y"], "a bundle and a checkpoint are given; pass --engine or --checkpoint"),
    (["--engine", "x", "--lora", "y"], "a bundle and a checkpoint are given"),
    (["--engine", "x", "--compare", "published"], "eager PyTorch runs checkpoints, not bundles; pass --checkpoint"),
    (["--engine", "nowhere"], "bundle nowhere does not exist"),
    (["--checkpoint", "nowhere"], "nowhere"),
    (["--backend", "torch,tensorflow"], "backend 'tensorflow' is unknown; pass one of tensorrt, tensorrt-rtx, torch"),
    (["--backend", "auto"], "backend 'auto' is unknown"),
    (["--backend", ""], "backend '' is unknown"),
    (["--backend", "tensorrt"], "backend tensorrt runs on an NVIDIA GPU, not on cpu"),
    (["--backend", "onnxruntime", "--dtype", "bf16"], "backend onnxruntime has no bf16"),
    (["--compare", "published,best"], "compare 'best' is unknown; pass one of published, tuned, or none"),
    (["--compare", "none,published"], "compare 'none' is unknown"),
    (["--dtype", "int8"], "invalid choice: 'int8'"),
    (["--repeats", "0"], "repeats 0 is not a positive number; pass --repeats 1 or more"),
    (["--batch", "-1"], "batch -1 is not a positive number"),
    (["--threads", "0"], "threads 0 is not a positive number"),
    (["--rounds", "0"], "steps 0 is outside"),
    (["--strength", "0.01"], "strength 0.01 of 50 steps runs no denoising step"),
    (["--resolution", "7"], "resolution 7 is outside"),
    (["--device", "tpu"], "device 'tpu' is not here"),
    (["--output", "found.txt"], "found.txt does not end in .json"),
    (["--output", "no/such/folder/found.json"], "no folder no/such/folder"),
    (["extra"], "unrecognized arguments: extra"),
]


@pytest.mark.parametrize(
    ("words", "line"), REFUSALS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_refusals(pie: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], line: str) -> None:
    """One line before any process starts, and no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick, "Remote", lambda spec: pytest.fail("a process was started"))
    monkeypatch.setattr("pie_engine.benchmarks.harness.machine.limits_of", lambda *given: pytest.fail("limits"))
    outcome = pie(*SMALL, *words)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert line in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_resolution_that_does_not_fit(pie: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "Remote", lambda spec: pytest.fail("a process was started"))
    outcome = pie(*SMALL, "--checkpoint", checkpoint, "--resolution", 40)
    assert outcome.code == 2 and "resolution 40 does not fit this U-Net" in outcome.err


def statuses(**lacking: dict[str, str]) -> dict[str, Any]:
    names = (
        "tensorrt",
        "tensorrt-rtx",
        *(f"{name} on {on}" for name in ("torch", "onnxruntime") for on in ("CPU", "GPU")),
    )
    backends = [{"name": name, "problems": []} for name in (*names, "openvino on CPU")]
    for status in backends:
        own = lacking.get(str(status["name"]).partition(" ")[0])
        status["problems"] = [own] if own else []  # type: ignore[assignment]
    return {"backends": backends}


def test_backends_that_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    lack = {"what": "openvino is not installed", "remedy": "pip install openvino"}
    monkeypatch.setattr("pie_engine.machine.doctor.diagnose", lambda: statuses(openvino=lack))
    cpu, gpu = quick.Quick(device="cpu"), quick.Quick(device="cuda")
    assert quick_model.choose(cpu, "fp32", None) == ["torch", "onnxruntime"]
    assert quick_model.choose(gpu, "fp16", None) == ["torch", "onnxruntime"]  # nothing is compiled unasked
    assert quick_model.choose(quick.Quick(device="cuda", backends=("tensorrt",)), "fp16", None) == ["tensorrt"]
    assert quick_model.choose(cpu, "bf16", None) == ["torch"]
    with pytest.raises(BenchmarkError, match=r"does not run here \(openvino is not installed\): pip install openvino"):
        quick_model.choose(quick.Quick(device="cpu", backends=("torch", "openvino")), "fp32", None)


def test_a_bundles_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holding:
        """A bundle with TensorRT engines."""

        unknown_models: ClassVar[list[str]] = []

        def engines(self, flavour: str) -> list[str]:
            return ["unet"] if flavour == "tensorrt" else []

    monkeypatch.setattr("pie_engine.machine.doctor.diagnose", statuses)
    gpu = quick.Quick(engine="x", device="cuda")
    assert quick_model.choose(gpu, "fp16", Holding()) == ["tensorrt", "torch", "onnxruntime"]  # type: ignore[arg-type]
    assert quick_model.choose(quick.Quick(engine="x", device="cpu"), "fp32", Holding()) == ["openvino", "onnxruntime"]  # type: ignore[arg-type]


class Subject:
    """Gives planted calls, or raises them."""

    def __init__(self, *calls: float | Exception):
        self._calls, self.closed = iter(calls), False

    def __call__(self) -> Call:
        call = next(self._calls)
        if isinstance(call, Exception):
            raise call
        return Call(call)

    def close(self) -> None:
        self.closed = True


def test_a_variant_that_runs_out_of_memory_is_left_out() -> None:
    subjects = {"a": Subject(9, 1, 2), "b": Subject(9, MemoryRanOut("out of memory: 3 GiB")), "c": Subject(9, 3, 4)}
    errors: dict[str, str] = {}
    told: list[str] = []
    samples = quick.measure(subjects, 2, errors, told.append)
    assert {name: own.seconds for name, own in samples.items()} == {"a": [1, 2], "c": [3, 4]}
    assert errors == {"b": "out of memory: 3 GiB"}
    assert [name for name, subject in subjects.items() if subject.closed] == ["b"]
    assert "repeat 1: b: out of memory: 3 GiB" in told


def test_a_variant_that_fails_otherwise_stops_the_command() -> None:
    with pytest.raises(BenchmarkError, match=r"^b: ValueError: no$"):
        quick.measure({"a": Subject(1), "b": Subject(BenchmarkError("ValueError: no"))}, 1, {}, lambda line: None)


def test_memory_in_the_table() -> None:
    found = {
        "machine": {"device": "GPU", "threads": None, "cores": 2}, "versions": {"torch": "2"}, "revision": "",
        "limits": {"fp32": {"flops": 1e12, "matmul_flops": 1e12, "convolution_flops": 5e11, "copy_bytes": 1e9}},
        "config": {"model": "demo", "rounds": 1, "evaluations": 2, "resolution": 32, "dtype": "fp32", "repeats": 1,
                   "batch": 1, "device": "cuda"},
        "baseline": "engine", "round": None, "notes": ["left out"],
        "rows": [
            {"variant": "eager", "error": "out of memory: one item"},
            {"variant": "engine", "warm_up_s": 0.5, "median_s": 2e-4, "p20_s": 150.0, "p80_s": 12.345, "speedup": 1.0,
             "host_peak_mb": 100.0, "device_peak_mb": 2000.0, "gflop_per_s": 10.0, "share": 0.01},
        ],
    }  # fmt: skip
    lines = report(found)
    assert "eager   out of memory: one item" in lines
    assert "engine   500 ms   200 us    150 s  12.35 s    1.00 x      100     2000     10.0      1%" in lines
    assert lines[-1] == "note             left out"
