"""Benchmarks: a harness, subjects to measure, one script per question, results as data. Installed with the package."""
