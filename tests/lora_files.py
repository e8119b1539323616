"""LoRA files for tests, in every dialect, with deltas large enough to matter."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from parity.lora import linear_layers

# Dialect -> how a layer's name and a part become a key; part is down, up or alpha.
_AB = {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}
_NAMED = {"down": "lora_A.default.weight", "up": "lora_B.default.weight", "alpha": "alpha"}
_DOWN_UP = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}


def _dotted(prefix, parts):
    return lambda layer, part: f"{prefix}{layer}.{parts[part]}"


DIALECTS = {
    "transformer": _dotted("transformer.", _AB),
    "base_model": _dotted("base_model.model.", _AB),
    "peft-default": _dotted("", _NAMED),
    "lightning": _dotted("", _DOWN_UP),
    "bare": _dotted("", _AB),
    "diffusion_model": _dotted("diffusion_model.", _AB),
    "diffusion_model-down": _dotted("diffusion_model.", _DOWN_UP),
    "transformer-default": _dotted("transformer.", _NAMED),
    "transformer-down": _dotted("transformer.", _DOWN_UP),
    "kohya": lambda layer, part: f"lora_unet_{layer.replace('.', '_')}.{_DOWN_UP[part]}",
    "mflux": lambda layer, part: f"{to_mflux(layer)}.{_DOWN_UP[part]}",
}


def to_mflux(layer):
    for ours, theirs in (
        ("attn.to_out.0", "attn.attn_to_out.0"), ("_mod.1", "_mod_linear"),
        ("_mlp.net.0.proj", "_ff.mlp_in"), ("_mlp.net.2", "_ff.mlp_out"),
    ):  # fmt: skip
        layer = layer.replace(ours, theirs)
    return layer


def factors(config, rank=4, seed=1, dtype=torch.float32, layers=None, strength=0.1):
    """Layer -> (A, B) of every linear layer of a transformer, or of some."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer, (outputs, inputs) in linear_layers(config).items():
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, rank, generator=generator) * strength
        if layers is None or layer in layers:
            made[layer] = (down.to(dtype), up.to(dtype))
    return made


def tensors_of(made, dialect, alpha=None):
    """Keys in a dialect -> tensors; alpha is a number for all layers, or a function of a layer."""
    name = DIALECTS[dialect]
    tensors = {}
    for layer, (down, up) in made.items():
        tensors |= {name(layer, "down"): down, name(layer, "up"): up}
        if alpha is not None:
            tensors[name(layer, "alpha")] = torch.tensor(float(alpha(layer) if callable(alpha) else alpha))
    return tensors


def write(path: Path, tensors, metadata=None) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path
