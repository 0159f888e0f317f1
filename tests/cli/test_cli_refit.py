"""`pie-engine refit` and `pie-engine build --refit`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pie_engine.checkpoint import load_checkpoint
from pie_engine.cli.main import _parser
from pie_engine.model.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned U-Net: one bias of the golden checkpoint's moved."""
    from golden import GOLDEN

    unet = load_checkpoint(GOLDEN / "checkpoint_ddim").unet
    with torch.no_grad():
        unet.conv_out.bias += 0.5
    folder = tmp_path_factory.mktemp("tuned") / "unet"
    unet.save_pretrained(folder)
    return folder


def test_refit_and_build_refit_write_the_same(pie: Any, bundle: Bundle, tuned: Path, tmp_path: Path) -> None:
    outcome = pie("refit", bundle.path, "--unet", tuned, "--output", tmp_path / "b.pie", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["components"]["unet"]["refitted"]
    assert "unet: refitted, fp32" in outcome.err
    again = pie("build", "--unet", tuned, "--refit", bundle.path, "--output", tmp_path / "c.pie")
    assert again.code == 0, again.err
    first, second = (open_bundle(tmp_path / name) for name in ("b.pie", "c.pie"))
    assert first.manifest["files"] == second.manifest["files"]
    assert first.manifest["files"] != bundle.manifest["files"]
    # The command that refusals name is a build, which takes options of engines.
    command = first.build_command(backend="tensorrt-rtx", resolution="64,128")
    parsed = _parser().parse_args(shlex.split(command)[1:])
    assert (parsed.command, parsed.unet, parsed.output) == ("build", str(tuned), tmp_path / "b.pie")
    assert (parsed.backend, parsed.resolution, parsed.lora) == ("tensorrt-rtx", "64,128", [])


def test_a_file_without_a_config_takes_the_bundles(pie: Any, bundle: Bundle, tuned: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    alone = tmp_path / "tuned.safetensors"
    save_file(load_file(next(tuned.glob("*.safetensors"))), alone)
    outcome = pie("refit", bundle.path, "--unet", alone, "--output", tmp_path / "b.pie")
    assert outcome.code == 0, outcome.err
    expected = pie("refit", bundle.path, "--unet", tuned, "--output", tmp_path / "c.pie")
    assert expected.code == 0
    assert open_bundle(tmp_path / "b.pie").weights_hash("unet") == open_bundle(tmp_path / "c.pie").weights_hash("unet")


def test_a_lora(pie: Any, bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    unet = load_checkpoint(checkpoint).unet
    name = next(name for name, module in unet.named_modules() if name.endswith("to_q"))
    wide, narrow = unet.get_submodule(name).weight.shape
    lora = tmp_path / "lora.safetensors"
    save_file(
        {f"unet.{name}.lora_A.weight": torch.ones(1, narrow), f"unet.{name}.lora_B.weight": torch.ones(wide, 1)}, lora
    )
    outcome = pie(
        "refit", bundle.path, "--checkpoint", checkpoint, "--lora", f"{lora}:0.5", "--output", tmp_path / "b.pie"
    )
    assert outcome.code == 0, outcome.err
    assert "LoRA" in open_bundle(tmp_path / "b.pie").manifest["sources"]["unet"]


def test_refusals(refuse: Any, bundle: Bundle, checkpoint: Path, tuned: Path) -> None:
    for words, line in (
        (("refit", bundle.path), "nothing to refit with; pass --unet CKPT or --checkpoint DIR, with or without"),
        (
            ("refit", bundle.path, "--lora", "x"),
            "a LoRA is fused into the weights that it was trained on, which a bundle may hold rounded",
        ),
        (("refit", bundle.path, "--checkpoint", checkpoint), "holds these weights already; run it as it is"),
        (("refit", checkpoint, "--unet", tuned), "is not a bundle (no manifest.json)"),
        (("refit", bundle.path, "--unet", "nowhere"), "nowhere"),
        (("build", "--refit", bundle.path, "--unet", tuned, "--batch", "2"), "--batch is the refitted bundle's own"),
        (("build", "--refit", bundle.path, "--unet", tuned, "--backend", "tensorrt"), "leave --backend out"),
    ):
        assert line in refuse(*words), words
