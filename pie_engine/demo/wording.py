"""A wording at random, for the reports of every domain."""

import numpy as np


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options, all as likely; one number is drawn."""
    return options[rng.integers(len(options))]
