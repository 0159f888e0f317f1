"""Several findings, each in regions of its own: shares of the latent, every round against the reference, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from graph_emulator import EmulatedTimeline

import pie_engine.rounds.loop as loop_module
from pie_engine import Box, Item, PieEngine, Region, RoundSchedule, RunConfig
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import fit, open_image
from pie_engine.imaging.item import prepare_item
from pie_engine.model.bundle import Bundle
from pie_engine.reference import progress_engine
from pie_engine.rounds.batches import sizes_for
from pie_engine.rounds.findings import RegionalUNet

IMAGE = GOLDEN / "image.png"
TOLERANCE = 1e-4  # of latents in fp32, as tests/rounds/test_progression.py has it
SIDE = 64
SHORT = RunConfig(steps=2, num_inference_steps=6, guidance_scale=3.0, resolution=SIDE)
PICTURE = fit(open_image(IMAGE), SIDE)
# In pixels of 64 x 64: the first two overlap in columns 24 to 32, which the later one takes. Latents are 8 pixels wide.
HEART, LUNG, BASE = Box(8, 8, 32, 32), Box(24, 8, 60, 40), Box(8, 44, 40, 60)
REGIONS = [Region(HEART, prompt="heart"), Region(LUNG, beta=0.9, prompt="lung"), Region(BASE, prompt="heart")]


def means(values: np.ndarray) -> np.ndarray:
    """[64, 64] -> [1, 8, 8] float32."""
    return values.reshape(8, 8, 8, 8).mean(axis=(1, 3))[None].astype(np.float32)


def drawn(*boxes: Box) -> np.ndarray:
    found = np.zeros((SIDE, SIDE))
    for box in boxes:
        left, top, right, bottom = (int(number) for number in box.numbers)
        found[top:bottom, left:right] = 1
    return found


def own_reference(checkpoint: Checkpoint, config: RunConfig) -> np.ndarray:
    """Latents of `REGIONS`, from pixels counted here."""
    heart, lung = means(np.maximum(drawn(HEART, BASE) - drawn(LUNG), 0)), means(drawn(LUNG))
    total = heart + lung
    with np.errstate(invalid="ignore"):
        weights = [np.where(total > 0, own / total, 0.5).astype(np.float32) for own in (heart, lung)]
    beta = drawn(HEART, BASE) * config.beta2
    beta[drawn(LUNG) > 0] = 0.9
    rounds = progress_engine(
        checkpoint, PICTURE, means(drawn(HEART, BASE, LUNG)), "unread", config, beta_map=means(beta),
        findings=list(zip(("heart", "lung"), weights, strict=True)),
    )  # fmt: skip
    return np.concatenate([z.numpy() for z, _ in rounds])


@pytest.fixture(scope="module")
def torch_engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


@pytest.fixture(scope="module")
def onnx_engine(bundle: Bundle) -> PieEngine:
    return PieEngine(OnnxBackend(bundle, threads=1))


def test_shares_of_the_latents() -> None:
    prepared = prepare_item(Item(PICTURE, "", REGIONS), SHORT, 8)
    assert prepared.prompts == ("heart", "lung")
    assert prepared.mask is not None
    weights = prepared.mask.finding_weights
    assert weights is not None
    assert weights.shape == (2, 1, 8, 8)
    assert np.allclose(weights.sum(0), 1)
    heart = weights[0, 0]
    assert heart[1, 1:5].tolist() == [1, 1, 0, 0]  # alone, alone, where they overlap, the other one
    assert heart[0, 0] == 0.5  # none of them: evenly
    assert heart[6, 1] == 1  # the first finding's second region; of its latents a quarter may not change
    areas = [np.maximum(drawn(HEART, BASE) - drawn(LUNG), 0).mean(), drawn(LUNG).mean()]
    assert prepared.facts["roi"]["finding_shares"] == pytest.approx(areas)
    grown = prepare_item(Item(PICTURE, "", REGIONS[:2], dilate=8), SHORT, 8)
    assert grown.mask is not None
    assert grown.mask.finding_weights is not None
    assert grown.mask.finding_weights[0, 0, 2, 0] == 1  # the first finding grew to the left
    # Where both grew the nearer one holds: below the overlap it is the later one, which has that.
    assert grown.mask.finding_weights[:, 0, 4, 1].tolist() == [1, 0]
    assert grown.mask.finding_weights[:, 0, 5, 3].tolist() == [0, 1]


@pytest.mark.parametrize("setting", [{}, {"guidance_scale": 1.0}, {"inversion": "ddim", "steps": 1}])
@pytest.mark.parametrize("engine_name", ["torch_engine", "onnx_engine"])
def test_every_round_is_the_references(
    engine_name: str, setting: dict[str, Any], ddim_checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    config = replace(SHORT, **setting)
    result = request.getfixturevalue(engine_name).run(Item(PICTURE, "", REGIONS), config)
    assert np.abs(result.latents - own_reference(ddim_checkpoint, config)).max() < TOLERANCE
    simulated = result.provenance["simulated"]
    assert simulated["prompt"] == "heart + lung"
    assert [(own["prompt"], own["regions"]) for own in simulated["findings"]] == [("heart", [1, 3]), ("lung", [2])]


def test_a_schedule_of_strength_and_guidance(torch_engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    entries = [{"rounds": "1-2", "guidance_scale": [1, 2]}, {"rounds": 3, "strength": 0.34}]
    config = replace(SHORT, steps=3, schedule=RoundSchedule.parse(entries))
    result = torch_engine.run(Item(PICTURE, "", REGIONS), config)
    assert np.abs(result.latents - own_reference(ddim_checkpoint, config)).max() < TOLERANCE


def test_one_finding_changes_no_bit(torch_engine: PieEngine) -> None:
    boxes = [HEART, LUNG]
    plain = torch_engine.run(Item(PICTURE, "heart", boxes), SHORT)
    for item in (
        Item(PICTURE, "", [Region(box, prompt="heart") for box in boxes]),
        Item(PICTURE, "heart", [HEART, Region(LUNG, prompt="heart")]),
    ):
        result = torch_engine.run(item, SHORT)
        assert np.array_equal(result.latents, plain.latents)
        assert np.array_equal(result.frames, plain.frames)
        assert "findings" not in result.provenance["simulated"]


def test_each_finding_acts_in_its_own_region(torch_engine: PieEngine) -> None:
    """Regions apart: another prompt in one changes it far more than it changes the other."""
    left, right = Box(0, 16, 24, 48), Box(40, 16, 64, 48)
    results = [
        torch_engine.run(Item(PICTURE, "heart", [left, Region(right, prompt=prompt)]), replace(SHORT, steps=1)).latents
        for prompt in ("lung", "severe")
    ]
    apart = np.abs(results[0] - results[1])[0].max(0)
    assert apart[2:6, 5:].max() > 3 * apart[2:6, :3].max() > 0


def test_items_with_other_numbers_of_findings_run_in_one_batch(torch_engine: PieEngine) -> None:
    items = [
        Item(PICTURE, "", REGIONS, "a"),
        Item(PICTURE, "lung", LUNG, "b"),
        Item(PICTURE, "lung", [HEART, Region(LUNG, prompt="severe")], "c"),
        Item(PICTURE, "lung", None, "d"),
    ]
    for item, result in zip(items, torch_engine.run(items, SHORT), strict=True):
        assert np.abs(result.latents - torch_engine.run(item, SHORT).latents).max() < TOLERANCE
        assert result.provenance["item_id"] == item.item_id
        assert result.provenance["backend"]["batch"] == (2 if item.item_id in "ac" else 1)


def test_captured_rounds(ddim_checkpoint: Checkpoint, torch_engine: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second item through the same captured rounds has its own prompts and shares."""
    items = [Item(PICTURE, "", REGIONS), Item(PICTURE, "severe", [Region(LUNG, prompt="lung"), HEART])]
    config = replace(SHORT, steps=4)
    expected = [torch_engine.run(item, config) for item in items]
    timelines: list[EmulatedTimeline] = []
    monkeypatch.setattr(loop_module, "make_timeline", lambda *_: timelines.append(EmulatedTimeline()) or timelines[-1])
    engine = PieEngine(torch_engine.backend)
    for item, plain in zip(items, expected, strict=True):
        result = engine.run(item, config)
        assert np.array_equal(result.latents, plain.latents)
        assert np.array_equal(result.frames, plain.frames)
    assert (len(timelines), timelines[0].captures) == (1, 3)


