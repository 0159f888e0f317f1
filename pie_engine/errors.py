"""Errors a user can act on. Every message names the value, the limit and the remedy, in one line.

The command line prints these without a traceback and exits with code 2; anything else is a bug and keeps its traceback.
"""


class PieError(Exception):
    """Base of every error that pie-engine raises on purpose."""


class ConfigError(PieError):
    """A setting is out of range, or two settings contradict each other."""


class InputError(PieError):
    """An image, a mask or a prompt cannot be used."""


class CheckpointError(PieError):
    """A checkpoint is missing, corrupt, unsafe to load, or of an architecture that the engine does not run."""


class BuildError(PieError):
    """An exported component does not compute what its PyTorch module computes."""


class BundleError(PieError):
    """An engine bundle is missing, corrupt, or does not match this machine or this version."""


class BackendError(PieError):
    """A backend is not installed, or cannot run what was asked of it."""


class OutputError(PieError):
    """Results cannot be written."""
