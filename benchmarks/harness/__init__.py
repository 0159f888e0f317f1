"""Measuring: interleaved repeats, memory, arithmetic, the machine's own limits, and results as rows of a CSV.

Benchmarks import torch and the engine within functions: loading is timed with its imports, each variant's process holds
what it needs and no more, and the process that starts them leaves its memory to them.
"""

from pie_engine.benchmarks.harness.measure import Samples, captured, clock, interleave, quantile, summarise
from pie_engine.benchmarks.harness.remote import BenchmarkError, MemoryRanOut, Remote, Spec

__all__ = [
    "BenchmarkError",
    "MemoryRanOut",
    "Remote",
    "Samples",
    "Spec",
    "captured",
    "clock",
    "interleave",
    "quantile",
    "summarise",
]
