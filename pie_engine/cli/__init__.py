"""The command line: `pie-engine build`, `run`, `demo`."""
