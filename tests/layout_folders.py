"""One small transformer written in every layout, its names spelled out here and not taken from the toolkit's rules."""

import json
import struct
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np

from parity.text_shape import expected_text_tensors
from parity.transformer_shape import CLASS_NAME, expected_tensors
from parity.vae_shape import expected_vae_tensors

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


def save_sparse(path: Path, arrays, words=()) -> Path:
    """A file of the right header and size whose values, all zero, take no room on the disk; uint32 where named."""
    header, offset = {}, 0
    for name, array in arrays.items():
        dtype, size = ("U32", 4) if name in words else ("BF16", 2)
        header[name] = {"dtype": dtype, "shape": list(array.shape)}
        header[name]["data_offsets"] = [offset, offset := offset + size * array.size]
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + offset)
    return path


def weights(config=None, seed=0):
    """Canonical name -> random bfloat16."""
    return random_arrays(expected_tensors(CONFIG | (config or {})), seed)


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
    four, mod8 = packed(arrays, 4), packed(arrays, 4, other={"img_mod": (8, 64)})
    mixed = packed(arrays, 4, keep=MIXED)
    layers, mod = 5 + 1 + 28, CONFIG["num_layers"]
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


VAE_CONFIG = {
    "_class_name": "AutoencoderKLQwenImage", "base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0, "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}  # fmt: skip
TEXT_CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 64,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "vocab_size": 96, "tie_word_embeddings": False, "vision_config": {
        "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "in_channels": 3, "patch_size": 4,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64,
    },
}  # fmt: skip


def random_arrays(shapes, seed=0):
    """Name -> random bfloat16."""
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}


def mflux_vae(arrays):
    """A VAE with MLX's names and axes: channels last in convolutions, gammas as vectors."""
    out = {}
    for name, array in arrays.items():
        parts = name.split(".")
        if parts[1] == "down_blocks":
            stage, block = divmod(int(parts[2]), 3)
            parts[2:3] = [str(stage), *(["downsamplers", "0"] if block == 2 else ["resnets", str(block)])]
        if parts[1] == "up_blocks":
            parts[1:3] = [f"up_block{parts[2]}"]
        name = ".".join(parts).replace("conv_shortcut", "skip_conv").replace("resample.1", "resample_conv")
        layer, leaf = name.rsplit(".", 1)
        last = layer.rpartition(".")[2]
        if leaf == "gamma":
            leaf, array = "weight", array.reshape(-1)
        elif last not in ("resample_conv", "to_qkv", "proj"):
            layer += ".conv3d"
        out[f"{layer}.{leaf}"] = np.moveaxis(array, 1, -1) if array.ndim >= 4 else array
    return out


def mflux_text(arrays, vision=True):
    """A text encoder with MLX's names, the tables mflux saves with it, and no output layer."""
    out = {"encoder.rotary_emb.inv_freq": np.ones(8, np.float32)}
    for name, array in arrays.items():
        if name.startswith("lm_head") or (not vision and name.startswith("visual.")):
            continue
        name = name.replace("merger.mlp.0.", "merger.mlp_0.").replace("merger.mlp.2.", "merger.mlp_1.")
        name = f"encoder.{name}" if name.startswith("visual.") else name.replace("model.", "encoder.", 1)
        out[name] = np.moveaxis(array, 1, -1) if array.ndim == 5 else array
    return out


def write_model(root: Path, transformer, vae=None, text=None) -> Path:
    """A whole model in the diffusers layout."""
    write_diffusers(root / "transformer", transformer)
    vae = random_arrays(expected_vae_tensors(VAE_CONFIG), 1) if vae is None else vae
    text = random_arrays(expected_text_tensors(TEXT_CONFIG), 2) if text is None else text
    save(root / "vae" / "diffusion_pytorch_model.safetensors", vae, {"format": "pt"})
    save(root / "text_encoder" / "model.safetensors", text, {"format": "pt"})
    (root / "vae" / "config.json").write_text(json.dumps(VAE_CONFIG))
    (root / "text_encoder" / "config.json").write_text(json.dumps(TEXT_CONFIG))
    for file, content in (
        ("scheduler/scheduler_config.json", {"shift": 1.0}), ("tokenizer/tokenizer_config.json", {}),
        ("tokenizer/vocab.json", {"a": 0}), ("model_index.json", {"_class_name": "QwenImagePipeline"}),
    ):  # fmt: skip
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(json.dumps(content))
    return root
