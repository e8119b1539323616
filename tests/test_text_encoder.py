"""The MLX text encoder against transformers' model: configs, keys, forward passes, loading, streaming."""

from __future__ import annotations

# isort: off
import mlx_impl  # noqa: F401  first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import json
import shutil

import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import load_file
from text_model import SHAPE, rewritten, write_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mlx_impl import ops
from mlx_impl.mrope import grid_positions, rotate, sequence_positions
from mlx_impl.text_config import TextEncoderConfig
from mlx_impl.text_encoder import StreamedTextEncoder, TextCheckpoint, load_text_encoder
from parity.errors import WeightsError

# As published with Qwen-Image: every key of the language model twice, inside and outside.
PUBLISHED = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584, "image_token_id": 151655,
    "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 128000,
    "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28, "num_hidden_layers": 28,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.53.1", "use_cache": True, "use_sliding_window": False, "video_token_id": 151656,
    "vision_config": {"spatial_merge_size": 2, "patch_size": 14, "model_type": "qwen2_5_vl", "depth": 32},
    "vision_end_token_id": 151653, "vision_start_token_id": 151652, "vision_token_id": 151654, "vocab_size": 152064,
}  # fmt: skip
_OUTSIDE = ("vision_config", "architectures", "image_token_id", "video_token_id", "model_type", "transformers_version")
INNER = {key: value for key, value in PUBLISHED.items() if key not in _OUTSIDE} | {
    "layer_types": ["full_attention"] * 28, "model_type": "qwen2_5_vl_text", "image_token_id": None,
    "sliding_window": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("model"))
    assert len(list((path / "text_encoder").glob("*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def inputs(theirs, *, padding="right", pictures=True):
    """ids, mask and positions of two prompts, and features for the picture in the first."""
    config, rng = theirs.config, np.random.default_rng(0)
    ids = rng.integers(0, 1000, (2, 23))
    mask = np.arange(23)[None] < np.array([[23], [15]])
    if padding == "left":
        mask = mask[:, ::-1].copy()
    features = None
    if pictures:
        ids[0, 5:11] = config.image_token_id
        features = rng.standard_normal((6, SHAPE["width"])).astype(np.float32)
    grids = [(1, 4, 6)] if pictures else []
    positions = grid_positions(ids, mask, grids, config.image_token_id, 2)
    return ids, mask, positions, features


def expected_of(theirs, ids, mask, positions, features):
    language = theirs.model.language_model
    embeds = language.embed_tokens(torch.from_numpy(ids))
    if features is not None:
        embeds[torch.from_numpy(ids == theirs.config.image_token_id)] = torch.from_numpy(features).to(embeds.dtype)
    with torch.no_grad():
        return language(
            inputs_embeds=embeds, attention_mask=torch.from_numpy(mask).long(),
            position_ids=torch.from_numpy(positions).swapaxes(0, 1),
        ).last_hidden_state.float().numpy()  # fmt: skip


def distance(found, expected, mask):
    found, expected = np.array(found.astype(mx.float32))[mask], expected[mask]
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("pictures", [False, True])
def test_hidden_states_equal_transformers(folder, theirs, padding, pictures):
    ids, mask, positions, features = given = inputs(theirs, padding=padding, pictures=pictures)
    expected = expected_of(theirs, *given)
    ours = load_text_encoder(folder, "float32")
    features = features if features is None else mx.array(features)
    assert distance(ours(ids, mask, positions, features), expected, mask) < 2e-6
    assert distance(ours(ids, mask, sequence_positions(mask), features), expected, mask) > (0.01 if pictures else 0)


def test_the_hidden_state_is_the_one_behind_the_final_norm(folder, theirs):
    ids, mask, _, _ = inputs(theirs, pictures=False)
    with torch.no_grad():
        states = theirs(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long(), output_hidden_states=True
        ).hidden_states
    ours = load_text_encoder(folder, "float32")(ids, mask, sequence_positions(mask))
    assert len(states) == SHAPE["layers"] + 1
    assert distance(ours, states[-1].numpy(), mask) < 2e-6
    assert distance(ours, states[-2].numpy(), mask) > 0.1


def test_bfloat16_rounds_where_transformers_does(folder, theirs):
    """Every rounding in its place: as near to bfloat16 transformers as bfloat16 is to float32, or nearer."""
    ids, mask, positions, features = given = inputs(theirs)
    exact = expected_of(theirs, *given)
    half = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.bfloat16)
    rounded = expected_of(half, *given)
    ours = load_text_encoder(folder, "bfloat16")(ids, mask, positions, mx.array(features))
    assert ours.dtype == mx.bfloat16
    floor = np.sqrt(np.mean((rounded - exact)[mask] ** 2) / np.mean(exact[mask] ** 2))
    assert 0.5 * floor < distance(ours, exact, mask) < 1.3 * floor


def test_padding_changes_nothing(folder, theirs):
    """GIVEN a prompt alone and padded, WHEN other ids stand in the padding, THEN its rows are the same."""
    ids, mask, positions, _ = inputs(theirs, pictures=False)
    ours = load_text_encoder(folder, "float32")
    one, other = (np.array(ours(np.where(mask, ids, pad), mask, positions)) for pad in (3, 700))
    np.testing.assert_array_equal(one[mask], other[mask])
    alone = np.array(ours(ids[1:, :15], mask[1:, :15], positions[1:, :, :15]))
    np.testing.assert_allclose(one[1, :15], alone[0], atol=1e-5)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_the_kernels_for_gpus_equal_transformers_as_well(folder, theirs, padding, monkeypatch):
    """MLX's own kernels run on the CPU too; compiling them there would need a C++ compiler."""
    ids, mask, positions, features = given = inputs(theirs, padding=padding)
    ours = load_text_encoder(folder, "float32")
    monkeypatch.setattr(ops, "on_cpu", lambda: False)
    mx.disable_compile()
    try:
        found = ours(ids, mask, positions, mx.array(features))
    finally:
        mx.enable_compile()
    assert distance(found, expected_of(theirs, *given), mask) < 1e-5


def test_streamed_equals_whole(folder, theirs):
    ids, mask, positions, features = inputs(theirs)
    whole = load_text_encoder(folder, "float32")(ids, mask, positions, mx.array(features))
    streamed = StreamedTextEncoder(folder, "float32")(ids, mask, positions, mx.array(features))
    np.testing.assert_array_equal(np.array(whole), np.array(streamed))


def test_streamed_holds_one_layer_at_a_time(tmp_path, theirs):
    """GIVEN six layers of 8 MB, WHEN they are streamed, THEN the peak stays well below all of them."""
    write_model(tmp_path, layers=6, intermediate=5000)
    ids, mask, positions, _ = inputs(theirs, pictures=False)
    peaks = []
    for load in (StreamedTextEncoder, load_text_encoder):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(load(tmp_path, "float32")(ids, mask, positions))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[0] < 0.5 * peaks[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((5, 128), np.float32)}, "6 picture tokens"),
        ({"features": np.zeros((6, 64), np.float32)}, "of width 128"),
        ({"ids": np.full((2, 23), 10**6)}, "leave the vocabulary"),
        ({"ids": np.full((2, 23), -1)}, "leave the vocabulary"),
        ({"positions": np.zeros((2, 3, 22), np.int64)}, "rotary table"),
    ],
)
def test_misfit_inputs_are_errors(folder, theirs, change, message):
    given = dict(zip(("ids", "mask", "positions", "features"), inputs(theirs), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        load_text_encoder(folder, "float32")(
            given["ids"], given["mask"], given["positions"], mx.array(given["features"])
        )


def test_rotation_pairs_halves():
    x = mx.array(np.random.default_rng(0).standard_normal((1, 3, 2, 8)).astype(np.float32))
    quarter = mx.array(np.broadcast_to(np.array([0, 1], np.float32), (1, 3, 4, 2)))
    turned = np.array(rotate(x, quarter))
    np.testing.assert_array_equal(turned[..., :4], -np.array(x)[..., 4:])
    np.testing.assert_array_equal(turned[..., 4:], np.array(x)[..., :4])
    with pytest.raises(ValueError, match="rotary table"):
        rotate(x, quarter[:, :2])


@pytest.mark.parametrize(("grids", "message"), [([], "more pictures"), ([(1, 4, 4)], "6 tokens"),
                                                ([(1, 4, 6)] * 2, "1 grids more")])  # fmt: skip
def test_grids_that_do_not_fit_are_errors(theirs, grids, message):
    ids, mask, _, _ = inputs(theirs)
    with pytest.raises(ValueError, match=message):
        grid_positions(ids, mask, grids, theirs.config.image_token_id, 2)


def flat():
    return dict(PUBLISHED)


def both():
    return {**PUBLISHED, "text_config": dict(INNER)}


def nested():
    """As transformers 5 writes what it has read."""
    return json.loads(Qwen2_5_VLConfig.from_dict(both()).to_json_string(use_diff=False)) | {"architectures": None}


FORMS = {"flat": flat, "both": both, "nested": nested}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_the_config_is_read_as_transformers_reads_it(form):
    config = FORMS[form]()
    if form == "nested":
        config = {k: v for k, v in config.items() if k in ("text_config", "vision_config", *_OUTSIDE)}
        known = set(INNER) | {"rope_parameters", "dtype"}
        config["text_config"] = {k: v for k, v in config["text_config"].items() if k in known}
        assert "rope_theta" not in config["text_config"]
    ours, theirs = TextEncoderConfig.from_dict(config), Qwen2_5_VLConfig.from_dict(config)
    rope = theirs.text_config.rope_parameters
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs.text_config, name), name
    assert (ours.rope_theta, ours.mrope_section) == (rope["rope_theta"], tuple(rope["mrope_section"]))
    assert (ours.image_token_id, ours.video_token_id) == (theirs.image_token_id, theirs.video_token_id)
    assert ours.spatial_merge_size == theirs.vision_config.spatial_merge_size
    assert ours.rope_theta == 1e6


@pytest.mark.parametrize("where", ["rope_theta", "rope_parameters", "rope_scaling"])
def test_theta_is_found_where_it_is_written(where):
    config = {key: value for key, value in PUBLISHED.items() if not key.startswith("rope")}
    config |= {where: 5e5 if where == "rope_theta" else {"rope_type": "default", "rope_theta": 5e5}}
    theirs = Qwen2_5_VLConfig.from_dict(dict(config)).text_config.rope_parameters["rope_theta"]
    assert TextEncoderConfig.from_dict(config).rope_theta == theirs == 5e5


def test_a_written_config_is_read(folder):
    config = TextEncoderConfig.from_folder(folder / "text_encoder")
    assert (config.hidden_size, config.mrope_section, config.rms_norm_eps) == (128, (4, 6, 6), 1e-6)


def test_the_inner_config_counts_where_there_are_two():
    config = both()
    config["num_hidden_layers"] = 5
    assert TextEncoderConfig.from_dict(config).num_hidden_layers == 28
    assert Qwen2_5_VLConfig.from_dict(config).text_config.num_hidden_layers == 28


def test_defaults_are_those_of_transformers():
    ours, theirs = TextEncoderConfig.from_dict({}), Qwen2_5_VLConfig()
    rope = theirs.text_config.rope_parameters
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs.text_config, name), name
    assert ours.rope_theta == rope["rope_theta"]
    assert (ours.image_token_id, ours.video_token_id) == (theirs.image_token_id, theirs.video_token_id)
    assert ours.spatial_merge_size == theirs.vision_config.spatial_merge_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 4}, "num_experts"),
        ({"head_dim": 64}, "head_dim"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "mrope_section": [16, 24, 24]}}, "linear"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 20]}}, "half the head width 128"),
        ({"num_key_value_heads": 5}, "must divide"),
    ],
)
@pytest.mark.parametrize("form", ["flat", "both"])
def test_what_would_be_computed_otherwise_is_an_error(form, change, message):
    config = FORMS[form]()
    (config if form == "flat" else config["text_config"]).update(change)
    with pytest.raises(ValueError, match=message):
        TextEncoderConfig.from_dict(config)


