"""A training that is stopped at any time goes on as if it had not been."""

import json
import sys
from dataclasses import dataclass

import pytest
from safetensors.torch import load_file

pytest.importorskip("onnxruntime")

from pie_engine.demo.training import chest, domains, stages
from pie_engine.demo.training.domains import FIRST_UNET, STAGES, DomainTraining
from pie_engine.demo.training.stages import run_stages
from pie_engine.demo.training.unet import UnetTraining
from pie_engine.demo.training.vae import VaeTraining
from pie_engine.errors import ConfigError

UNET = UnetTraining(steps=2, batch=4, channels=(16, 32), text_width=16, heads=2, reading_steps=4)
TINY = DomainTraining(
    vae_patients=4,
    unet_patients=4,
    validation_patients=4,
    vae=VaeTraining(steps=2, batch=2, channels=(8, 8, 8, 8), bfloat16=True),
    unet=UNET,
    refinement=UNET,
)
UP_TO_REFINEMENT = STAGES[:3]  # the classifiers read nothing that these write twice
WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run_stages(output, TINY, UP_TO_REFINEMENT)
    return output


@pytest.mark.parametrize("halfway", [False, True], ids=["after-the-save", "inside-the-save"])
@pytest.mark.parametrize(("save", "done"), [("save_weights", ["vae"]), ("save_denoiser", ["vae", "unet"])])
def test_a_unet_stage_that_was_stopped_gives_the_same_weights(
    uninterrupted, tmp_path, monkeypatch, save, done, halfway
):
    saved = getattr(domains, save)

    def stopping(model, folder):
        saved(model, folder)
        if halfway:
            (folder / WEIGHTS[0]).write_bytes(b"")
            (folder / WEIGHTS[1]).unlink()
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(domains, save, stopping)
        with pytest.raises(Stopped):
            run_stages(tmp_path, TINY, UP_TO_REFINEMENT)
    assert list(json.loads((tmp_path / "training.json").read_text())["stages"]) == done
    run_stages(tmp_path, TINY, UP_TO_REFINEMENT)
    for name in WEIGHTS:
        once, resumed = (load_file(output / "checkpoint" / name) for output in (uninterrupted, tmp_path))
        assert once.keys() == resumed.keys() and all((once[key] == resumed[key]).all() for key in once)


def test_refining_leaves_the_first_unet_as_it_was(uninterrupted):
    first, last = (load_file(uninterrupted / folder / WEIGHTS[0]) for folder in (FIRST_UNET, "checkpoint"))
    assert first.keys() == last.keys() and any((first[key] != last[key]).any() for key in first)


@dataclass(frozen=True)
class Part:
    steps: int = 3
    channels: tuple[int, int] = (4, 8)


@dataclass(frozen=True)
class Toy:
    patients: int = 2
    part: Part = Part()


def toy_stages(*names, stop_at=None):
    """Stages that write down how often they ran; the one called `stop_at` stops."""
    stages = []
    for name in names:

        def stage(output, config, name=name):
            with (output / "runs").open("a") as file:
                file.write(name + " ")
            if name == stop_at:
                raise Stopped
            return {"loss": (0.5, config.part.steps)}

        stage.__name__ = f"_{name}"
        stages.append(stage)
    return stages


def test_a_record_is_whole_at_any_time_and_a_stopped_stage_runs_again(tmp_path, monkeypatch):
    output = tmp_path / "new" / "run"
    with pytest.raises(Stopped):
        run_stages(output, Toy(), toy_stages("a", "b", "c", stop_at="b"))
    before = (output / "training.json").read_text()
    assert list(json.loads(before)["stages"]) == ["a"]

    def stopping(self, target):
        raise Stopped

    with monkeypatch.context() as patched:  # where a kill leaves the new record written and not yet in place
        patched.setattr(type(output), "replace", stopping)
        with pytest.raises(Stopped):
            run_stages(output, Toy(), toy_stages("a", "b", "c"))
    assert (output / "training.json").read_text() == before
    record = run_stages(output, Toy(), toy_stages("a", "b", "c"))
    assert list(record["stages"]) == ["a", "b", "c"] and record["stages"]["a"]["loss"] == [0.5, 3]
    assert (output / "runs").read_text() == "a b b b c "
    assert run_stages(output, Toy(), toy_stages("a", "b", "c")) == record
    assert {path.name for path in output.iterdir()} == {"training.json", "runs"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Toy(patients=4), r"^patients is 4, but the training in .* began with 2; pass the same configuration, or"),
        (Toy(part=Part(channels=(4, 9))), r"part\.channels is \[4, 9\], but the training in .* began with \[4, 8\]"),
        (Part(), r"steps is 3, but the training in .* began with None"),
    ],
)
def test_another_configuration_is_refused(tmp_path, config, words):
    record = run_stages(tmp_path, Toy(), toy_stages("a"))
    with pytest.raises(ConfigError, match=words):
        run_stages(tmp_path, config, toy_stages("a", "b"))
    assert json.loads((tmp_path / "training.json").read_text()) == record
    assert (tmp_path / "runs").read_text() == "a "


def test_a_stage_on_other_hardware_says_so(tmp_path, monkeypatch):
    first = run_stages(tmp_path, Toy(), toy_stages("a"))
    other = {**first["hardware"], "cpu": "another"}
    monkeypatch.setattr(stages, "_hardware", lambda: other)
    record = run_stages(tmp_path, Toy(), toy_stages("a", "b"))
    assert record["hardware"] == first["hardware"] and record["stages"]["b"]["hardware"] == other
    assert record["stages"]["a"] == first["stages"]["a"]


@pytest.mark.parametrize("module", [chest, domains])
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, module):
    run_stages(tmp_path, Toy(), toy_stages("a"))
    monkeypatch.setattr(sys, "argv", ["train", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        module.main()
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.startswith("training: ") and printed.count("\n") == 1
