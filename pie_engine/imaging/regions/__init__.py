"""Regions of interest: drawn, read, joined, and brought to the model's resolution."""
