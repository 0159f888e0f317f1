"""Images and masks in: read, checked, resized and cropped to what the model takes."""

from pie_engine.imaging.fitting import find_content_box, fit, kept, placement, unfit
from pie_engine.imaging.grid import Grid
from pie_engine.imaging.image import open_image, read_image, read_stored, to_image
from pie_engine.imaging.reading import Reading
from pie_engine.imaging.regions.mask import (
    Mask,
    binary_mask,
    feather,
    fit_grey,
    fit_roi,
    latent_mask,
    official_latent_mask,
    prepare_mask,
)
from pie_engine.imaging.regions.mask_files import read_mask
from pie_engine.imaging.regions.region import Region, as_regions, content_hash
from pie_engine.imaging.regions.roi import Roi, component_sizes, read_roi
from pie_engine.imaging.regions.shapes import Box, Ellipse, Polygon
from pie_engine.imaging.source import ImageSource
from pie_engine.imaging.stored import Stored

__all__ = [
    "Box",
    "Ellipse",
    "Grid",
    "ImageSource",
    "Mask",
    "Polygon",
    "Reading",
    "Region",
    "Roi",
    "Stored",
    "as_regions",
    "binary_mask",
    "component_sizes",
    "content_hash",
    "feather",
    "find_content_box",
    "fit",
    "fit_grey",
    "fit_roi",
    "kept",
    "latent_mask",
    "official_latent_mask",
    "open_image",
    "placement",
    "prepare_mask",
    "read_image",
    "read_mask",
    "read_roi",
    "read_stored",
    "to_image",
    "unfit",
]
