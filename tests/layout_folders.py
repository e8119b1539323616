"""One small transformer written in every layout, its names spelled out here and not taken from the toolkit's rules."""

import json
import struct
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np

from parity.transformer_shape import CLASS_NAME, expected_tensors

CONFIG = {
    "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 192,
    "axes_dims_rope": [8, 28, 28], "in_channels": 64, "out_channels": 16,
}  # fmt: skip
MODULATION = ("img_mod", "txt_mod")
# mlx-gen's mixed 4 bits leave these as they are.
MIXED = ("img_in", "txt_in", "norm_out", "proj_out", "time_text_embed", "img_mod", "txt_mod")
_KINDS = {
    np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float64): "F64", np.dtype(np.int32): "I32", np.dtype(np.uint32): "U32", np.dtype(np.uint8): "U8",
}  # fmt: skip


def save(path: Path, arrays, metadata=None) -> Path:
    """A safetensors file."""
    header = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {"dtype": _KINDS[array.dtype], "shape": list(array.shape)}
        header[name]["data_offsets"] = [offset, offset := offset + array.nbytes]
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(a.tobytes() for a in arrays.values()))
    return path


def weights(config=None, seed=0):
    """Canonical name -> random bfloat16."""
    draw = np.random.default_rng(seed)
    shapes = expected_tensors(CONFIG | (config or {}))
    return {name: draw.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}


def write_config(folder: Path, config=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": CLASS_NAME} | CONFIG | (config or {})))


def mflux_name(name: str) -> str:
    for old, new in (
        ("attn.to_out.0.", "attn.attn_to_out.0."), ("_mod.1.", "_mod_linear."),
        ("_mlp.net.0.proj.", "_ff.mlp_in."), ("_mlp.net.2.", "_ff.mlp_out."),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name


def mlx_rs_name(name: str) -> str:
    return mflux_name(name).replace(".timestep_embedder.", ".")


def quantize(array, bits, group_size):
    """What mx.quantize makes of a bfloat16 matrix: words, scales, biases."""
    whole = mx.array(array.view(np.uint16)).view(mx.bfloat16)
    words, *affine = mx.quantize(whole, group_size=group_size, bits=bits)
    return np.array(words), *(np.array(a.view(mx.uint16)).view(ml_dtypes.bfloat16) for a in affine)


def packed(arrays, bits, group_size=64, keep=(), other=None):
    """Layers with bias quantized: name -> array, with scales and biases.

    Args:
        keep: parts of names that stay as they are.
        other: part of a name -> (bits, group size), where they differ.
    """
    out = {}
    for name, array in arrays.items():
        layer = name.removesuffix(".weight")
        if array.ndim != 2 or any(part in name for part in keep):
            out[name] = array
            continue
        how = next((how for part, how in (other or {}).items() if part in name), (bits, group_size))
        out[name], out[f"{layer}.scales"], out[f"{layer}.biases"] = quantize(array, *how)
    return out


def write_mflux(folder: Path, arrays, level, parts=2, index=True, rename=mflux_name, version="0.11.1") -> Path:
    """Numbered shards with their index and mflux's metadata."""
    metadata = {"quantization_level": str(level), "mflux_version": version}
    names, place = list(arrays), {}
    for part in range(parts):
        mine = {rename(name): arrays[name] for name in names[part * len(names) // parts :][: -(-len(names) // parts)]}
        mine = {name: array for name, array in mine.items() if name not in place}
        place |= dict.fromkeys(mine, f"{part}.safetensors")
        save(folder / f"{part}.safetensors", mine, metadata)
    if index:
        content = {"metadata": metadata, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def write_mlx_rs(folder: Path, arrays) -> Path:
    """One file; parameters of quantized layers below ``inner``, but for scales and biases."""
    layers = {name.removesuffix(".scales") for name in arrays if name.endswith(".scales")}

    def rename(name):
        layer, _, leaf = mlx_rs_name(name).rpartition(".")
        inner = name.rpartition(".")[0] in layers and leaf in ("weight", "bias")
        return f"{layer}.inner.{leaf}" if inner else f"{layer}.{leaf}"

    save(folder / "model.safetensors", {rename(name): array for name, array in arrays.items()})
    return folder


def write_single(path: Path, arrays, prefix="model.diffusion_model.", mark=False) -> Path:
    """One file with a prefix; `mark` adds that of Qwen-Image-Edit-2511."""
    out = {prefix + name: array for name, array in arrays.items()}
    if mark:
        out[f"{prefix}__index_timestep_zero__"] = np.zeros(0, np.float32)
    return save(path, out)


def write_diffusers(folder: Path, arrays, config=None, parts=3) -> Path:
    """Shards with their index, and the config."""
    write_config(folder, config)
    names, place = list(arrays), {}
    for part in range(parts):
        mine = {name: arrays[name] for name in names[part::parts]}
        file = f"diffusion_pytorch_model-{part + 1:05d}-of-{parts:05d}.safetensors"
        place |= dict.fromkeys(mine, file)
        save(folder / file, mine, {"format": "pt"})
    index = {"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": place}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_every(root: Path, config=None, seed=0):
    """Layout and variant -> (path, what is expected of `locate`: layout, and (bits, group) -> layers)."""
    arrays = weights(config, seed)
    four, mod8 = packed(arrays, 4), packed(arrays, 4, other=dict.fromkeys(MODULATION, (8, 64)))
    mixed = packed(arrays, 4, keep=MIXED)
    layers, mod = 5 + 1 + 28, 4
    return {
        "diffusers": (write_diffusers(root / "diffusers", arrays, config), "diffusers", {}),
        "mflux": (write_mflux(root / "mflux", arrays, None), "mflux", {}),
        "mflux-4bit": (write_mflux(root / "mflux4", four, 4), "mflux", {(4, 64): layers}),
        "mflux-8bit-32": (
            write_mflux(root / "mflux8", packed(arrays, 8, 32), 8), "mflux", {(8, 32): layers}
        ),
        "mflux-new": (write_mflux(root / "mod8", mod8, 4), "mflux", {(4, 64): layers - mod, (8, 64): mod}),
        "mlx-gen-mixed": (write_mflux(root / "mixed", mixed, 4), "mflux", {(4, 64): 24}),
        "mlx-rs": (write_mlx_rs(root / "rs", four), "mlx-rs", {(4, 64): layers}),
        "single": (write_single(root / "one.safetensors", arrays), "single", {}),
        "single-transformer": (write_single(root / "two.safetensors", arrays, "transformer."), "single", {}),
        "single-bare": (write_single(root / "bare.safetensors", arrays, ""), "single", {}),
    }  # fmt: skip
