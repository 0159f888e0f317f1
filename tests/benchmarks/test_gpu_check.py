"""The GPU check's own logic: that its results are kept whatever happens to what measures them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.benchmarks import gpu_parity, gpu_rungs, gpu_sections, gpu_table
from pie_engine.benchmarks.gpu_csv import VERSIONS, tables
from pie_engine.benchmarks.gpu_profile import group_of, shorten
from pie_engine.benchmarks.harness import results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_check.py"
SECTIONS = ("full_size", "parity", "kernels", "compiled", "tests", "batch", "eager_fp32")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "gpu-check.json").read_text())
    return report


def test_outcomes_are_counted_line_by_line(check: ModuleType) -> None:
    log = [
        "tests/kernels/test_triton.py::test_step[1x4 - a b] PASSED [ 10%]",
        "tests/rounds/test_loop.py::test_b FAILED [ 20%]",
        "[gw3] [ 25%] PASSED tests/kernels/test_triton.py::test_step[1x4 - c d]",
        "[gw0] [  9%] ERROR tests/rounds/test_loop.py::test_c",
        "[gw1] [100%] SKIPPED tests/rounds/test_loop.py::test_d",
        "tests/rounds/test_loop.py::test_b FAILED",  # pytest repeats failures at its end
        "tests/rounds/test_loop.py::test_e SKIPPED (no CUDA provider) [ 40%]",
        "FAILED tests/rounds/test_loop.py::test_b - AssertionError",
    ]
    counted = check.count_tests(log)
    assert (counted["passed"], counted["failed"], counted["skipped"], counted["ok"]) == (2, 2, 2, False)
    assert counted["failures"] == ["tests/rounds/test_loop.py::test_b", "tests/rounds/test_loop.py::test_c"]
    assert counted["reasons"] == ["FAILED tests/rounds/test_loop.py::test_b - AssertionError"]


def test_the_tests_are_those_with_the_mark(check: ModuleType) -> None:
    command = check.tests_command("cuda")
    assert "tests/kernels/test_triton.py" in command
    assert "tests/imaging" not in " ".join(command)


# What the sections of a machine that goes wrong in several ways would say.
PROGRAM = """
import os, signal, sys, time
section = sys.argv[1]
print('RESULT {"environment": {"device": "toy", "versions": {"torch": "2.13.0+cu130"}}}')
print('RESULT {"rung": "first", "ms_per_guided_step": 6.5}', flush=True)
if section == "full_size":
    os.kill(os.getpid(), signal.SIGKILL)
if section == "parity":
    os.system("sleep 60")
if section == "kernels":
    print('RESULT {"rung": "second", "ok": fal')
    print('RESULT {"rung": "third", "ok": true}')
if section == "batch":
    print('RESULT {"rung": "second", "ok": false}')
if section == "eager_fp32":
    sys.exit("broken")
