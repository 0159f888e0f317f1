"""Images and masks in: read, checked, resized and cropped to what the model takes."""

from pie_engine.imaging.image import fit, inside_box, open_image, read_image, to_image
from pie_engine.imaging.mask import Mask, binary_mask, feather, latent_mask, official_latent_mask, prepare_mask
from pie_engine.imaging.reading import Reading

__all__ = [
    "Mask",
    "Reading",
    "binary_mask",
    "feather",
    "fit",
    "inside_box",
    "latent_mask",
    "official_latent_mask",
    "open_image",
    "prepare_mask",
    "read_image",
    "to_image",
]