def test_an_unknown_key_outside_of_the_inner_config_is_an_error_too():
    with pytest.raises(ValueError, match="audio_config"):
        TextEncoderConfig.from_dict(both() | {"audio_config": {}})


def newer(tensors):
    """Names as the modules of transformers 5 have them."""
    renamed = {}
    for key, tensor in tensors.items():
        key = key.replace("model.", "model.language_model.", 1) if key.startswith("model.") else key
        renamed[f"model.{key}" if key.startswith("visual.") else key] = tensor
    return renamed


def test_keys_as_newer_transformers_has_them(folder, tmp_path, theirs):
    ids, mask, positions, features = inputs(theirs)
    path = rewritten(folder, tmp_path, newer)
    assert set(load_file(path / "text_encoder" / "model.safetensors")) == set(theirs.state_dict())
    found, expected = (
        load_text_encoder(f, "float32")(ids, mask, positions, mx.array(features)) for f in (path, folder)
    )
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_save_pretrained_writes_the_published_names(folder):
    keys = TextCheckpoint(folder).keys
    assert "model.layers.0.self_attn.q_proj.bias" in keys
    assert "visual.patch_embed.proj.weight" in keys


def test_parameters_are_those_of_the_checkpoint(folder):
    ours = dict(tree_flatten(load_text_encoder(folder, "bfloat16").parameters()))
    theirs = [key for key in TextCheckpoint(folder).keys if key.startswith("model.")]
    assert {f"model.{key}" for key in ours} == set(theirs)
    assert {value.dtype for value in ours.values()} == {mx.bfloat16}


