"""Options: values out of range, contradictions, the published script's spellings, help without heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.cli.main import _parser, main
from pie_engine.cli.parsing import canonical, commands_of

RANGES = [
    (["--strength", "0"], "strength 0.0 is outside (0, 1]; pass --strength 0.5"),
    (["--strength", "-0.1"], "strength -0.1 is outside (0, 1]"),
    (["--strength", "-1e-3"], "strength -0.001 is outside (0, 1]"),  # argparse alone takes it for an option
    (["--strength=-1e-3"], "strength -0.001 is outside (0, 1]"),
    (["--strength", "1.5"], "strength 1.5 is outside (0, 1]"),
    (["--strength", "nan"], "strength nan is not a finite number"),
    (["--strength", "-inf"], "strength -inf is not a finite number"),
    (["--strength", "much"], "--strength: invalid float value: 'much'; see pie-engine run --help"),
    (["--steps", "0"], "steps 0 is outside [1, 10000]; pass --steps 10"),
    (["--steps", "-3"], "steps -3 is outside [1, 10000]"),
    (["--steps", "1.5"], "--steps: invalid int value: '1.5'"),
    (["--num-inference-steps", "0"], "num-inference-steps 0 is outside [1, 1000]"),
    (["--guidance-scale", "-1"], "guidance-scale -1.0 is outside [0, 100]"),
    (["--beta1", "2"], "beta1 2.0 is outside [0, 1]"),
    (["--beta2", "-0.5"], "beta2 -0.5 is outside [0, 1]"),
    (["--seed", "-1"], "seed -1 is outside [0, 9223372036854775807]"),
    (["--threads", "0"], "threads 0 is outside [1, 1000000]; pass --threads 1"),
    (["--resolution", "0"], "resolution 0 is outside [8, 2048]"),
    (["--resolution", "-64"], "resolution -64 is outside [8, 2048]"),
    (["--resolution", "8"], "resolution 8 does not fit this U-Net (multiple of 16 expected); pass --resolution 16"),
    (["--resolution", "65"], "resolution 65 does not fit this U-Net (multiple of 16 expected); pass --resolution 64"),
    (["--resolution", "72"], "resolution 72 does not fit this U-Net (multiple of 16 expected); pass --resolution"),
    (["--resolution", "64.5"], "--resolution: invalid int value"),
    (["--scheduler", ""], "scheduler is empty; pass --scheduler ddim"),
    (["--scheduler", "magic"], "scheduler 'magic' is unknown; pass one of ddim, pndm, euler, dpm++, unipc"),
    (["--scheduler", "StableDiffusionPipeline"], "scheduler 'StableDiffusionPipeline' is unknown"),
    # A single ancestral step, the last one, draws nothing; two do.
    (
        ["--scheduler", "EulerAncestralDiscreteScheduler", "--num-inference-steps", "4"],
        "EulerAncestralDiscreteScheduler is stochastic with this configuration; pass --scheduler ddim",
    ),
    (["--scheduler", "DDPMScheduler"], "DDPMScheduler is stochastic with this configuration; pass --scheduler ddim"),
    (
        ["--backend", "tpu"],
        "--backend: invalid choice: 'tpu' (choose from 'auto', 'tensorrt', 'tensorrt-rtx', 'torch', ",
    ),
    (["--dtype", "int8"], "--dtype: invalid choice: 'int8' (choose from 'fp32', 'fp16', 'bf16')"),
    (["--semantics", "paper"], "--semantics: invalid choice: 'paper'"),
    (["--device", "tpu"], "device 'tpu' is unknown (cpu, cuda or cuda:N); pass --device cpu"),
    (["--device", ""], "device '' is unknown"),
    (["--stren", "0.5"], "there is no option --stren 0.5; did you mean --strength? see pie-engine run --help"),
    (["--strength"], "--strength: expected one argument (one that begins with a hyphen is written --strength=VALUE)"),
    (["--prompt", "a\udcff"], "prompt 'a\\udcff' is not UTF-8"),
    (["--negative-prompt", "\udcff"], "negative-prompt '\\udcff' is not UTF-8"),
    (["--item-id", "\udcff"], "item-id '\\udcff' is not UTF-8"),
]


@pytest.mark.parametrize(
    ("words", "line"), RANGES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_values_out_of_range(refuse: Any, words: list[str], line: str) -> None:
    assert line in refuse(*words)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 29, 50, 101, 1000])
def test_strength_that_runs_no_step_names_one_that_does(refuse: Any, steps: int) -> None:
    line = refuse("--num-inference-steps", steps, "--strength", "0.0009")
    assert f"strength 0.0009 of {steps} steps runs no denoising step" in line
    remedy = float(line.partition("pass --strength ")[2].split()[0])
    assert int(steps * remedy) >= 1
    assert 0 < remedy <= 1


CONTRADICTIONS = [
    (["--checkpoint", "DIR", "--engine", "BUNDLE"], "(both given); pass --engine or --checkpoint"),
    (["--unet", "x"], "(both given)"),
    (["--semantics", "official", "--inversion", "ddim"], "inversion 'ddim' is not what the published code computes"),
    (["--inversion", "ddim", "--noise", "fresh"], "noise 'fresh' is not used where a round inverts"),
    (["--semantics", "official", "--noise", "shared"], "noise 'shared' is not what the published code computes"),
    (["--dtype", "fp16"], "dtype fp16 is not this bundle's (fp32); build one: pie-engine build --precision fp16"),
    (["--lora", "x"], "a LoRA cannot be fused into a bundle"),
    (["--device", "cuda"], "device 'cuda' needs an NVIDIA GPU and this machine shows none; pass --device cpu"),
    (["--checkpoint", "DIR", "--backend", "onnxruntime", "--dtype", "bf16"], "has no bf16; pass --dtype fp32 or fp16"),
    (["--compile", "--backend", "onnxruntime"], "compile is for PyTorch modules; pass --backend torch, or leave"),
    (["--fused-step", "triton"], "fused step 'triton' does not run on cpu (Triton needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(("words", "line"), CONTRADICTIONS)
def test_contradictions(refuse: Any, checkpoint: Path, words: list[str], line: str) -> None:
    assert line in refuse(*(checkpoint if word == "DIR" else word for word in words))


def test_nothing_to_run(pie: Any, image: Path) -> None:
    for words, line in (
        ((), "the following arguments are required: COMMAND; see pie-engine --help"),
        (("runn",), "there is no command 'runn'; did you mean run? see pie-engine --help"),
        (("zz",), "there is no command 'zz'; it is one of build, refit, inspect, run, mask"),
        (("--steps", "3", "run"), "--steps stands before any command; write it after run; see pie-engine --help"),
        (("--steps", "3"), "--steps stands before any command; write a command first"),
        (("run",), "the following arguments are required: --image; see pie-engine run --help"),
        (("run", "--image", "x"), "the following arguments are required: --prompt; see pie-engine run --help"),
        (("run", "--image", image, "--prompt", "x"), "is needed (neither given); pass --engine or --checkpoint"),
        (("build",), "nothing to build from; pass --checkpoint DIR"),
        (("build", "--checkpoint", "x", "--opset", "3"), "opset 3 is outside [18, 23]; pass --opset 20"),
        (("build", "--checkpoint", "x", "--precision", "int8"), "invalid choice: 'int8'"),
    ):
        outcome = pie(*words)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert line in outcome.err


def test_published_spellings_are_the_same_run(
    simulate: Any, pie: Any, bundle: Any, image: Path, tmp_path: Path
) -> None:
    mask = image.with_name("mask.png")
    assert simulate("--mask", mask, "--guidance-scale", "3", "--strength", "0.5", "--steps", "2").code == 0
    published = pie(
        "run", f"--engine={bundle.path}", "--image_path", image, f"--mask_path={mask}", "--prompt", "heart",
        "--step", 2, "--num_inference_steps", 2, "--resolution=32", "--guidance_scale", 3, "--strength=0.5",
        f"--output_dir={tmp_path / 'published'}", "--quiet",
    )  # fmt: skip
    assert published.code == 0, published.err
    ours, theirs = (json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("result", "published"))
    assert ours["settings"] == theirs["settings"]
    for name in ("001.png", "002.png"):
        frames = [(tmp_path / result / "frames" / name).read_bytes() for result in ("result", "published")]
        assert frames[0] == frames[1]


def test_long_prompt_runs_and_says_what_was_cut(simulate: Any, tmp_path: Path) -> None:
    outcome = simulate("--prompt", "heart " * 75 + "lung")
    assert outcome.code == 0
    assert outcome.err.startswith("pie-engine: prompt is longer than 77 tokens and was cut; not read: '")
    assert outcome.err.endswith("lung'; shorten it\n")
    assert outcome.err.count("\n") == 1
    simulated = json.loads((tmp_path / "result" / "provenance.json").read_text())["simulated"]
    assert simulated["prompt_cut_off"].endswith("lung")


def test_odd_characters(simulate: Any, tmp_path: Path) -> None:
    prompt, item = '❤️ "heart"\n\x1b[31m\x00', "../☃\n"
    outcome = simulate("--prompt", prompt, "--item-id", item)
    assert (outcome.code, outcome.err) == (0, "")
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert (provenance["simulated"]["prompt"], provenance["item_id"]) == (prompt, item)
    assert simulate("--prompt", "", "--item-id", "").code == 0
    assert simulate("--prompt=-severe", "--item-id", "-5").code == 0


HELP = """
import contextlib, io, sys
from pie_engine.cli.main import _parser, main
from pie_engine.cli.parsing import canonical, commands_of
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
heavy = {"torch", "numpy", "PIL", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "scipy"}
heavy &= sys.modules.keys()
print("usage: pie-engine" in shown.getvalue(), sorted(heavy))
"""


@pytest.mark.parametrize("command", ["", "build", "run", "bench", "demo"])
def test_help_imports_nothing_heavy(command: str) -> None:
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True []\n"


def test_debug_shows_where(pie: Any, image: Path) -> None:
    from pie_engine.errors import ConfigError

    with pytest.raises(ConfigError, match="steps 0"):
        pie("run", "--image", image, "--prompt", "x", "--steps", "0", "--debug")


def test_every_optimisation_switches_off(simulate: Any, checkpoint: Path, tmp_path: Path) -> None:
    frames, described = [], []
    for number, words in enumerate(
        ([], ["--no-fused-step"], ["--no-cuda-graph"], ["--no-overlap"], ["--no-compile"], ["--fused-step", "eager"])
    ):
        output = tmp_path / str(number)
        settings = ["--checkpoint", checkpoint, "--backend", "torch", "--device", "cpu", "--steps", "2"]
        assert simulate(*settings, "--output", output, *words).code == 0
        with Image.open(output / "frames" / "002.png") as frame:
            frames.append(np.asarray(frame).astype(int))
        described.append(json.loads((output / "provenance.json").read_text())["runtime"])
    assert all(np.abs(frame - frames[0]).max() <= 1 for frame in frames)  # a pixel on a rounding edge
    chosen = described[0]["fused_step"]
    assert [runtime["fused_step"] for runtime in described] == [chosen, "eager", chosen, chosen, chosen, "eager"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("run", "--image", "a.png", "--prompt", "x", "--stepps", "3"),
            "did you mean --steps? see pie-engine run --help",
        ),
        # Before what is required and lacks: the option that is misspelled may be just that.
        (("run", "--imagee", "a.png"), "there is no option --imagee a.png; did you mean --image? see pie-engine run"),
        (("view", "x", "--zzz"), "there is no option --zzz; see pie-engine view --help"),
        (("inspect", "a", "b"), "unrecognized arguments: b; see pie-engine inspect --help"),
        (
            ("build", "--checkpoint", "a", "--base", "b"),
            "--checkpoint and --base are two names of one option; pass one",
        ),
        (("build", "a", "--base=b"), "a and --checkpoint b both name the checkpoint; pass one of them"),
        (("run", "--image", "a", "--steps", "3", "--rounds=3"), "--steps and --rounds are two names of one option"),
        (("bench", "--rounds", "3", "--steps", "3"), "--rounds and --steps are two names of one option"),
    ],
)
def test_slips_of_the_hand(pie: Any, words: tuple[str, ...], message: str) -> None:
    outcome = pie(*words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_the_last_of_one_name_holds(simulate: Any, tmp_path: Path) -> None:
    assert "\nsteps: 3\n" in simulate("--steps", "2", "--steps", "3", "--print-config").out


@pytest.mark.parametrize("words", [("--steps", "2"), ("--rounds", "2"), ("--step", "2")])
def test_rounds_are_steps(pie: Any, image: Path, words: tuple[str, ...]) -> None:
    outcome = pie("run", "--image", image, "--prompt", "x", "--print-config", *words)
    assert "\nsteps: 2\n" in outcome.out


def test_every_output_has_a_short_name() -> None:
    parsers = commands_of(_parser())
    named = [name for name, parser in parsers.items() if "--output" in parser._option_string_actions]
    assert {"run", "build", "sweep"} <= {*named}
    for name in named:
        assert canonical([name, "-o", "there"]) == [name, "--output", "there"]


def test_a_bundle_is_no_checkpoint(refuse: Any, bundle: Any) -> None:
    for words in (("--checkpoint", bundle.path), ("build", bundle.path), ("refit", bundle.path, "--base", bundle.path)):
        line = refuse(*words)
        assert f"is a bundle that pie-engine build wrote, not a checkpoint; --engine {bundle.path} runs it" in line


def test_coordinates_are_pixels(refuse: Any) -> None:
    for option in ("--mask-box", "--keep-box", "--mask-ellipse"):
        line = refuse("--mask-box", "5,5,20,20", option, "0.3,0.3,0.8,0.8")
        assert "lies within one pixel; coordinates are pixels of the image, not shares of it: multiply them" in line


def test_help_in_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "run"], ["run", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
    assert "usage: pie-engine run" in capsys.readouterr().out


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pie_engine", "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith("pie-engine ")
