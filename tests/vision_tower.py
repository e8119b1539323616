"""A small vision tower in the published layout, and pictures for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from parity.components.vision import draw_picture
from reference.synthetic_vision import tensors

CONFIG = {
    "depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 14, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [1], "out_hidden_size": 40, "in_channels": 3,
    "hidden_act": "silu",
}  # fmt: skip

# Height and width of the pictures: whole windows, windows cut below and on the right, two pictures, a single token.
PICTURES = {
    "square": ((224, 224),),
    "ragged": ((300, 250),),
    "two": ((140, 252), (84, 112)),
    "one token": ((3, 5),),
}


def write_tower(root: Path, *, prefix: str = "visual", **changes) -> Path:
    """A pipeline's folder with ``text_encoder`` (only its vision tower) and ``processor``."""
    config = CONFIG | changes
    (root / "text_encoder").mkdir(parents=True)
    weights = {key.replace("visual", prefix, 1): tensor for key, tensor in tensors(config, seed=0)}
    save_file(weights, root / "text_encoder" / "model.safetensors")
    whole = {"model_type": "qwen2_5_vl", "vision_config": config}
    (root / "text_encoder" / "config.json").write_text(json.dumps(whole))
    # So small a lower bound lets single windows and single tokens through.
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=512 * 512).save_pretrained(root / "processor")
    return root


def draw(name: str, seed: int = 0) -> list[np.ndarray]:
    """The pictures of `PICTURES`."""
    generator = np.random.default_rng(seed)
    return [draw_picture(generator, *size) for size in PICTURES[name]]


def library_tower(root: Path, dtype: torch.dtype) -> Qwen2_5_VisionTransformerPretrainedModel:
    """transformers' own model with the weights of `write_tower`, not instrumented."""
    config = json.loads((root / "text_encoder" / "config.json").read_text())["vision_config"]
    model = Qwen2_5_VisionTransformerPretrainedModel._from_config(
        Qwen2_5_VLVisionConfig(**config), attn_implementation="sdpa"
    )
    weights = load_file(root / "text_encoder" / "model.safetensors")
    model.load_state_dict({key.removeprefix("visual."): tensor.float() for key, tensor in weights.items()})
    model = model.eval().requires_grad_(False).to(dtype)
    rotary = model.rotary_pos_emb
    axis = 2 * len(rotary.inv_freq)
    exact = 1 / rotary.config.rope_parameters["rope_theta"] ** (torch.arange(0, axis, 2, dtype=torch.float64) / axis)
    rotary.inv_freq = exact if dtype == torch.float64 else exact.float()
    return model


class Wide(TorchFunctionMode):
    """Reads every cast to float32 as one to float64: the library's own model without its float32 islands."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.Tensor.to:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


def true_features(root: Path, pixels: np.ndarray, grids) -> np.ndarray:
    """What transformers' model gives in float64 throughout."""
    with Wide():
        out = library_tower(root, torch.float64)(torch.from_numpy(pixels).double(), torch.tensor(grids))
    return out.pooler_output.numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative RMSE of `a` against `b`; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))
