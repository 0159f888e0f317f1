"""Rounds in a box on a GPU, at full size: against the same engine's whole rounds, captured. See gpu_check.py.

PyTorch's own blocks on both sides: the fused ones of a GPU compute whole pictures.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

from pie_engine import Item, RunConfig
from pie_engine.benchmarks.gpu_rungs import Rung, emit
from pie_engine.benchmarks.gpu_subject import Size, describe, make_engine
from pie_engine.benchmarks.regional import by_kind, region
from pie_engine.rounds import truth

ROUNDS = 6  # one that is recorded, two that are checked, and three in the box


def rungs(size: Size) -> list[Rung]:
    boxes = (24, 16, 32) if size.full else (4,)
    return [
        ("whole rounds", functools.partial(_whole, size)),
        *((f"box of {box}", functools.partial(_boxed, size, box)) for box in boxes),
        ("a box of everything", functools.partial(_everything, size)),
    ]


def _config(size: Size, rounds: int) -> RunConfig:
    return replace(size.config(1), steps=rounds, feather=0)


def _item(size: Size, box: int) -> Item:
    pixels = size.items(1)[0].image
    return Item(pixels, "cardiomegaly", region(box, size.resolution // 8), item_id="0")


def _whole(size: Size) -> None:
    config, item = _config(size, ROUNDS), _item(size, 24 if size.full else 4)
    engine = make_engine(size, {"fused_blocks": False, "regional": "off"})
    engine.run(item, config)
    result = engine.run(item, config)
    seconds = result.provenance["seconds"]["rounds"]
    emit(
        rung="whole rounds", **describe(engine, result, size.half), round_s=float(np.median(seconds[1:])),
        peak_gib=_peak(size),
    )  # fmt: skip


def _boxed(size: Size, box: int) -> None:
    """Checks are made as ever; of random weights they say nothing, so that none has a round computed again."""
    config, item = _config(size, ROUNDS), _item(size, box)
    engine = make_engine(size, {"fused_blocks": False, "regional": "on"})
    with mock.patch.object(truth, "LIMIT", math.inf):
        engine.run(item, config)
        result = engine.run(item, config)
    facts, (loop,) = result.provenance["regional"], engine.simulator.loops.values()
    emit(
        rung=f"box of {box}", **describe(engine, result, size.half), box=facts["box"],
        recording_gb=facts["recording_bytes"] / 1e9, peak_gib=_peak(size),
        **by_kind(facts, result.provenance["seconds"]["rounds"]),
        captured={name: stage.reason or stage.captured for name, stage in loop.stages.items()},
    )  # fmt: skip


def _everything(size: Size) -> None:
    """A box of the whole picture computes what whole rounds compute: latents, to the precision's rounding."""
    side = size.resolution // 8
    config = _config(size, 2)
    mask = np.full((size.resolution, size.resolution), 255, np.uint8)
    item = Item(size.items(1)[0].image, "cardiomegaly", mask, item_id="0")
    found = []
    for regional in ("on", "off"):
        engine = make_engine(size, {"fused_blocks": False, "regional": regional})
        with mock.patch.object(truth, "LIMIT", math.inf):
            found.append(engine.run(item, config))
        del engine
    boxed, whole = found
    assert boxed.provenance["regional"]["box"] == {"top": 0, "left": 0, "height": side, "width": side}
    difference = np.abs(boxed.latents - whole.latents).max() / np.abs(whole.latents).max()
    emit(rung="a box of everything", relative_difference=float(difference))


def _peak(size: Size) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if size.full else None
