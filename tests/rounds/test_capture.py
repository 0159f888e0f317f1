"""A stage: warmed up, captured once, replayed; and what happens where capture fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from graph_emulator import emulated_graph

from pie_engine.rounds.capture import Stage


def test_first_run_is_the_warm_up_and_counts() -> None:
    x = torch.zeros(3)
    ran: list[str] = []

    def function() -> None:
        ran.append("host")
        x.add_(x + 1)

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        ran.append("capture")
        return emulated_graph(function)

    stage = Stage("test", function, capture)
    values = []
    for _ in range(4):
        stage()
        values.append(x[0].clone())
    assert ran == ["host", "capture", "host"]  # the second time for recording; replays run nothing on the host
    assert [v.item() for v in values] == [1, 3, 7, 15]
    assert stage.captured
    assert stage.reason == ""


def test_without_capture_it_just_runs() -> None:
    x = torch.zeros(1)
    stage = Stage("test", lambda: x.add_(1) and None, "no GPU")
    for _ in range(3):
        stage()
    assert x.item() == 3
    assert not stage.captured
    assert stage.reason == "no GPU"


def test_failed_capture_falls_back_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.zeros(1)

    def reads_the_host() -> None:
        x.add_(1)
        assert x.item() > 0

    stage = Stage("the round", reads_the_host, emulated_graph)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            stage()
    assert not stage.captured
    assert stage.reason == "operation not permitted when stream is capturing"
    assert [record.message for record in caplog.records] == [
        "no CUDA graph for the round (operation not permitted when stream is capturing); "
        "it runs uncaptured, which is slower"
    ]


def test_the_first_cause_is_reported() -> None:
    def fails(function: object) -> None:
        try:
            raise ValueError("\nread on the host")
        finally:
            raise RuntimeError("the capture is broken by an earlier error")

    stage = Stage("the round", lambda: None, fails)
    stage()
    stage()
    assert stage.reason == "read on the host"


@pytest.mark.gpu
def test_a_failed_capture_leaves_the_allocator_usable() -> None:
    from pie_engine.rounds.capture import cuda_graph

    x = torch.zeros(4, device="cuda")
    stream = torch.cuda.Stream()

    def reads_the_host() -> None:
        x.add_(torch.ones(4, device="cuda"))
        assert x[0].item() >= 0

    stage = Stage("the round", reads_the_host, cuda_graph(stream))
    with torch.cuda.stream(stream):
        for _ in range(3):
            stage()
    assert x[0].item() == 3
    assert "captur" in stage.reason
    torch.cuda.empty_cache()
    second = Stage("test", lambda: x.add_(1) and None, cuda_graph(stream))
    with torch.cuda.stream(stream):
        for _ in range(3):
            second()
    assert second.captured
    assert x[0].item() == 6


@pytest.mark.gpu
def test_cuda_graph_replays_on_static_buffers() -> None:
    from pie_engine.rounds.capture import cuda_graph

    x = torch.zeros(4, device="cuda")
    stage = Stage("test", lambda: x.add_(x + 1) and None, cuda_graph(torch.cuda.Stream()))
    values = []
    for _ in range(4):
        stage()
        values.append(x[0].item())
    assert values == [1, 3, 7, 15]
    assert stage.captured
