"""Pictures to the vision tower's patches, as transformers' ``Qwen2VLImageProcessorPil`` makes them, bit for bit.

H W height and width of a picture, C = 3 channels, T = 2 frames of a patch (a still picture fills
both), P = 14 pixels each way, N patches of all pictures together; t h w a picture's grid of patches.

Sizes, the order of the float32 and float64 operations and the order of the patches (merge blocks
of 2 × 2 first) are those of transformers 5. Only numpy and Pillow are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Grid = tuple[int, int, int]

# transformers refuses pictures that are narrower than that.
MAX_ASPECT_RATIO = 200

# Keys of a saved processor that change no number of an RGB picture: who wrote it, how it is
# called, and the cropping and padding that transformers' class takes and never does.
_NO_EFFECT = frozenset(
    {
        "auto_map", "crop_size", "data_format", "default_to_square", "device", "disable_grouping", "do_center_crop",
        "do_convert_rgb", "do_pad", "feature_extractor_type", "image_processor_type", "image_seq_length",
        "input_data_format", "pad_size", "processor_class", "return_tensors",
    }
)  # fmt: skip
_SIZE_KEYS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
_SIZE_KEYS |= {name: name for name in _SIZE_KEYS.values()}


@dataclass(frozen=True)
class Settings:
    """What ``preprocessor_config.json`` says; defaults are those of transformers' class.

    Attributes:
        min_pixels, max_pixels: bounds of a picture's area in pixels.
        patch_size: P. temporal_patch_size: T. merge_size: patches each way that become one token.
        image_mean, image_std: of each channel, for values in 0…1.
        rescale_factor: takes 0…255 to 0…1.
        resample: Pillow's number of the filter; 3 is bicubic.
        do_resize, do_rescale, do_normalize: steps that may be left out.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    resample: int = 3
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Settings:
        """Settings from a saved image processor; null means the default.

        Raises:
            ValueError: keys that may change a number and are not known here; a value that cannot be.
        """
        given = {key: value for key, value in config.items() if value is not None and key not in _NO_EFFECT}
        size = given.pop("size", {})
        sizes = {key: value for key, value in size.items() if value is not None} if isinstance(size, Mapping) else None
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(given) - known) + sorted(f"size.{key}" for key in set(sizes or ()) - set(_SIZE_KEYS))
        if unknown or sizes is None:
            raise ValueError(f"image processor with unknown settings: {', '.join(unknown) or f'size = {size!r}'}")
        # min_pixels and max_pixels beside `size` win over it.
        given = {_SIZE_KEYS[key]: value for key, value in sizes.items()} | given
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"image processor: {name} is {value!r}, expected a whole number of at least 1")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"image processor: {name} is {getattr(self, name)}, expected one value a channel (3)")

    @property
    def factor(self) -> int:
        """Pixels each way that become one token; sides of a resized picture are multiples of it."""
        return self.patch_size * self.merge_size


def load_settings(root: str | Path) -> Settings:
    """The settings of a pipeline's image processor.

    They are in ``processor/preprocessor_config.json``, or under ``image_processor`` in
    ``processor/processor_config.json`` where newer versions of transformers saved them (these win
    where both are there, as in transformers).

    Args:
        root: folder of the pipeline, or its ``processor`` folder.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: unknown settings.
    """
    root = Path(root)
    folder = root / "processor" if (root / "processor").is_dir() else root
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            if key is None or key in config:
                return Settings.from_dict(config[key] if key else config)
    raise FileNotFoundError(
        f"{folder} holds neither a preprocessor_config.json nor a processor_config.json with image_processor"
    )


def smart_resize(height: int, width: int, settings: Settings) -> tuple[int, int]:
    """The size that a picture is resized to: multiples of ``settings.factor``, its area within the bounds.

    Raises:
        ValueError: one side is more than 200 times the other, or there is no pixel.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height} × {width} pixels has none; expected at least 1 × 1")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"a picture of {height} × {width} pixels: one side is {ratio:g} times the other, "
            f"expected at most {MAX_ASPECT_RATIO}"
        )
    factor = settings.factor
    # Python rounds halves to even, as the reference does.
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        rows, columns = (max(factor, math.floor(n / shrink / factor) * factor) for n in (height, width))
    elif rows * columns < settings.min_pixels:
        stretch = math.sqrt(settings.min_pixels / (height * width))
        rows, columns = (math.ceil(n * stretch / factor) * factor for n in (height, width))
    return rows, columns


def preprocess(pictures: Sequence[np.ndarray], settings: Settings) -> tuple[np.ndarray, tuple[Grid, ...]]:
    """Patches of all pictures, one picture after the other.

    Args:
        pictures: each H W 3 uint8, RGB.
        settings: of the pipeline's image processor.

    Returns:
        N C·T·P·P float32, and (t, h, w) in patches of each picture.

    Raises:
        ValueError: no picture; one that is not H W 3 uint8, or whose size is impossible.
    """
    if not len(pictures):
        raise ValueError("no pictures; expected at least one")
    patches, grids = zip(*(_one(picture, index, settings) for index, picture in enumerate(pictures)), strict=True)
    return np.concatenate(patches), grids


def _one(picture: np.ndarray, index: int, settings: Settings) -> tuple[np.ndarray, Grid]:
    picture = _checked(picture, index)
    try:
        pixels = _resized(picture, settings)
    except ValueError as error:
        raise ValueError(f"picture {index}: {error}") from None
    if settings.do_rescale:
        # In float64, then rounded.
        pixels = (pixels.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    pixels = pixels.astype(np.float32)
    if settings.do_normalize:
        pixels = (pixels - np.array(settings.image_mean, np.float32)) / np.array(settings.image_std, np.float32)
    return patchify(pixels, settings)


def _checked(picture: np.ndarray, index: int) -> np.ndarray:
    if not isinstance(picture, np.ndarray):
        raise ValueError(f"picture {index} is of type {type(picture).__name__}; expected a numpy array H W 3 of uint8")
    if picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        return picture
    hint = ""
    if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 2, 4)):
        channels = 1 if picture.ndim == 2 else picture.shape[2]
        hint = f" ({'greyscale' if channels < 3 else 'RGB'}{' with alpha' if channels in (2, 4) else ''}?)"
    shape = " ".join(map(str, picture.shape))
    raise ValueError(f"picture {index} has shape {shape} of {picture.dtype}{hint}; expected H W 3 of uint8, RGB")


def _resized(picture: np.ndarray, settings: Settings) -> np.ndarray:
    height, width = picture.shape[:2]
    if not settings.do_resize:
        if not height or not width or height % settings.factor or width % settings.factor:
            raise ValueError(
                f"{height} × {width} pixels are no multiple of {settings.factor} each way, and do_resize is off"
            )
        return picture
    height, width = smart_resize(height, width, settings)
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), settings.resample))


def patchify(pixels: np.ndarray, settings: Settings) -> tuple[np.ndarray, Grid]:
    """Cut one picture into patches; the patches of one merge block follow each other.

    Args:
        pixels: H W C, sides multiples of ``settings.factor``.

    Returns:
        h·w C·T·P·P, and (1, h, w).
    """
    patch, merge, frames = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    height, width, channels = pixels.shape
    h, w = height // patch, width // patch
    blocks = pixels.reshape(h // merge, merge, patch, w // merge, merge, patch, channels)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(h * w, channels, 1, patch, patch)
    return np.repeat(blocks, frames, axis=2).reshape(h * w, -1), (1, h, w)
