"""A CLIP checkpoint of a few thousand random weights, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE, SHORT = 20, 24


def save_clip(folder: Path) -> tuple[Any, Any]:
    """Write it; returns the model and transformers' own processor over PIL."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 50, "max_position_embeddings": 8}
    vision = {**small, "image_size": SIDE, "patch_size": 5}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SHORT}, crop_size={"height": SIDE, "width": SIDE})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def by_hand(model: Any, processor: Any, images: np.ndarray) -> np.ndarray:
    """Projected embeddings [N, 12] from transformers' own parts."""
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
    return np.asarray(getattr(found, "pooler_output", found))
