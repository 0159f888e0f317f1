"""The harness: what is planted is what it reports. Clocks are planted too: no test depends on how fast a machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pie_engine.backends.host_memory import give_back_freed_memory
from pie_engine.benchmarks.harness import BenchmarkError, MemoryRanOut, Remote, Spec, clock, interleave, summarise
from pie_engine.benchmarks.harness.measure import Call, Samples, quantile
from pie_engine.benchmarks.harness.memory import Peaks
from pie_engine.benchmarks.harness.remote import remotes

HERE = Path(__file__).parents[1] / "support"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks can be forgotten on Linux only")


def planted(kind: str, **arguments: Any) -> Spec:
    """A subject of `planted.py`."""
    return Spec(f"planted:{kind}", arguments, threads=1, environment={"PYTHONPATH": str(HERE)})


@pytest.fixture(scope="module")
def failing() -> Iterator[Remote]:
    """A process that outlives what it raises."""
    with Remote(planted("Failing")) as remote:
        yield remote


class Machine:
    """One machine for all variants, slower with every call; each variant costs so much of its work."""

    def __init__(self, drift: float):
        self._drift, self._speed = drift, 1.0

    def variant(self, work: float) -> Callable[[], Call]:
        def run() -> Call:
            self._speed *= self._drift
            return Call(work * self._speed)

        return run


def test_a_planted_slowdown_is_seen_on_a_steady_machine() -> None:
    machine = Machine(1.0)
    samples = interleave({"fast": machine.variant(1.5), "slow": machine.variant(3.0)}, repeats=3)
    columns = summarise(samples["fast"], samples["slow"])
    assert (columns["speedup"], columns["speedup_p20"], columns["speedup_p80"]) == (2, 2, 2)
    assert (columns["median_s"], columns["repeats"]) == (1.5, 3)
    assert summarise(samples["slow"], samples["slow"])["speedup"] == 1


def test_a_planted_slowdown_is_seen_on_a_machine_that_drifts() -> None:
    drift = 1.05
    machine = Machine(drift)
    samples = interleave({"slow": machine.variant(2.0), "fast": machine.variant(1.0)}, repeats=9)
    # A ratio is off by the drift of one call, not by that of all the calls between two blocks.
    assert summarise(samples["fast"], samples["slow"])["speedup"] == pytest.approx(2 / drift)
    machine = Machine(drift)
    blocks = {work: [machine.variant(work)().seconds for _ in range(9)] for work in (2.0, 1.0)}
    # One after the other: the slowdown is all but gone.
    in_blocks = summarise(Samples(seconds=blocks[1.0]), Samples(seconds=blocks[2.0]))["speedup"]
    assert in_blocks == pytest.approx(2 / drift**9) and in_blocks < 1.3


def test_ratios_are_taken_repeat_by_repeat() -> None:
    base, calls = Samples(seconds=[2.0, 200.0, 4.0]), Samples(seconds=[1.0, 100.0, 2.0])
    assert summarise(calls, base)["speedup"] == 2
    with pytest.raises(ValueError):
        summarise(calls, Samples(seconds=[1.0]))


def test_the_warm_up_is_kept_apart() -> None:
    calls = iter([Call(100.0, 10**9, 10**9), Call(50.0, 10**9), Call(1.0, 5, 7, {"n": 1}), Call(2.0, 4, 8, {"n": 2})])
    told: list[tuple[str, int, float]] = []
    samples = interleave(
        {"only": lambda: next(calls)}, repeats=2, warm_ups=2,
        on_call=lambda name, repeat, call: told.append((name, repeat, call.seconds)),
    )["only"]  # fmt: skip
    assert (samples.warm_up, samples.seconds) == ([100.0, 50.0], [1.0, 2.0])
    assert (samples.host_bytes, samples.device_bytes, samples.facts) == (5, 8, {"n": 2})
    assert told == [("only", -2, 100.0), ("only", -1, 50.0), ("only", 0, 1.0), ("only", 1, 2.0)]
    columns = summarise(samples)
    assert (columns["warm_up_s"], columns["median_s"]) == (100.0, 1.5)
    assert (columns["host_peak_mb"], columns["device_peak_mb"]) == (5e-6, 8e-6)
    assert "speedup" not in columns


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_quantiles_are_numpys(count: int, share: float) -> None:
    values = list(np.random.default_rng(count).lognormal(size=count))
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-12)


def test_the_clock_takes_the_time_of_the_call_alone() -> None:
    ticks = iter([10.0, 12.5])
    assert clock(lambda: "result", now=lambda: next(ticks)) == (2.5, "result")
    seconds, result = clock(lambda: "result")
    assert seconds >= 0 and result == "result"


def test_a_planted_slowdown_goes_through_processes() -> None:
    drift = [9.0, 1.0, 2.0, 4.0]  # the warm-up, and a machine that gets slower
    specs = {
        "slow": planted("Planted", seconds=[2 * time for time in drift], facts={"is": "slow"}),
        "fast": planted("Noisy", seconds=drift),
    }
    said: list[str] = []
    with remotes(specs, on_load=said.append) as subjects:
        assert [line.split(":")[0] for line in said] == ["loaded slow", "loaded fast"]
        assert subjects["slow"].facts == {"is": "slow"} and subjects["slow"].loaded_bytes > 0
        samples = interleave(subjects, repeats=3)
    assert (samples["fast"].warm_up, samples["fast"].seconds) == ([9.0], [1.0, 2.0, 4.0])
    assert summarise(samples["fast"], samples["slow"])["speedup"] == 2
    assert samples["fast"].facts == {"what": []}
    assert all(subject._process.returncode is not None for subject in subjects.values())


def test_what_a_subject_raises_is_one_line(failing: Remote) -> None:
    with pytest.raises(BenchmarkError, match=r"^ValueError: no such thing$"):
        failing("raise")
    with pytest.raises(BenchmarkError, match=r"^value 7 is outside \[0, 1\]; pass 1$") as refused:
        failing("refuse")
    assert not isinstance(refused.value, MemoryRanOut)
    with pytest.raises(MemoryRanOut, match="tried to allocate 4096 bytes"):
        failing("memory")
    assert failing().facts["pid"] == failing._process.pid  # it goes on


def test_a_subject_that_cannot_be_made() -> None:
    with (
        pytest.raises(BenchmarkError, match=r"^bad: ValueError: cannot be made$"),
        remotes({"bad": planted("refuse")}),
    ):
        pytest.fail("it was made")


def test_what_cannot_be_made_is_left_out_where_it_need_not_be() -> None:
    said: list[str] = []
    specs = {"bad": planted("refuse"), "good": planted("Planted", seconds=[1.0])}
    with remotes(specs, on_load=said.append, required=False) as subjects:
        assert list(subjects) == ["good"] and subjects["good"]().seconds == 1.0
    assert said[0] == "left out bad: ValueError: cannot be made"


def test_the_death_of_a_process_is_one_line() -> None:
    for how, kind, line in (
        ("exit", BenchmarkError, r"^the process that measures died with exit code 3 \(the library gave up\)$"),
        ("kill", MemoryRanOut, r"^out of memory, it seems: the process was killed; compare fewer variants$"),
    ):
        with Remote(planted("Failing")) as remote, pytest.raises(kind, match=line):
            remote(how)


PARENT = """
import sys
from pie_engine.benchmarks.harness import Remote, Spec
with Remote(Spec("planted:Failing", {}, 1)) as remote:
    print(remote._process.pid, flush=True)
    remote(sys.argv[1])
