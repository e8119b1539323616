"""Synthetic text encoders: loaded by transformers and diffusers, templates of the right length, sane activations."""

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from safetensors import safe_open
from safetensors.torch import load_file
from text_model import write_model
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from reference import synthetic_text
from reference.synthetic_tokenizer import SPECIAL, train
from reference.text import PictureProcessor

PROMPTS = ("A lighthouse in the fog, film grain", "x", "换成雪景，保持人物不变。" * 9)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    synthetic_text.write(folder, **synthetic_text.TINY, seed=0)
    return folder


@pytest.fixture(scope="module")
def model(tiny):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tiny / "text_encoder", dtype=torch.float32, attn_implementation="eager"
    )


def test_transformers_loads_it_without_a_word(tiny, caplog, request):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    request.addfinalizer(lambda: logger.removeHandler(caplog.handler))
    _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny / "text_encoder", output_loading_info=True)
    assert not any(info.values()), info
    assert [record.message for record in caplog.records] == []
    stored = set()
    shards = sorted((tiny / "text_encoder").glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert shard.stat().st_mode & 0o044
        with safe_open(shard, "pt") as opened:
            keys = list(opened.keys())
            assert {opened.get_slice(key).get_dtype() for key in keys} == {"BF16"}
            stored.update(keys)
    index = json.loads((tiny / "text_encoder" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == stored
    assert {key.partition(".")[0] for key in stored} == {"model", "visual", "lm_head"}


def test_the_config_fits_the_transformer_and_the_tokenizer(tiny):
    config = AutoConfig.from_pretrained(tiny / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    assert type(config).__name__ == "Qwen2_5_VLConfig"
    assert config.text_config.hidden_size == config.vision_config.out_hidden_size == 256
    assert config.text_config.vocab_size >= len(tokenizer)
    assert config.text_config.bos_token_id == tokenizer.pad_token_id
    assert config.text_config.eos_token_id == tokenizer.eos_token_id
    assert config.vision_config.fullatt_block_indexes == [3, 7]
    assert config.dtype == config.text_config.dtype == torch.bfloat16
    for name, token in (("image", "<|image_pad|>"), ("video", "<|video_pad|>"),
                        ("vision_start", "<|vision_start|>"), ("vision_end", "<|vision_end|>")):  # fmt: skip
        assert getattr(config, f"{name}_token_id") == tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("cls", [QwenImagePipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline])
def test_prefixes_of_the_templates_are_as_long_as_the_pipelines_drop(tiny, cls):
    """Word by word, as in the published vocabulary: one token for each word, sign and special token."""
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny / "tokenizer")
    pipeline = cls(*[None] * (5 if cls is QwenImagePipeline else 6))
    prefix, _, behind = pipeline.prompt_template_encode.partition("<|im_start|>user\n")
    ids = tokenizer(f"{prefix}<|im_start|>user\n").input_ids
    assert len(ids) == pipeline.prompt_template_encode_start_idx
    assert tokenizer.decode(ids) == f"{prefix}<|im_start|>user\n"
    longer = tokenizer(f"{prefix}<|im_start|>user\n{behind.format('A prompt')}").input_ids
    assert longer[: len(ids)] == ids


def test_the_tokenizer_is_complete_and_the_same_each_time(tiny):
    first, second = train(), train()
    assert first.get_vocab() == second.get_vocab()
    loaded = Qwen2Tokenizer.from_pretrained(tiny / "tokenizer")
    of_processor = AutoTokenizer.from_pretrained(tiny / "processor")
    text = "e\u0301 Ａ 猫 \x00 <|im_start|> don't 1234  \n\n" + "".join(map(chr, range(0x20, 0x250)))
    for one in (first, loaded, of_processor):
        assert one(text).input_ids == second(text).input_ids
        assert one.padding_side == "right"
        assert one.pad_token == "<|endoftext|>"
    for token in SPECIAL:
        assert len(loaded(token).input_ids) == 1, token
    # Every byte has a token, so that any text comes back.
    everything = "".join(map(chr, [*range(0x20, 0xD800, 7), *range(0xE000, 0x10FFFF, 999)]))
    normal = loaded.backend_tokenizer.normalizer.normalize_str(everything)
    assert loaded.decode(loaded(everything).input_ids) == normal


def test_the_processor_loads_and_expands_pictures(tiny):
    processor = PictureProcessor.from_pretrained(tiny / "processor")
    assert type(AutoImageProcessor.from_pretrained(tiny / "processor")) is type(processor.image_processor)
    picture = np.zeros((112, 168, 3), np.uint8)
    found = processor(text=["a <|image_pad|> b"], images=[picture], return_tensors="pt")
    assert found["image_grid_thw"].tolist() == [[1, 8, 12]]
    assert (found["input_ids"] == processor.image_token_id).sum() == 24
    for name in ("preprocessor_config", "video_preprocessor_config"):
        settings = json.loads((tiny / "processor" / f"{name}.json").read_text())
        assert (settings["patch_size"], settings["merge_size"], settings["temporal_patch_size"]) == (14, 2, 2)


def encoded(tiny, model):
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny / "tokenizer")
    pipeline = QwenImagePipeline(None, None, model, tokenizer, None)
    with torch.no_grad():
        embeds, mask = pipeline.encode_prompt(list(PROMPTS), device="cpu")
        tokens = tokenizer(
            [pipeline.prompt_template_encode.format(p) for p in PROMPTS], padding=True, return_tensors="pt"
        )
        inside = model(**tokens, output_hidden_states=True, output_attentions=True)
    return embeds[mask.bool()], tokens["attention_mask"].bool(), inside


def test_embeddings_have_the_size_that_the_transformer_is_made_for(tiny, model):
    embeds, counts, inside = encoded(tiny, model)
    assert 0.9 < embeds.square().mean().sqrt() < 1.1
    assert embeds.abs().max() < 10
    rms = [state[counts].square().mean().sqrt().item() for state in inside.hidden_states]
    assert 0.9 < rms[0] < 1.1
    assert all(0.5 < size < 3 for size in rms)


def test_tokens_stay_apart_and_attention_is_neither_flat_nor_blind(tiny, model):
    embeds, counts, inside = encoded(tiny, model)
    alike = torch.nn.functional.cosine_similarity(embeds[:, None], embeds[None], dim=-1)
    assert alike.fill_diagonal_(0).abs().mean() < 0.4
    last = [int(row.nonzero().max()) for row in counts]
    for attention in inside.attentions:
        for row, at in enumerate(last):
            weights = attention[row, :, at, : at + 1].double()
            entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1) / np.log(at + 1)
            assert entropy.min() > 0.2
            assert entropy.max() < 0.95


def test_position_matters(tiny, model):
    """GIVEN the same words in another order, THEN the embedding of the last token is another."""
    embeds = []
    tokenizer = Qwen2Tokenizer.from_pretrained(tiny / "tokenizer")
    for prompt in ("red fox blue boat", "blue fox red boat"):
        pipeline = QwenImagePipeline(None, None, model, tokenizer, None)
        with torch.no_grad():
            embeds.append(pipeline.encode_prompt(prompt, device="cpu")[0][0, -1])
    assert (embeds[0] - embeds[1]).square().mean().sqrt() > 0.05


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_model(tmp_path / name, seed)
        shards = sorted((tmp_path / name / "text_encoder").glob("*.safetensors"))
        found.append({key: tensor for shard in shards for key, tensor in load_file(shard).items()})
    assert found[0].keys() == found[2].keys()
    for key, tensor in found[0].items():
        assert torch.equal(tensor, found[1][key]), key
        assert not torch.equal(tensor, found[2][key]), key


@pytest.mark.slow
def test_the_real_width_is_fitted_as_well(tmp_path):
    synthetic_text.write(tmp_path, **synthetic_text.WIDE | {"layers": 1, "intermediate": 2048}, seed=0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "text_encoder", dtype=torch.float32, attn_implementation="eager"
    )
    embeds, _, _ = encoded(tmp_path, model)
    assert embeds.shape[1] == 3584
    assert 0.9 < embeds.square().mean().sqrt() < 1.1
