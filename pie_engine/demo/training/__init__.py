"""How the shipped checkpoints were trained. Not in the wheel."""