@pytest.mark.parametrize("fault", ["missing", "extra", "layer", "misshaped", "stranger", "prefix", "config", "nothing"])
def test_damaged_checkpoints_are_errors_that_name_the_fault(folder, tmp_path, fault):
    name = "model.layers.1.mlp.up_proj.weight"

    def damage(tensors):
        if fault in ("missing", "prefix"):
            return {
                k: v for k, v in tensors.items() if k != (name if fault == "missing" else "model.embed_tokens.weight")
            }
        added = {
            "extra": {name.replace("weight", "bias"): torch.zeros(3)}, "misshaped": {name: torch.zeros(3, 3)},
            "layer": {"model.layers.2.mlp.up_proj.weight": torch.zeros(3)}, "stranger": {"model.bias": torch.zeros(3)},
        }  # fmt: skip
        return tensors | added.get(fault, {})

    path = rewritten(folder, tmp_path, damage)
    error, message = ValueError, r"layers\.1.*up_proj"
    if fault == "misshaped":
        error = WeightsError
    elif fault == "layer":
        message = r"model\.layers\.2"
    elif fault == "stranger":
        message = r"model\.bias"
    elif fault == "prefix":
        message = r"model\.embed_tokens: Missing 1 parameters: weight"
    elif fault == "config":
        message = r"config\.json: config has unknown keys text_config\.experts"
        config = json.loads((path / "text_encoder" / "config.json").read_text())
        config["text_config"]["experts"] = 3
        (path / "text_encoder" / "config.json").write_text(json.dumps(config))
    elif fault == "nothing":
        error, message = WeightsError, "config.json"
        shutil.rmtree(path / "text_encoder")
    with pytest.raises(error, match=message):
        load_text_encoder(path, "float32")


def test_an_unknown_dtype_is_an_error(folder):
    with pytest.raises(ValueError, match="float64"):
        load_text_encoder(folder, "float64")