"""


@pytest.mark.parametrize(("signals", "how"), [((signal.SIGINT,), "hang"), ((signal.SIGKILL,), "")])
def test_processes_end_with_their_parent(signals: tuple[int, ...], how: str) -> None:
    """However long their work is where the parent can tell them; after it, where the parent is gone at once."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("remote(sys.argv[1])", "remote(sys.argv[1]) if sys.argv[1] else input()"),
         how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        start_new_session=True,
        # A shell without job control has its background jobs ignore interrupts, and so all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        for number in signals:
            parent.send_signal(number)
        try:
            parent.wait(60)
        finally:
            parent.kill()
        deadline = time.monotonic() + 60
        while _lives(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:  # nobody may be there to collect it
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@LINUX
def test_peaks_of_host_memory() -> None:
    size = 64 * 2**20

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

    before = b"\1" * (2 * size)
    assert len(before) == 2 * size
    del before
    give_back_freed_memory()  # PyTorch may have run here, and what it frees is kept
    peaks, base = Peaks("cpu"), resident()
    assert abs(peaks.host() - base) < size / 2  # what was freed before is forgotten
    during = b"\1" * size
    assert len(during) == size
    del during
    assert peaks.host() - base > 0.9 * size  # what was freed since is not
    assert peaks.device() == 0


@LINUX
def test_peaks_of_a_process_are_those_of_each_run() -> None:
    size = 64 * 2**20
    with (
        Remote(planted("Allocating", freed=size)) as brief,
        Remote(planted("Allocating", held=size)) as held,
        Remote(planted("Allocating")) as none,
    ):
        base = none().host_bytes
        for remote in (brief, held):
            assert 0.8 * size < remote().host_bytes - base < 1.5 * size
        assert held.loaded_bytes - none.loaded_bytes > 0.8 * size
        assert brief.loaded_bytes - none.loaded_bytes < 0.5 * size
