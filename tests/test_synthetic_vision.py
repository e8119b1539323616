"""Synthetic vision towers: the published keys, the same every time, and every part of them matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from vision_tower import CONFIG, draw, write_tower

from parity.components.vision import vision_graph
from reference.synthetic_vision import tensors
from reference.vision_port import VisionSession

TINY = CONFIG | {"depth": 8, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "out_hidden_size": 256}
TINY["fullatt_block_indexes"] = [3, 7]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Every checkpoint of the tiny tower on a picture that it was not fitted on."""
    root = write_tower(tmp_path_factory.mktemp("pipeline") / "model", **TINY)
    session = VisionSession(root, torch.device("cpu"), torch.float32, torch.float32)
    state, found = {"image.00": draw("ragged", seed=9)[0]}, {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, vision_graph(8, (3, 7)).expected)
        session.free(stage)
        found |= values
    return found


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


@pytest.mark.parametrize("change", [{}, {"depth": 1, "patch_size": 8, "window_size": 64, "out_hidden_size": 24}])
def test_keys_shapes_and_dtype_are_the_published_ones(change):
    with torch.device("meta"):
        model = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**TINY | change))
    wanted = {f"visual.{key}": tuple(value.shape) for key, value in model.state_dict().items()}
    made = dict(tensors(TINY | change, seed=0))
    assert {key: tuple(tensor.shape) for key, tensor in made.items()} == wanted
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in made.values())


def test_the_seed_decides():
    first, again, other = (dict(tensors(TINY, seed)) for seed in (0, 0, 1))
    for key in first:
        assert torch.equal(first[key], again[key]), key
        assert not torch.equal(first[key], other[key]), key


def test_the_residual_grows_slowly_and_both_halves_add_to_it(recorded):
    for index in range(8):
        here = f"vision.block.{index:02d}"
        assert 0.5 < rms(recorded[f"{here}.out"]) < 4, index
        assert 0.3 < rms(recorded[f"{here}.attn"]) < 1, index
        assert 0.3 < rms(recorded[f"{here}.ffn"]) < 1, index


def test_tokens_stay_apart(recorded):
    """GIVEN any block, THEN most of what a token is, it does not share with all others."""
    for index in range(8):
        out = recorded[f"vision.block.{index:02d}.out"]
        assert rms(out - out.mean(axis=0)) > 0.5 * rms(out), index


def test_tokens_tell_more_than_a_patchs_mean_colour(recorded):
    """GIVEN three colours, THEN three directions of the patch embedding do not hold nearly all of it."""
    energy = np.linalg.svd(recorded["vision.patch_embed"], compute_uv=False) ** 2
    assert energy[3:].sum() > 0.3 * energy.sum()


def test_attention_is_neither_uniform_nor_a_choice_of_one(recorded):
    for index in range(8):
        q, k = (recorded[f"vision.block.{index:02d}.{name}"].swapaxes(0, 1) for name in "qk")
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        seen = np.exp(-(weights * np.log(weights + 1e-30)).sum(-1)).mean(-1)
        assert seen.min() > 2, index
        assert seen.min() < 0.2 * weights.shape[-1] < seen.max(), index


def test_features_are_as_large_as_token_embeddings(recorded):
    assert 0.7 < rms(recorded["vision.merger"]) < 1.4


def test_parts_come_in_the_order_of_the_model():
    """So that a writer of shards holds one block at a time."""
    keys = [key for key, _ in tensors(TINY, seed=0)]
    blocks = [key.split(".")[2] for key in keys if key.startswith("visual.blocks.")]
    assert blocks == sorted(blocks)
    assert keys[0] == "visual.patch_embed.proj.weight"
    assert keys[-1].startswith("visual.merger.")
