"""Each benchmark's script from its options to its rows, on the smallest model; how long things took is not looked at.

What the scripts put into processes of their own runs in this one (tests of the harness have the processes).
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import GOLDEN
from local_subject import Local

from pie_engine.benchmarks import (
    build_times,
    common,
    components,
    denoise_step,
    growth,
    ladder,
    progression,
    round_share,
    throughput,
    variants,
)
from pie_engine.benchmarks.harness import MemoryRanOut, Spec, remote, results
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.config import COMPONENTS
from pie_engine.model.bundle import Bundle

SCRIPTS = (build_times, components, denoise_step, growth, ladder, progression, round_share, throughput)
KEY = ["date", "device", "threads", "versions", "revision", "model"]
CONFIG = ["resolution", "rounds", "evaluations", "batch"]
TIMES = ["repeats", "warm_up_s", "p20_s", "median_s", "p80_s"]
SPEEDUP = ["speedup", "speedup_p20", "speedup_p80"]
MEMORY = ["host_peak_mb", "device_peak_mb"]
WORK = ["tflop", "gflop_per_s", "peak_gflop_per_s", "share"]
TINY = [
    "--model", str(GOLDEN / "checkpoint_ddim"), "--resolution", "32", "--num-inference-steps", "4", "--threads", "1",
    "--device", "cpu", "--quick-limits", "--repeats", "1",
]  # fmt: skip
ENGINES = ["engine, torch fp32", "engine, onnxruntime fp32"]
CHOSEN = ["--variants", "; ".join(ENGINES)]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (remote, *SCRIPTS):
        if hasattr(module, "Remote"):
            monkeypatch.setattr(module, "Remote", Local)


def measured(main: Callable[[list[str]], None], folder: Path, *words: str, tiny: bool = True) -> list[dict[str, str]]:
    """The rows that a script adds to its file, which are checked for what all of them share."""
    main([*(TINY if tiny else []), *words, "--output", str(folder)])
    (path,) = folder.iterdir()
    rows = results.read(path)
    assert path.stem == main.__module__.rpartition(".")[2]
    for row in rows:
        assert [row[name] != "" for name in KEY if name != "revision"] == [True] * 5
        assert float(row["p80_s"]) >= float(row["median_s"]) >= float(row["p20_s"]) > 0
    return rows


def columns(path: Path) -> list[str]:
    (result,) = path.iterdir()
    with result.open(newline="") as file:
        return next(csv.reader(file))


def positive(rows: list[dict[str, str]], names: list[str]) -> bool:
    return all(float(row[name]) > 0 for row in rows for name in names)


def test_progression(bundle: Bundle, tmp_path: Path) -> None:
    names = [variants.PUBLISHED, "eager fp32, engine semantics", *ENGINES]
    rows = measured(progression.main, tmp_path, "--rounds", "2", "--variants", ";".join(names))
    assert [row["variant"] for row in rows] == names
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", *TIMES, *SPEEDUP, *MEMORY, "load_s", "psnr_db", *WORK,
    ]  # fmt: skip
    assert positive(rows, [*SPEEDUP, "host_peak_mb", *WORK])
    assert {row["evaluations"] for row in rows} == {"4"}


def openvino_has_bf16() -> bool:
    """Not every processor computes in it."""
    if not variants.installed("openvino"):
        return False
    from pie_engine.backends.openvino_session import capabilities

    return "BF16" in capabilities()


def test_ladder(bundle: Bundle, tmp_path: Path) -> None:
    rows = measured(ladder.main, tmp_path, "--rounds", "1")
    rungs = [variants.PUBLISHED, ladder.EAGER, "engine on PyTorch fp32", "+ fused step (C++)", "+ ONNX Runtime"]
    rungs += ["+ OpenVINO"] if variants.installed("openvino") else []
    rungs += ["+ bf16"] if openvino_has_bf16() else []
    # A C++ step that was not compiled is no rung here.
    climbed = [row["variant"] for row in rows]
    assert climbed == [name for name in rungs if name in climbed or name != "+ fused step (C++)"]
    assert columns(tmp_path)[10:] == [
        "variant", "rung", "dtype", *TIMES, *SPEEDUP, *MEMORY, "load_s", "speedup_over_previous",
        "speedup_over_previous_p20", "speedup_over_previous_p80", "psnr_db", *WORK,
    ]  # fmt: skip
    assert [row["rung"] for row in rows] == [str(number) for number in range(len(rows))]
    assert [row["psnr_db"] for row in rows[:2]] == ["", "inf"]
    assert all(float(row["psnr_db"]) > 60 for row in rows[2:] if row["dtype"] == "fp32")
    assert positive(rows, [*SPEEDUP, "speedup_over_previous"])


def test_rungs_are_measured_beside_the_first_and_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[str]] = []

    class Rung:
        load_seconds, loaded_bytes = 0.0, 0

        def __init__(self, spec: Spec):
            if spec.make == "absent":
                raise remote.BenchmarkError("it is not here")
            if spec.make == "published" or not groups:
                groups.append([])
            groups[-1].append(spec.make)

        def __call__(self) -> Call:
            return Call(1.0, facts={"frame": ""})

        def __enter__(self) -> Rung:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(remote, "Remote", Rung)
    names = ["published", "engine", "a", "absent", "b"]
    climbed = ladder.climb({name: Spec(name) for name in names}, at_once=3, repeats=1)
    assert [name for name, _, _ in climbed] == ["published", "engine", "a", "b"]
    assert groups == [["published", "engine", "a"], ["published", "a"], ["published", "a", "b"]]


def test_components(bundle: Bundle, tmp_path: Path) -> None:
    rows = measured(components.main, tmp_path, "--components", *COMPONENTS)
    backends = ["torch fp32", "torch bf16", "onnxruntime fp32"]
    backends += ["openvino fp32"] if variants.installed("openvino") else []
    backends += ["openvino bf16"] if openvino_has_bf16() else []
    expected = [(component, name) for component in COMPONENTS for name in backends]
    keys = [(row["component"], row["variant"]) for row in rows]
    assert keys[: len(expected)] == expected
    assert keys[len(expected)] == ("fused_step", "eager")
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", "component", "samples", "precision", *TIMES, *SPEEDUP, *MEMORY, "weights_mb", *WORK,
        "gb_per_s", "share_of_copy",
    ]  # fmt: skip
    assert positive(rows[: len(expected)], [*SPEEDUP, "host_peak_mb", "weights_mb", *WORK])
    assert positive(rows[len(expected) :], ["speedup", "gb_per_s", "share_of_copy"])
    assert {row["samples"] for row in rows if row["component"] == "unet"} == {"2"}


def test_throughput(bundle: Bundle, tmp_path: Path) -> None:
    rows = measured(throughput.main, tmp_path, "--rounds", "1", "--batches", "2", "1", *CHOSEN)
    assert [(row["variant"], row["batch"]) for row in rows] == [(name, size) for name in ENGINES for size in "12"]
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", *TIMES, *SPEEDUP, *MEMORY, "items_per_s", "evaluations_per_s", *WORK, "note",
    ]  # fmt: skip
    assert positive(rows, ["speedup", "items_per_s", "evaluations_per_s", *WORK])
    assert {float(row["speedup"]) for row in rows if row["batch"] == "1"} == {1.0}


def test_throughput_stops_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Full(Local):
        def __call__(self, *what: Any) -> Call:
            if what[0] > 1:
                raise MemoryRanOut("out of memory: 2 items needed more")
            return super().__call__(*what)

    monkeypatch.setattr(throughput, "Remote", Full)
    arguments = [*TINY, "--rounds", "1", "--batches", "1", "2", "4", "--variants", ENGINES[0]]
    throughput.main([*arguments, "--output", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    single, stopped = results.read(path)
    assert (single["batch"], single["note"], float(single["median_s"]) > 0) == ("1", "", True)
    assert (stopped["batch"], stopped["median_s"], stopped["repeats"]) == ("2", "", "0")
    assert stopped["note"] == "out of memory: 2 items needed more"


def test_a_batch_that_would_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "memory", lambda device: 10 * 10**9)
    assert common.exceeds_memory("cpu", 2 * 10**9, 4 * 10**9, before=2, batch=4) == ""
    assert "about 10.0 of 10.0 GB" in common.exceeds_memory("cpu", 2 * 10**9, 4 * 10**9, before=2, batch=8)


def test_growth(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--round-counts", "1", "2", "--resolutions", "32", "48", "--batches", "1", "2"]
    rows = measured(growth.main, tmp_path, *words, "--variants", ENGINES[0])
    assert [(row["factor"], row["value"]) for row in rows] == [
        ("rounds", "1"), ("rounds", "2"), ("resolution", "32"), ("resolution", "48"), ("batch", "1"), ("batch", "2"),
    ]  # fmt: skip
    assert [[row[name] for name in ("rounds", "resolution", "batch")] for row in rows[1::2]] == [
        ["2", "32", "1"], ["1", "48", "1"], ["1", "32", "2"],
    ]  # fmt: skip
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", "factor", "value", *TIMES, *MEMORY, "round_s", "round_and_item_s", "loaded_mb", *WORK,
        "note",
    ]  # fmt: skip
    assert positive(rows, ["host_peak_mb", "round_s", "round_and_item_s", "loaded_mb", *WORK])
    assert float(rows[3]["tflop"]) > float(rows[2]["tflop"])


def test_build_times(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The exports of the other tests: their seconds stand in the cache.
    cache = Path(os.environ["PIE_ENGINE_CACHE"])
    for module in ("components", "assemble"):
        monkeypatch.setattr(f"pie_engine.bundling.{module}.cache_folder", lambda config: cache)
    monkeypatch.setattr(build_times, "LOADED", (("torch", "fp32"), ("onnxruntime", "fp32")))
    rows = measured(build_times.main, tmp_path)
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", "what", "component", "backend", "repeats", "p20_s", "median_s", "p80_s",
        "host_peak_mb", "precision", "graph_mb", "plan_mb", "attentions", "fused", "profiles", "flavour", "version",
        "capabilities",
    ]  # fmt: skip
    assert [(row["what"], row["component"]) for row in rows[:7]] == [
        *(("export", name) for name in COMPONENTS), ("read, export", "all"), ("refit", "unet"), ("read, refit", "all"),
    ]  # fmt: skip
    assert [(row["what"], row["backend"]) for row in rows[7:]] == [
        ("imports", "torch fp32"), ("load, checkpoint", "torch fp32"), ("imports", "onnxruntime fp32"),
        ("load, checkpoint", "onnxruntime fp32"), ("load, bundle", "onnxruntime fp32"),
    ]  # fmt: skip
    assert positive([row for row in rows if row["component"] != "all"], ["graph_mb"])


def test_rows_of_compiled_engines() -> None:
    entry = {
        "component": "unet", "seconds": 3.0, "bytes": 2 * 10**6, "host_memory_bytes": 10**9, "profiles": [{}, {}],
        "attention": {"graph": 32, "fused": 32}, "capabilities": ["8.6", "8.9"], "flavour": "tensorrt-rtx",
        "version": "1.7",
    }  # fmt: skip
    manifest = {
        "components": {"unet": {"seconds": 5.0, "precision": "fp16"}},
        "files": {"unet/model.onnx": {"bytes": 10**6}, "tokenizer/vocab.json": {"bytes": 7}},
        "engines": [entry],
    }
    graph, plan = build_times.built("export", manifest, ["unet"])
    assert (graph["what"], graph["median_s"], graph["graph_mb"], graph["plan_mb"]) == ("export", 5.0, 1.0, "")
    assert (plan["what"], plan["median_s"], plan["host_peak_mb"], plan["plan_mb"]) == ("compile", 3.0, 1000.0, 2.0)
    assert (plan["attentions"], plan["fused"], plan["profiles"], plan["capabilities"]) == (32, 32, 2, "8.6 8.9")
    assert list(graph) == list(plan)


def test_denoise_step(tmp_path: Path) -> None:
    words = ["--batch", "1", "2", "--side", "4", "--kept", "0", "1", "--device", "cpu", "--threads", "1"]
    rows = measured(denoise_step.main, tmp_path, *words, "--repeats", "1", "--quick-limits", tiny=False)
    assert columns(tmp_path) == [
        *KEY, "shape", "kept", "dtype", "variant", *TIMES, *SPEEDUP, "moved_mb", "gb_per_s", "copy_gb_per_s",
        "share_of_copy",
    ]  # fmt: skip
    eager = [(row["shape"], row["kept"]) for row in rows if row["variant"] == "eager"]
    assert eager == [("1x4x4x4", "0"), ("1x4x4x4", "1"), ("2x4x4x4", "0"), ("2x4x4x4", "1")]
    assert {row["variant"] for row in rows} <= {"eager", "cpp"}
    assert positive(rows, [*SPEEDUP, "gb_per_s", "share_of_copy"])


def test_bytes_of_a_step() -> None:
    step = denoise_step.Step(batch=1, side=2, kept=1, dtype="bf16")
    # x and history twice, z0, eps: 6 of 16 fp32; the mask, 4 fp32; sample and output: 2 of 32 bf16.
    assert step.moved == 4 * (6 * 16 + 4) + 2 * 64


def test_round_share(bundle: Bundle, tmp_path: Path) -> None:
    rows = measured(round_share.main, tmp_path, "--rounds", "2", *CHOSEN)
    assert columns(tmp_path) == [
        *KEY, *CONFIG, "variant", "backend", "dtype", "implementation", *TIMES, *MEMORY, "round_s", "unet_share",
        "step_share", "decode_share", "rest_share",
    ]  # fmt: skip
    assert [row["backend"] for row in rows if row["implementation"] == "eager"] == ["torch", "onnxruntime"]
    for row in rows:
        shares = [float(row[f"{part}_share"]) for part in ("unet", "step", "decode", "rest")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert all(share > 0 for share in shares[:3])


@pytest.mark.parametrize(
    ("script", "words", "line"),
    [
        (progression, ["--repeats", "0"], "repeats 0 is not a positive number; pass --repeats 1 or more"),
        (throughput, ["--batches", "2", "0"], "batches 0 is not a positive number; pass --batches 1 or more"),
        (ladder, ["--device", "cuda:99"], "is not here (cpu, or one of"),
        (components, ["--resolution", "33"], "resolution 33 does not fit this U-Net (multiple of 16 expected)"),
        (growth, ["--over", "rounds", "--round-counts", "0"], "steps 0 is outside [1, 10000]"),
        (build_times, ["--model", "nowhere"], "nowhere"),
        (ladder, ["--batch", "2"], "batch 2 does not suit the eager rungs"),
        (round_share, ["--device", "cuda"], "runs a round as one graph without parts; pass --device cpu"),
        (throughput, ["--variants", "engine"], "variant 'engine' is no engine; pass one of engine, torch fp32; "),
        (build_times, ["--engines", "tensorrt", "--compute-capability", "8.6"], "compiles for the GPU at hand"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_bad_input_is_one_line(
    script: Any, words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", [script.__file__, *TINY, *words, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        common.run(script.main)
    assert ended.value.code == 2
    *progress, last = capsys.readouterr().err.splitlines()
    assert last.startswith("benchmark: ") and line in last
    assert not any("Traceback" in text for text in progress)
    assert not list(tmp_path.iterdir())
