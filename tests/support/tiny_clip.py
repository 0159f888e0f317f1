"""A CLIP checkpoint of a few thousand random weights, as a folder; its tokenizer knows the words of `WORDS`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE, SHORT = 20, 24
WORDS = ("Severe cardiomegaly. The heart is not markedly enlarged.", "No normal lungs, a large left effusion.")
TOKENS = 12  # that a text may have, begin and end included


def save_clip(folder: Path) -> tuple[Any, Any]:
    """Write it; returns the model and transformers' own processor over PIL."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from pie_engine.demo.training.tokenizer import save_tokenizer

    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder, WORDS)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    vision = {**small, "image_size": SIDE, "patch_size": 5}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": SHORT}, crop_size={"height": SIDE, "width": SIDE})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def tokens_by_hand(folder: Path, texts: list[str]) -> torch.Tensor:
    """Token ids of texts, [N, TOKENS], by transformers' own tokenizer."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    found = tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return torch.as_tensor(found.input_ids)


def by_hand(model: Any, processor: Any, images: np.ndarray) -> np.ndarray:
    """Projected embeddings [N, 12] from transformers' own parts."""
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
    return np.asarray(getattr(found, "pooler_output", found))