def test_regional_sum_by_hand() -> None:
    class UNet:
        sample, timestep = torch.zeros(3, 1, 1, 2, dtype=torch.float16), torch.zeros(1)
        context, output = torch.zeros(3, 77, 4), torch.zeros(3, 1, 1, 2, dtype=torch.float16)

        def __call__(self) -> None:
            self.output.copy_(self.sample + torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1))

    inner = UNet()
    regional = RegionalUNet(inner, torch.tensor([[1.0, 0.25], [0.0, 0.75]]).view(2, 1, 1, 1, 2), guided=True)
    regional.sample.copy_(torch.tensor([2.0, 4.0]).view(1, 1, 1, 2).expand(2, 1, 1, 2))
    for _ in range(2):
        regional()
        assert inner.sample[2].flatten().tolist() == [2, 4]
        assert regional.output.dtype == torch.float16
        assert regional.output[0].flatten().tolist() == [3, 5]
        assert regional.output[1].flatten().tolist() == [12, 0.25 * 14 + 0.75 * 104]


def test_refusals(torch_engine: PieEngine) -> None:
    def refused(item: Item, message: str, kind: type[Exception] = ConfigError, **settings: Any) -> None:
        with pytest.raises(kind) as caught:
            torch_engine.run(item, replace(SHORT, **settings))
        assert message in str(caught.value)

    refused(Item(PICTURE, "base", REGIONS), "prompt 'base' is never used: each region has its own finding")
    refused(Item(PICTURE, "", [Region(HEART, prompt=3)]), "Region.prompt of type int is not text", InputError)  # type: ignore[arg-type]
    schedule = RoundSchedule.parse([{"rounds": 1, "prompt": "lung"}])
    refused(Item(PICTURE, "", REGIONS), "the schedule's prompts would take the place of 2 findings", schedule=schedule)
    one = Item(PICTURE, "", [Region(HEART, prompt="heart")])
    every = RoundSchedule.parse([{"rounds": f"1-{SHORT.steps}", "prompt": "lung"}])
    refused(one, "the schedule's prompts would take the place of 1 finding; leave them out", schedule=every)
    torch_engine.run(one, replace(SHORT, schedule=schedule))  # the finding holds in the rounds that have no other
    official = {"semantics": "official", "noise": None, "composite": None, "feather": None}
    refused(Item(PICTURE, "", Region(HEART, prompt="lung")), "a finding with its own region is not what", **official)
    kept = Item(PICTURE, "", [Region(HEART, prompt="heart"), Region(BASE, prompt="lung")], keep=BASE)
    refused(kept, "finding 2 of 2 has nothing of its region left at 64 x 64", InputError)


