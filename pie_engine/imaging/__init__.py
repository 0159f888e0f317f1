"""Images and masks in: read, checked, resized and cropped to what the model takes."""

from pie_engine.imaging.image import fit, open_image, to_image
from pie_engine.imaging.mask import Mask, binary_mask, feather, latent_mask, official_latent_mask, prepare_mask

__all__ = [
    "Mask",
    "binary_mask",
    "feather",
    "fit",
    "latent_mask",
    "official_latent_mask",
    "open_image",
    "prepare_mask",
    "to_image",
]
