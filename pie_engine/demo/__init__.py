"""The demo: procedural phantoms, small checkpoints trained on them, and classifiers that judge the result."""

DOMAINS = ("chest", "fundus", "skin")