@pytest.mark.parametrize(
    ("sizes", "findings", "expected"),
    [
        (None, 3, None),
        ((1, 4), 1, (1, 4)),
        ((1, 2), 3, (1,)),
        ((1, 3), 2, (1,)),
        ((1, 2, 4), 3, (1, 2)),
        ((1, 6), 5, (1,)),
    ],
)
def test_batches_that_engines_were_compiled_for(sizes: Any, findings: int, expected: Any) -> None:
    assert sizes_for(sizes, findings, SHORT) == expected


def test_batches_that_no_engine_was_compiled_for() -> None:
    with pytest.raises(ConfigError) as caught:
        sizes_for((1, 2), 2, SHORT)
    assert str(caught.value) == (
        "2 findings ask the U-Net about 3 latents at once, and the engines take 1, 2, 4; "
        "build them with batches=(1, 3), or pass backend='onnxruntime'"
    )
    # Rounds with and without guidance need both.
    mixed = replace(SHORT, schedule=RoundSchedule.parse([{"rounds": 1, "guidance_scale": 1}]))
    with pytest.raises(ConfigError, match=r"about 3 and 4 latents at once, .* build them with batches=\(1, 2, 3\),"):
        sizes_for((1,), 3, mixed)
    assert sizes_for((1, 2, 3), 3, mixed) == (1,)
