"""CLIP: how close a picture stays to the input (CLIP-I), and how close it comes to a text; cosines of embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pie_engine.checkpoint.json_files import read_object
from pie_engine.errors import CheckpointError, InputError
from pie_engine.model.info import read_length

_PREPROCESSOR = "preprocessor_config.json"
_KINDS = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}


class ClipEncoder:
    """A CLIP checkpoint in fp32, pictures fed as its own preprocessor says; without torchvision.

    Args:
        folder: as transformers' `save_pretrained` writes it: config.json, preprocessor_config.json and .safetensors;
            for texts its tokenizer's files too.
        device: where torch runs it.

    Raises:
        CheckpointError: the folder is missing or incomplete, or holds another kind of model.
    """

    def __init__(self, folder: str | Path, device: str = "cpu"):
        self._folder = folder = Path(folder)
        kind = _KINDS[_kind(folder)]
        self._preprocess = _Preprocessor(folder)
        import transformers

        try:
            # Only a path that is there reaches transformers, which asks the network for anything else.
            with _no_progress_bar():
                model, found = getattr(transformers, kind).from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype="float32"
                )
        except Exception as error:  # transformers, safetensors and torch share no base
            raise CheckpointError(
                f"CLIP checkpoint {folder} cannot be loaded ({type(error).__name__}); "
                "save it anew with transformers' save_pretrained"
            ) from error
        if found["missing_keys"]:
            raise CheckpointError(
                f"CLIP checkpoint {folder} lacks {len(found['missing_keys'])} weights "
                f"({min(found['missing_keys'])}); save it anew with transformers' save_pretrained"
            )
        self._side = int(model.vision_model.config.image_size)
        self._device = device
        self._vision = model.vision_model.eval().to(device)
        self._project = model.visual_projection.to(device)
        self._text: Any = None  # CLIPVisionModelWithProjection has none
        if kind == "CLIPModel":
            self._text, self._project_text = model.text_model.eval().to(device), model.text_projection.to(device)

    def features(self, images: np.ndarray, batch: int = 16) -> np.ndarray:
        """Projected embeddings of [N, H, W, 3] uint8, float32 [N, D], not normalised.

        Raises:
            InputError: another shape or dtype.
            CheckpointError: the preprocessor's size is not the model's.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
            raise InputError(f"expected uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}; convert it first")
        rows = []
        for start in range(0, len(images), batch):
            pixels = np.stack([self._preprocess(image) for image in images[start : start + batch]])
            if pixels.shape[2:] != (self._side, self._side):
                raise CheckpointError(
                    f"{_PREPROCESSOR} makes pictures of {pixels.shape[3]} x {pixels.shape[2]} and the CLIP model takes "
                    f"{self._side} x {self._side}; pass the folder whose files belong together"
                )
            with torch.inference_mode():
                pooled = self._vision(pixel_values=torch.from_numpy(pixels).to(self._device)).pooler_output
                rows.append(self._project(pooled).cpu().numpy())
        return np.concatenate(rows)

    def text_features(self, texts: Sequence[str], batch: int = 64) -> np.ndarray:
        """Projected embeddings of texts, float32 [N, D], not normalised. What is beyond `text_length` is not read.

        Raises:
            InputError: no text.
            CheckpointError: the checkpoint has no text half, or no tokenizer that fits it.
        """
        if not texts:
            raise InputError("no text is given to embed; pass at least 1")
        ids = self._tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        rows = []
        for some in ids.split(batch):
            with torch.inference_mode():
                pooled = self._text(input_ids=some.to(self._device)).pooler_output
                rows.append(self._project_text(pooled).cpu().numpy())
        return np.concatenate(rows)

    @property
    def text_length(self) -> int:
        """Tokens of a text that are read, begin and end included; 77 in published checkpoints. Raises as above."""
        return int(self._tokenizer.model_max_length)

    def read_length(self, text: str) -> tuple[int, str]:
        """Tokens that `text` needs, and the end of it that is not read, empty if all is. Raises as `text_features`."""
        return read_length(self._tokenizer, text, self.text_length)

    @cached_property
    def _tokenizer(self) -> Any:
        if self._text is None:
            raise CheckpointError(
                f"CLIP checkpoint {self._folder} holds the image half alone; pass one of type 'clip', which reads texts"
            )
        from pie_engine.checkpoint.components import load_tokenizer  # brings diffusers, which pictures do not need

        return load_tokenizer(self._folder, self._text)


def similarity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each picture's embedding and each text's, in fp32: [N, D] and [T, D] to [N, T], -1 to 1."""
    return normalised(images) @ normalised(texts).T


def clip_i(frames: np.ndarray, encoder: ClipEncoder) -> list[float]:
    """Cosine of each frame's embedding and the input's, in fp32: -1 to 1, N + 1 values of which the first is 1.

    Args:
        frames: [N + 1, H, W, 3] uint8, frame 0 the input.
    """
    unit = normalised(encoder.features(frames))
    return [float(value) for value in unit @ unit[0]]


def normalised(rows: np.ndarray) -> np.ndarray:
    """Embeddings [N, D], each divided by its length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class _Preprocessor:
    """What preprocessor_config.json says, with PIL: resize, crop the centre, rescale, normalise."""

    def __init__(self, folder: Path):
        values = _json(folder / _PREPROCESSOR)
        try:
            self._shortest, self._size = None, None
            if values.get("do_resize", True):
                size = values["size"]
                size = {"shortest_edge": size} if isinstance(size, int) else size
                if "shortest_edge" in size:
                    self._shortest = int(size["shortest_edge"])
                else:
                    self._size = int(size["height"]), int(size["width"])
            self._crop = None
            if values.get("do_center_crop", True):
                crop = values["crop_size"]
                self._crop = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
            self._resample = int(values.get("resample", 3))  # PIL's number; 3 is bicubic
            scale = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
            normal = values.get("do_normalize", True)
            self._scale = np.float32(scale)
            self._mean = np.array(values["image_mean"] if normal else [0.0] * 3, np.float32).reshape(3)
            self._std = np.array(values["image_std"] if normal else [1.0] * 3, np.float32).reshape(3)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / _PREPROCESSOR} is not one of CLIP's ({type(error).__name__}: {error}); "
                "take the one that was published with the checkpoint"
            ) from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 to [3, h, w] float32."""
        height, width = image.shape[:2]
        if self._shortest is not None:
            short = min(height, width)
            height, width = int(self._shortest * height / short), int(self._shortest * width / short)
        elif self._size is not None:
            height, width = self._size
        if (height, width) != image.shape[:2]:
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(self._resample)))
        if self._crop is not None:
            top, left = max(0, (height - self._crop[0]) // 2), max(0, (width - self._crop[1]) // 2)
            image = image[top : top + self._crop[0], left : left + self._crop[1]]
        return ((image.astype(np.float32) * self._scale - self._mean) / self._std).transpose(2, 0, 1)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows one on stderr for any model, however quickly it loads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _kind(folder: Path) -> str:
    remedy = "pass the folder of a CLIP checkpoint"
    if not folder.is_dir():
        raise CheckpointError(f"CLIP checkpoint {folder} is not a folder; {remedy}")
    kind = _json(folder / "config.json").get("model_type")
    if kind not in _KINDS:
        raise CheckpointError(f"{folder} holds a model of type {kind!r}, and not {' or '.join(_KINDS)}; {remedy}")
    return str(kind)


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} holds no {path.name}; pass the folder of a CLIP checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}); download it again") from error
