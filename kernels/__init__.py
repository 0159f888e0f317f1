"""Fused operations of the denoising loop, one module each, beside the eager reference that they are held to."""
