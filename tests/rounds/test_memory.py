"""Messages for a lack of memory: how much was needed, and what lowers it."""

from __future__ import annotations

import pytest
import torch

from pie_engine.errors import Notice
from pie_engine.rounds.memory import explain, explain_weights, requested_bytes

CPU = torch.device("cpu")
GPU_TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.75 GiB of which 1.20 GiB is free."
)
ORT_TEXT = "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1073741824"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (GPU_TEXT, int(2.5 * 2**30)),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12", 4096),
        (ORT_TEXT, 2**30),
        ("The size of tensor a (3) must match the size of tensor b (4)", None),
    ],
)
def test_requested_bytes(text: str, size: int | None) -> None:
    assert requested_bytes(RuntimeError(text)) == size


def test_torch_still_says_it_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert requested_bytes(caught.value) == 2**55


def test_a_run_names_what_lowers_it() -> None:
    line = explain(RuntimeError(ORT_TEXT), CPU, batch=4, resolution=512, precision="fp32")
    assert Notice(str(line)) == (
        "out of memory: 4 items at 512 in fp32 needed 1.00 GiB more; "
        "lower resolution, or run fewer items at once, or use fp16 (dtype or precision)"
    )
    assert explain(RuntimeError("something else"), CPU, batch=1, resolution=512, precision="fp16") is None


def test_weights() -> None:
    line = explain_weights(RuntimeError(ORT_TEXT), CPU, "fp32")
    assert Notice(str(line)) == "out of memory: the weights in fp32 needed 1.00 GiB more; use fp16 (dtype or precision)"
