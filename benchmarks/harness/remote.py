"""One process per variant: its memory is its own, its threads disturb nobody's, and a crash takes only itself.

All are loaded before the first call is timed, and then told one after the other to run once.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pie_engine.benchmarks.harness.measure import Call
from pie_engine.errors import PieError


class BenchmarkError(PieError):
    """A variant could not be loaded or run; one line."""


class MemoryRanOut(BenchmarkError):
    """A variant needs more memory than there is; others may not."""


@dataclass(frozen=True)
class Spec:
    """What a process measures.

    Attributes:
        make: "module:function"; called with `arguments`, it gives a subject (see `pie_engine.benchmarks.subjects`).
        arguments: of that function; plain values.
        threads: processor threads, equal for all that are compared; None leaves it to the libraries.
        environment: variables of the process beside this one's.
    """

    make: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Remote:
    """A subject in a process of its own. Use as a context manager.

    Attributes:
        load_seconds: from the call of `make` until the subject was there, without imports of torch.
        loaded_bytes: the process's peak of host memory until then.
        facts: what the subject says of itself.

    Raises:
        BenchmarkError: the subject cannot be made.
    """

    def __init__(self, spec: Spec):
        threads = {} if spec.threads is None else {"OMP_NUM_THREADS": str(spec.threads)}
        # A pipe that nobody reads would fill up. What libraries write need not be text.
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pie_engine.benchmarks.harness.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log if os.environ.get("PIE_ENGINE_BENCH_DEBUG") is None else None,
            text=True,
            env={**os.environ, **threads, **spec.environment},
        )
        try:
            made = self._ask({"make": spec.make, "arguments": dict(spec.arguments), "threads": spec.threads})
        except BaseException:
            self.close()
            raise
        self.load_seconds: float = made["seconds"]
        self.loaded_bytes: int = made["host_bytes"]
        self.facts: dict[str, Any] = made["facts"]

    def __call__(self, *what: Any) -> Call:
        """Run the subject once, telling it what if it can do several things. Raises BenchmarkError where it fails."""
        return Call(**self._ask({"run": what}))

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            if code == -9:
                raise MemoryRanOut("out of memory, it seems: the process was killed; compare fewer variants")
            self._log.seek(0)
            last = next((line for line in reversed(self._log.read().splitlines()) if line.strip()), "it said nothing")
            raise BenchmarkError(f"the process that measures died with exit code {code} ({last})")
        reply = json.loads(answer)
        if "error" in reply:
            raise (MemoryRanOut if reply.get("memory") else BenchmarkError)(reply["error"])
        return reply


@contextlib.contextmanager
def remotes(
    specs: Mapping[str, Spec], on_load: Callable[[str], None] = lambda line: None, *, required: bool = True
) -> Iterator[dict[str, Remote]]:
    """All subjects, loaded one after the other.

    Args:
        required: if not, those that cannot be made here are said to be left out; at least one has to be there.

    Raises:
        BenchmarkError: one cannot be made, with its name.
    """
    with contextlib.ExitStack() as stack:
        loaded = {}
        for name, spec in specs.items():
            try:
                loaded[name] = stack.enter_context(Remote(spec))
            except BenchmarkError as error:
                if required or (name == list(specs)[-1] and not loaded):
                    raise BenchmarkError(f"{name}: {error}") from None
                on_load(f"left out {name}: {error}")
                continue
            on_load(f"loaded {name}: {loaded[name].load_seconds:.1f} s")
        yield loaded
