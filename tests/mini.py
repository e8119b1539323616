"""A two-block checkpoint in the real layout, written by diffusers, and a suite that runs it in seconds."""

from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

CONFIG = {
    "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 48,
    "axes_dims_rope": (4, 14, 14), "in_channels": 16, "out_channels": 4,
}  # fmt: skip

SUITE = """
title = "mini"
weights = "synthetic:tiny"
detail = "full"
draws = 2
[[case]]
name = "one"
images = [[64, 96]]
text_tokens = [5, 3]
timestep = 0.9
seed = 0
dtypes = ["float32"]
modes = ["isolated", "accumulated"]
"""


def write_checkpoint(folder: Path, seed: int = 0, **config) -> Path:
    torch.manual_seed(seed)
    model = QwenImageTransformer2DModel(**CONFIG | config)
    with torch.no_grad():
        # diffusers' initialisation leaves the modulation small; a port that gets it wrong must show.
        for name, tensor in model.named_parameters():
            if "mod.1" in name or "norm_out.linear" in name:
                tensor.copy_(torch.randn_like(tensor) * 0.3)
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder


def write_suite(folder: Path, text: str = SUITE) -> Path:
    path = folder / "mini.toml"
    path.write_text(text)
    return path
