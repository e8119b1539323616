"""The config files of the published Qwen-Image are read by every component, and cases fit them at full size."""

# isort: off
import mlx_impl  # noqa: F401 - first, since it puts the BLAS in place
# isort: on

import pytest

from mlx_impl.scheduler import SchedulerConfig
from mlx_impl.text_config import TextEncoderConfig
from mlx_impl.transformer import TransformerConfig
from mlx_impl.vae import VaeConfig
from mlx_impl.vision import VisionConfig
from parity import suite
from parity.components import build_graph

VISION = {
    "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280, "in_channels": 3,
    "in_chans": 3, "initializer_range": 0.02, "intermediate_size": 3420, "model_type": "qwen2_5_vl", "num_heads": 16,
    "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
    "temporal_patch_size": 2, "tokens_per_second": 2, "torch_dtype": "float32", "window_size": 112,
}  # fmt: skip
LANGUAGE = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000,
    "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip
FLAT = LANGUAGE | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": 151655, "transformers_version": "4.53.1",
    "video_token_id": 151656, "vision_config": VISION, "vision_end_token_id": 151653, "vision_start_token_id": 151652,
    "vision_token_id": 151654,
}  # fmt: skip
MIXED = FLAT | {"text_config": LANGUAGE | {"layer_types": ["full_attention"] * 28, "sliding_window": None}}
CONFIGS = {
    "transformer": {
        "_class_name": "QwenImageTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": False, "in_channels": 64, "joint_attention_dim": 3584, "num_attention_heads": 24,
        "num_layers": 60, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 768,
    },
    "vae": {
        "_class_name": "AutoencoderKLQwenImage", "attn_scales": [], "base_dim": 96, "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16, "num_res_blocks": 2,
        "temperal_downsample": [False, True, True], "z_dim": 16,
    },
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
        "invert_sigmas": False, "max_image_seq_len": 8192, "max_shift": 0.9, "num_train_timesteps": 1000,
        "shift": 1.0, "shift_terminal": 0.02, "stochastic_sampling": False, "time_shift_type": "exponential",
        "use_beta_sigmas": False, "use_dynamic_shifting": True, "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    },
    "tokenizer": {}, "processor": {},
}  # fmt: skip


@pytest.mark.parametrize("text_encoder", [FLAT, MIXED])
def test_published_configs_are_read(text_encoder):
    language = TextEncoderConfig.from_dict(text_encoder)
    assert (language.hidden_size, language.num_hidden_layers, language.num_key_value_heads) == (3584, 28, 4)
    assert VisionConfig.from_dict(text_encoder["vision_config"]).depth == 32
    assert TransformerConfig.from_dict(CONFIGS["transformer"]).width == 3072
    assert VaeConfig.from_dict(CONFIGS["vae"]).base_dim == 96
    assert SchedulerConfig.from_dict(CONFIGS["scheduler"]).shift_terminal == 0.02


@pytest.mark.parametrize("text_encoder", [FLAT, MIXED])
def test_every_case_fits_the_published_model(text_encoder):
    configs = CONFIGS | {"text_encoder": text_encoder}
    sizes = {}
    for planned in suite.load("all").cases:
        graph = build_graph(planned.case.graph(configs, "full"))
        assert graph.stages
        assert planned.case.inputs(configs, "bfloat16")
        sizes.setdefault(planned.case.component, len(graph.expected))
    assert {name: sizes[name] for name in ("transformer", "text", "vision", "vae")} == {
        "transformer": 1452, "text": 4 + 10 * 28 + 4, "vision": 8 + 9 * 32, "vae": 148,
    }  # fmt: skip
