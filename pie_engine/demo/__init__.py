"""A demo that ships with the project: chest phantoms, a small model trained on them, and a judge of the result."""
