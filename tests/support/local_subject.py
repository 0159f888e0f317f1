"""What `Remote` asks of a process, asked in this one: importing PyTorch anew takes longer than what is measured."""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import mock

from pie_engine.benchmarks.harness import BenchmarkError, Spec, worker
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.errors import PieError


class Local:
    """Stands in for `Remote`: the same subject, asked through the same functions and JSON, in this process."""

    def __init__(self, spec: Spec):
        self._spec = spec
        request = {"make": spec.make, "arguments": dict(spec.arguments), "threads": spec.threads}
        with mock.patch.dict(os.environ, spec.environment):
            try:
                self._subject, made = worker._make(json.loads(json.dumps(request)))
            except PieError as error:  # what cannot run here is told like this by a process, too
                raise BenchmarkError(str(error)) from error
        made = json.loads(json.dumps(made))
        self.load_seconds, self.loaded_bytes, self.facts = made["seconds"], made["host_bytes"], made["facts"]

    def __call__(self, *what: Any) -> Call:
        with mock.patch.dict(os.environ, self._spec.environment):
            return Call(**json.loads(json.dumps(worker._run(self._subject, list(what)))))

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._subject = None