if section == "compiled" and "--start=2" not in sys.argv:
    print("begin 1: crashes", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A tree with these sections."""
    folder = tmp_path / "tree" / "benchmarks"
    folder.mkdir(parents=True)
    for name in ("gpu_check.py", "gpu_table.py"):
        shutil.copy(BENCHMARKS / name, folder)
    (folder / "gpu_sections.py").write_text(PROGRAM)
    return folder / "gpu_check.py"


def test_a_section_that_dies_or_hangs_costs_itself_only(broken: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    sections = ["full_size", "parity", "kernels", "batch", "eager_fp32"]
    done = run_script(broken, "--seconds", "20", "--results", str(tmp_path / "out"), "--sections", *sections)
    assert time.monotonic() - began < 20
    assert done.returncode == 1, done.stderr
    report = read(tmp_path / "out")
    assert {name: entry["outcome"] for name, entry in report["sections"].items()} == {
        "full_size": "failed with exit code -9",
        "parity": "cut short after 4 s",
        "kernels": "ok",
        "batch": "failed: see results that are not ok",
        "eager_fp32": "failed with exit code 1",
    }
    assert all(entry["results"][0]["ms_per_guided_step"] == 6.5 for entry in report["sections"].values())
    assert [result["rung"] for result in report["sections"]["kernels"]["results"]] == ["first", "third"]
    assert report["environment"]["versions"]["torch"] == "2.13.0+cu130"
    assert "broken" in report["sections"]["eager_fp32"]["log"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(f"{name}.log" for name in sections), "gpu-check.json"]
    )
    # The first section's results end the output.
    assert done.stdout.rindex("== full_size") > done.stdout.rindex("== parity") > done.stdout.rindex("== batch")


def test_a_rung_that_crashes_leaves_those_after_it(broken: Path, tmp_path: Path) -> None:
    done = run_script(broken, "--seconds", "60", "--results", str(tmp_path / "out"), "--sections", "compiled")
    assert done.returncode == 1, done.stderr
    entry = read(tmp_path / "out")["sections"]["compiled"]
    assert entry["outcome"] == "failed: see results that are not ok"
    assert [result["rung"] for result in entry["results"]] == ["first", "crashes", "first"]
    assert entry["results"][1]["error"] == "crashed by signal 11"


def test_what_was_measured_is_there_when_the_check_is_stopped(broken: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(broken), "--results", str(tmp_path / "out"), "--sections", "parity"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(300):
        if (tmp_path / "out" / "parity.log").exists() and read(tmp_path / "out")["sections"]["parity"]["results"]:
            break
        time.sleep(0.1)
    assert read(tmp_path / "out")["sections"]["parity"]["outcome"] == "running"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert "step ms 6.5" in output


def test_a_process_is_asked_to_end_before_it_is_killed(check: ModuleType, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program = "import time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('1 passed', flush=True)"
        results = check.Results(tmp_path, {"seconds": 9})
        run = check.Run("tests", [sys.executable, "-c", program], dict(os.environ), results)
        assert run.wait(6, notice=3) is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(run.lines) == ["1 passed"]
    assert (tmp_path / "tests.log").read_text() == "1 passed\n"


def test_a_rung_that_fails_or_hangs_leaves_the_others(tmp_path: Path) -> None:
    program = tmp_path / "section.py"
    program.write_text(
        textwrap.dedent(
            """
            import argparse, sys, time
            from pie_engine.benchmarks.gpu_rungs import emit, run_rungs
            parser = argparse.ArgumentParser()
            parser.add_argument("--start", type=int, default=0)
            parser.add_argument("--failed", action="store_true")
            arguments = parser.parse_args()
            rungs = [
                ("a", lambda: emit(rung="a", ms=float("nan"))),
                ("b", lambda: 1 / 0),
                ("c", lambda: time.sleep(60)),
                ("d", lambda: emit(rung="d", ok=True)),
            ]
            sys.exit(run_rungs(rungs, arguments.start, time.time() + 40, 0.02, 2.0) or int(arguments.failed))
            """
        )
    )
    done = run_script(program)
    assert done.returncode == 1, done.stderr
    results = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert [(result["rung"], result.get("ok")) for result in results] == [
        ("a", None), ("b", False), ("c", False), ("d", True),
    ]  # fmt: skip
    assert results[0]["ms"] == "nan"  # JSON has no such number
    assert results[1]["error"] == "ZeroDivisionError: division by zero (section.py:10)"
    assert results[2]["error"] == "given up after 2 s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run_script(SCRIPT, "--results", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "gpu-check: this machine shows no NVIDIA GPU\n"


def test_the_table_keeps_what_matters_most() -> None:
    many = [{"rung": f"batch {i}", "ms_per_guided_step": float(i), "text": "x" * 100} for i in range(400)]
    sections = {
        name: {"outcome": "ok", "seconds": 1.0, "limit": 2.0, "results": results}
        for name, results in (("full_size", [{"rung": "eager", "ms_per_guided_step": 27.123}]), ("batch", many))
    }
    text = gpu_table.render({"sections": sections, "environment": None, "revision": None})
    assert len(text) < 10_000
    assert "batch 399 " in text
    assert "batch 0 " not in text
    assert text.rindex("eager                step ms 27.1") > text.rindex("batch 399")


def test_kernels_are_told_apart_by_kind() -> None:
    layout = "void cudnn::ops::nchwToNhwcKernel<__half, __half, float, true>(cudnn::ops::nchw2nhwc_params_t)"
    copy = "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl<at::native::direct_copy_kernel_cuda"
    kinds = {
        layout: "copy, layout",
        copy: "copy, layout",
        "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn": "convolution",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_64x64x128": "attention",
        "nvjet_sm90_hsh_128x256_64x4_2x1_v_bz_coopA_bias_TNN": "matrix product",
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::Half>": "norm",
        "void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel": "elementwise",
        "_denoise_step_kernel": "guided step",
    }
    assert {name: group_of(name) for name in kinds} == kinds
    assert "direct_copy_kernel_cuda" in shorten(copy)


def test_parity_is_judged_beside_eager_pytorch() -> None:
    eager = {"latent_max": 3e-4, "latent_rmse": 1e-5, "roi_rmse": 0.01}
    assert gpu_parity.holds({**eager, "latent_max": 5.9e-4}, eager, "fp32")
    assert not gpu_parity.holds({**eager, "latent_max": 6.1e-4}, eager, "fp32")
    assert gpu_parity.holds({**eager, "latent_max": 0.9e-4}, {**eager, "latent_max": 0.0}, "fp32")
    assert gpu_parity.holds({**eager, "roi_rmse": 0.019}, eager, "fp16")
    assert not gpu_parity.holds({**eager, "roi_rmse": 0.021}, eager, "fp16")
    assert not gpu_parity.holds({**eager, "latent_max": float("nan")}, eager, "fp16")


def test_the_carried_reference_is_what_this_code_computes() -> None:
    latent, frame = gpu_parity.read_reference()
    with torch.inference_mode():
        own_latent, own_frame, _ = gpu_parity.Case(small=False, reference=(latent, frame)).eager("fp32", "cpu")
    # Other processors sum in another order.
    np.testing.assert_allclose(own_latent, latent, atol=gpu_parity.SINGLE_LIMIT)
    np.testing.assert_allclose(own_frame.astype(int), frame, atol=1)


def test_the_check_runs_on_a_processor(check: ModuleType, tmp_path: Path) -> None:
    """With the quickest section and the tests; what the other sections measure is tried below."""
    words = ["--device", "cpu", "--seconds", "600", "--results", str(tmp_path), "--sections", "kernels", "tests"]
    done = run_script(SCRIPT, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read(tmp_path)
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert tuple(report["sections"]) == ("kernels", "tests")
    assert all(entry["outcome"] == "ok" and entry["results"] for entry in report["sections"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"gpu-check.json", "kernels.log", "tests.log"}
    assert tuple(check.SHARES) == SECTIONS
    assert len(SECTIONS) + 1 == 8  # as many files as a lent machine gives back


@pytest.mark.parametrize("section", [*(name for name in SECTIONS if name not in ("kernels", "tests")), "regional"])
def test_a_section_runs_on_a_processor(
    section: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At small sizes, so that on a GPU it is not the script that fails; in this process, as imports take longest."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # which sections change
    with torch.no_grad():
        failed = gpu_rungs.run_rungs(gpu_sections.SECTIONS[section]("cpu"), 0, time.time() + 600, 1.0)
    said = capsys.readouterr().out.splitlines()
    results = [json.loads(line.removeprefix("RESULT ")) for line in said if line.startswith("RESULT ")]
    assert not failed, said
    assert results and all(result.get("ok", True) for result in results)
    if section == "full_size":
        assert [result["rung"] for result in results] == [
            "eager", "step graph only", "+ channels last, fused projections", "+ cudnn.benchmark", "+ fused blocks",
            "+ cuDNN attention", "everything on", "whole progression, first run", "whole progression, second run",
            "kernels of step", "kernels of decoding",
        ]  # fmt: skip
        assert all("ms_per_guided_step" in result for result in results[:7])
    if section == "regional":
        whole, boxed, everything = results
        assert whole["round_s"] > 0 and {"recorded_s", "checked_s", "inside_s"} < set(boxed)
        assert everything["relative_difference"] < 1e-4  # float32, eight steps


def test_the_results_are_those_of_the_carried_check() -> None:
    report = json.loads((BENCHMARKS / "results" / "gpu-check-nvidia-h200.json").read_text())
    made = tables(report)
    assert {name: len(rows) for name, rows in made.items()} == {
        "gpu_step": 7, "gpu_kernels": 15, "gpu_progression": 2, "gpu_errors": 9,
    }  # fmt: skip
    for name, rows in made.items():
        carried = [row for row in results.read(results.FOLDER / f"{name}.csv") if row["date"] == report["date"]]
        for row, expected in zip(carried, rows, strict=True):
            for key, value in expected.items():
                if isinstance(value, float):
                    assert float(row[key]) == pytest.approx(value, rel=1e-5)
                else:
                    assert row[key] == str(value)


def test_what_failed_leaves_no_row() -> None:
    rung = {"rung": "eager", "ms_per_guided_step": 1.0, "ok": False}
    environment = {"device": "toy", "python": "3", "cudnn": None, "versions": dict.fromkeys(VERSIONS)}
    report = {"date": "", "revision": "", "environment": environment, "sections": {"full_size": {"results": [rung]}}}
    assert not any(tables(report).values())
