"""The walk against diffusers, and replays against the dense evaluation that was recorded."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch

from pie_engine.demo.domain import load_domain
from pie_engine.regional.layout import decoder_entries, obstacle, share_of_work, tape_shapes, unet_entries
from pie_engine.regional.surroundings import Dense, Record, Replay
from pie_engine.regional.walk import decode, unet
from pie_engine.regional.windows import Box, cover, magnified, places, windows

SIZE = 32
# float32: unit roundoff 6e-8, times the square root of a dot product's length (up to 1,000 terms) and of some hundred
# layers, for values of about 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def net():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=SIZE, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
        block_out_channels=(32, 64, 96, 96),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32), layers_per_block=2, norm_num_groups=8,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, SIZE, SIZE), torch.tensor([481.0]), torch.randn(2, 7, 32)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def crop(x, boxes, scale=1):
    at = [[scale * n for n in box] for box in boxes]
    return torch.stack([y[:, t : t + h, left : left + w] for y, (t, left, h, w) in zip(x, at, strict=True)])


def replayed(net, inputs, boxes):
    """The dense evaluation while it is recorded, the boxes replayed from it, and the recording."""
    levels = len(net.config.block_out_channels)
    around, within = places([windows(box, (SIZE, SIZE), levels) for box in boxes])
    record = Record(around)
    dense = unet(net, record, *inputs)
    sample, *others = inputs
    return dense, unet(net, Replay(record.tape, within), crop(sample, boxes), *others), record.tape


def boxes_of(generator, parity=None):
    """Two of one size at different places, of even or odd offsets where asked."""
    height, width = generator.randint(3, SIZE - 2), generator.randint(3, SIZE - 2)

    def offset(length):
        return generator.choice([n for n in range(SIZE - length + 1) if parity is None or n % 2 == parity])

    return [Box(offset(height), offset(width), height, width) for _ in range(2)]


def test_the_dense_walk_is_diffusers_unet(net, inputs):
    sample, timestep, context = inputs
    reference = net(sample, timestep, encoder_hidden_states=context).sample
    assert (unet(net, Dense(), *inputs) - reference).abs().max() <= TOLERANCE


def test_fused_projections_are_walked_alike(net, inputs):
    from pie_engine.backends.torch_backend import fuse_projections

    fused = copy.deepcopy(net)
    fuse_projections(fused)
    assert (unet(fused, Dense(), *inputs) - unet(net, Dense(), *inputs)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("parity", [0, 1, None], ids=["even offsets", "odd offsets", "any offsets"])
def test_a_box_replays_what_was_recorded(net, inputs, parity):
    generator = random.Random(f"{parity}")
    for _ in range(4):
        boxes = boxes_of(generator, parity)
        dense, box, _ = replayed(net, inputs, boxes)
        assert (box - crop(dense, boxes)).abs().max() <= TOLERANCE, boxes


def test_a_box_of_everything_is_dense(net, inputs):
    dense, box, _ = replayed(net, inputs, [Box(0, 0, SIZE, SIZE)] * 2)
    reference = net(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    assert (box - dense).abs().max() <= TOLERANCE
    assert (dense - reference).abs().max() <= TOLERANCE


def test_an_item_alone_and_in_a_batch(net, inputs):
    boxes = boxes_of(random.Random(3))
    sample, timestep, context = inputs
    _, together, _ = replayed(net, inputs, boxes)
    _, alone, _ = replayed(net, (sample[1:], timestep, context[1:]), boxes[1:])
    assert (alone - together[1:]).abs().max() <= TOLERANCE


def test_what_the_outside_says_matters(net, inputs):
    """A replay reads its recording: with another one the box becomes another."""
    boxes = [Box(8, 8, 12, 12)] * 2
    sample, timestep, context = inputs
    dense, _, _ = replayed(net, inputs, boxes)
    _, _, other = replayed(net, (sample + 1, timestep, context), boxes)
    _, within = places([windows(box, (SIZE, SIZE), 4) for box in boxes])
    box = unet(net, Replay(other, within), crop(sample, boxes), timestep, context)
    assert (box - crop(dense, boxes)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("boxes", [[Box(0, 0, SIZE, SIZE)] * 2, [Box(5, 9, 12, 14), Box(20, 0, 12, 14)]])
def test_the_decoder(vae, boxes):
    torch.manual_seed(2)
    latent = torch.randn(2, 4, SIZE, SIZE, dtype=torch.float64)
    exact = copy.deepcopy(vae).double()  # in float32 the attention's rounding alone is 5e-5
    assert (decode(exact, Dense(), latent) - exact.decode(latent).sample).abs().max() <= 1e-10
    around, within = places([magnified(box, (SIZE, SIZE), 4) for box in boxes])
    record = Record(around, 3)
    dense = decode(exact, record, latent)
    box = decode(exact, Replay(record.tape, within, 3), crop(latent, boxes))
    assert (box - crop(dense, boxes, 8)).abs().max() <= TOLERANCE  # the outside's share of the picture is float32


def test_the_layout_foretells_a_recording(net, vae, inputs):
    boxes = [Box(5, 9, 12, 14), Box(18, 0, 12, 14)]
    _, _, tape = replayed(net, inputs, boxes)
    at = windows(boxes[0], (SIZE, SIZE), 4)
    assert tape_shapes(unet_entries(net.config), at, 2) == [tuple(each.shape) for each in tape]
    around, _ = places([magnified(box, (SIZE, SIZE), 4) for box in boxes])
    record = Record(around, 3)
    decode(vae, record, inputs[0])
    at = magnified(boxes[0], (SIZE, SIZE), 4)
    assert tape_shapes(decoder_entries(vae.config), at, 2) == [tuple(each.shape) for each in record.tape]


@pytest.mark.parametrize("domain", ["chest", "fundus"])
def test_the_layout_knows_the_demos(domain):
    checkpoint = load_domain(domain).checkpoint
    for part, entries in (("unet", unet_entries), ("vae", decoder_entries)):
        config = json.loads((checkpoint / part / "config.json").read_text())
        assert obstacle(config) == ""
        assert entries(config)


def test_what_the_walk_does_not_know_is_named(net):
    assert obstacle(net.config) == ""
    assert obstacle({**net.config, "time_cond_proj_dim": 8}) == "time_cond_proj_dim is 8"
    assert obstacle({**net.config, "up_block_types": ("AttnUpBlock2D",)}) == "a block is AttnUpBlock2D"


# Multiply-adds of the whole U-Net of Stable Diffusion v1.4 at 64 x 64 latents over those of a box, counted in its
# modules (805 and 67, 135, 229, 347, 491 G).
@pytest.mark.parametrize(("side", "counted"), [(16, 12.04), (24, 5.94), (32, 3.51), (40, 2.31), (48, 1.64)])
def test_the_share_of_work_is_that_of_the_multiplications(side, counted):
    blocks = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    config = {
        "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "down_block_types": blocks,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(blocks)),
    }  # fmt: skip
    share = share_of_work(unet_entries(config), windows(Box(7, 9, side, side), (64, 64), 4))
    assert 1 / share == pytest.approx(counted, rel=0.1)


def test_a_box_covers_its_mask():
    mask = np.zeros((64, 64))
    mask[10:20, 30:37] = 0.3
    assert cover(mask, 1, 8) == Box(7, 26, 16, 16)
    mask[:, 60:] = 1
    assert cover(mask, 1, 8) == Box(0, 24, 64, 40)
    assert cover(np.zeros((64, 64)), 1, 8) == Box(0, 0, 8, 8)
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = np.zeros((32, 48))
        top, left = generator.integers(32), generator.integers(48)
        mask[top : top + generator.integers(1, 20), left : left + generator.integers(1, 20)] = 1
        box = cover(mask, 1, 4)
        assert box.height % 4 == box.width % 4 == 0 and box.top >= 0 and box.left >= 0
        assert box.top + box.height <= 32 and box.left + box.width <= 48
        inside = mask[box.top : box.top + box.height, box.left : box.left + box.width]
        assert inside.sum() == mask.sum()
