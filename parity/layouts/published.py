"""Configurations of the published Qwen-Image, for layouts that store none: used only where every shape agrees."""

from __future__ import annotations

from typing import Any

_LANGUAGE: dict[str, Any] = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000,
    "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6, "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False, "use_cache": True,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280, "in_channels": 3,
    "in_chans": 3, "initializer_range": 0.02, "intermediate_size": 3420, "model_type": "qwen2_5_vl", "num_heads": 16,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
    "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "vae": {
        "_class_name": "AutoencoderKLQwenImage", "attn_scales": [], "base_dim": 96, "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0, "num_res_blocks": 2, "temperal_downsample": [False, True, True], "z_dim": 16,
        "latents_mean": [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
            -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        "latents_std": [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
            1.1253, 2.8251, 1.916,
        ],
    },
    "text_encoder": _LANGUAGE | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen2_5_vl",
        "video_token_id": 151656, "vision_config": _VISION, "vision_end_token_id": 151653,
        "vision_start_token_id": 151652, "vision_token_id": 151654, "dtype": "bfloat16",
    },
}  # fmt: skip
