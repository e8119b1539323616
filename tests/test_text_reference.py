"""The instrumented text encoder is diffusers' pipelines and transformers' model: bit-equal, every name, every stage."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from PIL import Image
from text_model import write_model
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from parity.components.text import POSITIONS, TEMPLATES, text_graph
from parity.tap import Recorder, recording
from reference.port import ReferencePort
from reference.text import PictureProcessor, instrument
from reference.weights import Shards

PROMPTS = ("A red fox sits in fresh snow.", "", "一只橘色的猫")
GRAPH = text_graph(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((112, 168), (84, 56))]


def pipeline(cls, folder, model):
    """One of diffusers' pipelines with the parts that prompts need."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    if cls is QwenImagePipeline:
        return cls(None, None, model, tokenizer, None)
    return cls(None, None, model, tokenizer, PictureProcessor.from_pretrained(folder / "processor"), None)


def start(model, folder, prompts, template, images=(), **more):
    """A state before the first stage, picture features from transformers' own tower."""
    state = {f"prompt.{i:02d}": np.frombuffer(prompt.encode(), np.uint8) for i, prompt in enumerate(prompts)}
    state["template"] = np.array(TEMPLATES.index(template))
    if images:
        processor = PictureProcessor.from_pretrained(folder / "processor")
        found = processor.image_processor(list(images), return_tensors="pt")
        with torch.no_grad():
            features = model.model.get_image_features(found["pixel_values"], found["image_grid_thw"]).pooler_output
        state |= {"image_grid_thw": found["image_grid_thw"].numpy(), "image_features": torch.cat(features).numpy()}
    return state | {key: np.array(value) for key, value in more.items()}


def staged(folder, state, dtype="float32", want=(), **options):
    session = ReferencePort("cpu").open(folder, dtype=dtype, component="text")
    found = {}
    for stage in session.stages:
        session.load(stage)
        state, values = session.run(stage, state, want, **options)
        session.free(stage)
        found |= values
    return state, found


def check(state, embeds, mask):
    np.testing.assert_array_equal(state["prompt_embeds"], embeds.numpy())
    assert ("prompt_mask" in state) == (mask is not None)
    if mask is not None:
        np.testing.assert_array_equal(state["prompt_mask"], mask.bool().numpy())


@pytest.mark.parametrize("longest", [1024, 3])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_stages_equal_the_pipeline_bit_for_bit(folder, model, prompts, longest):
    with torch.no_grad():
        expected = pipeline(QwenImagePipeline, folder, model).encode_prompt(
            list(prompts), device="cpu", max_sequence_length=longest
        )
    state, _ = staged(folder, start(model, folder, prompts, "image", max_sequence_length=longest))
    check(state, *expected)


def test_stages_equal_the_pipeline_with_padding_on_the_left(folder, model, tmp_path):
    """Only there can a token look at padding: behind a prompt the causal mask hides it."""
    for name in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    with torch.no_grad():
        expected = pipeline(QwenImagePipeline, tmp_path, model).encode_prompt(list(PROMPTS), device="cpu")
    state, found = staged(tmp_path, start(model, tmp_path, PROMPTS, "image"), want=["text.mask"])
    assert not found["text.mask"][:, 0].all()
    check(state, *expected)


@pytest.mark.parametrize(
    ("cls", "template", "prompts", "count"),
    [
        (QwenImageEditPipeline, "edit", ("Make the fox blue.",), 1),
        (QwenImageEditPipeline, "edit", ("Make the fox blue.", "Remove it"), 2),
        (QwenImageEditPlusPipeline, "edit_plus", ("Put picture 1 into picture 2.",), 2),
        (QwenImageEditPlusPipeline, "edit_plus", ("Paint a fox", "and a boat on the lake"), 0),
    ],
)
def test_stages_equal_the_editing_pipelines_bit_for_bit(folder, model, cls, template, prompts, count):
    images = pictures()[:count]
    with torch.no_grad():
        expected = pipeline(cls, folder, model).encode_prompt(list(prompts), images or None, device="cpu")
    state, _ = staged(folder, start(model, folder, prompts, template, images))
    check(state, *expected)


def test_telling_the_model_which_tokens_are_pictures_gives_the_positions_of_grids(folder, model):
    """The setting ``grid`` is what transformers computes when it is told, and not what diffusers has it compute."""
    images, prompt = pictures(), ["Put picture 1 into picture 2."]
    pipe = pipeline(QwenImageEditPlusPipeline, folder, model)
    given = {}
    hook = model.register_forward_pre_hook(lambda _m, _args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        untold = pipe.encode_prompt(prompt, images, device="cpu")[0]
        hook.remove()
        assert "mm_token_type_ids" not in given
        types = (given["input_ids"] == model.config.image_token_id).int()
        told = model(**given, mm_token_type_ids=types).hidden_states[-1][:, 64:]
    state, _ = staged(folder, start(model, folder, prompt, "edit_plus", images, positions=POSITIONS.index("grid")))
    model.model.rope_deltas = None
    np.testing.assert_array_equal(state["prompt_embeds"], told.numpy())
    assert np.abs(state["prompt_embeds"] - untold.numpy()).max() > 0.1


def test_recording_changes_nothing_and_finds_every_name(folder, model):
    start_state = start(model, folder, PROMPTS, "image")
    silent, none = staged(folder, start_state)
    observed, found = staged(folder, start_state, want=GRAPH.expected)
    assert none == {}
    assert set(found) == set(GRAPH.expected)
    np.testing.assert_array_equal(silent["prompt_embeds"], observed["prompt_embeds"])
    _, one = staged(folder, start_state, want=["text.layer.01.k"])
    assert {name: value.shape[2:] for name, value in one.items()} == {"text.layer.01.k": (2, 32)}


def test_hooks_on_the_library_s_model_change_nothing(folder):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    pipe = pipeline(QwenImagePipeline, folder, model)
    with torch.no_grad():
        plain, _ = pipe.encode_prompt(list(PROMPTS), device="cpu")
        model.set_attn_implementation({"text_config": "tapped_sdpa"})
        instrument(model.model.language_model)
        with recording(Recorder()) as recorder:
            tapped, _ = pipe.encode_prompt(list(PROMPTS), device="cpu")
    assert torch.equal(plain, tapped)
    in_layers = {name for name in GRAPH.expected if ".layer." in name} | {"text.norm"}
    assert set(recorder.values) == in_layers


def test_rows_of_padding_come_back_as_zeros_and_others_do_not(folder, model):
    state, found = staged(folder, start(model, folder, PROMPTS, "image"), want=GRAPH.expected)
    mask = found["text.mask"]
    assert not mask.all()
    for name, value in found.items():
        if name in ("text.mask", "text.prompt_embeds", "text.prompt_mask"):
            continue
        value = value.swapaxes(1, 2) if name == "text.position_ids" else value
        assert not value[~mask].any(), name
        assert value[mask].any(), name
    assert state["prompt_mask"].shape == state["prompt_embeds"].shape[:2]


def rms_norm(x, weight):
    return weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def independent(folder, ids, positions, mask, dtype):
    """The whole language model in numpy's float64, from the formulas: B N D behind the final norm, and the table."""
    weights = {k: v.to(dtype).double().numpy() for k, v in Shards(folder, "text_encoder").read("model.")}
    section, heads, shared, d = (4, 6, 6), 4, 2, 32
    frequency = 1e6 ** (-np.arange(0, d, 2) / d)
    axis = np.repeat([0, 1, 2], section)
    angle = positions[:, axis].swapaxes(1, 2) * frequency
    turn = np.exp(1j * angle)[:, :, None]
    length = ids.shape[1]
    seen = np.tri(length, dtype=bool) & mask[:, None, None, :]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def turned(x):
        x = x.reshape(*x.shape[:2], -1, d)
        y = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
        return np.concatenate([y.real, y.imag], axis=-1)

    x = weights["embed_tokens.weight"][ids]
    for i in range(2):
        h = rms_norm(x, weights[f"layers.{i}.input_layernorm.weight"])
        q, k = (turned(linear(h, f"layers.{i}.self_attn.{name}_proj")) for name in "qk")
        v = linear(h, f"layers.{i}.self_attn.v_proj").reshape(*h.shape[:2], -1, d)
        k, v = (np.repeat(y, shared, axis=2) for y in (k, v))
        scores = np.where(seen, np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(d), -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        joint = np.einsum("bhnm,bmhd->bnhd", weight, v).reshape(*h.shape[:2], heads * d)
        x = x + linear(joint, f"layers.{i}.self_attn.o_proj")
        h = rms_norm(x, weights[f"layers.{i}.post_attention_layernorm.weight"])
        gate = linear(h, f"layers.{i}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"layers.{i}.mlp.up_proj"), f"layers.{i}.mlp.down_proj")
    return rms_norm(x, weights["norm.weight"])


@pytest.mark.parametrize("hold", ["float32", "bfloat16"])
def test_the_truth_is_the_formulas_in_float64(folder, model, hold):
    """A float32 island anywhere, or a weight held otherwise, would show at 1e-7 and more."""
    session = ReferencePort("cpu").open(folder, dtype="float64", hold=hold, component="text")
    state = start(model, folder, PROMPTS, "image")
    for stage in session.stages:
        session.load(stage)
        after, found = session.run(stage, state, ["text.norm"])
        if stage != "text.norm":
            state = after
    mask = state["mask"]
    expected = independent(folder, state["ids"], state["position_ids"], mask, getattr(torch, hold))
    error = np.abs(found["text.norm"] - expected)[mask].max()
    assert found["text.norm"].dtype == np.float64
    assert error < 1e-12
    assert after["prompt_embeds"].dtype == np.float64


@pytest.mark.parametrize("precision", ["default", "math"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_modes_stay_near_the_plain_pipeline(folder, dtype, precision):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype))
    with torch.no_grad():
        native, _ = pipeline(QwenImagePipeline, folder, model).encode_prompt(list(PROMPTS), device="cpu")
    state, _ = staged(folder, start(model, folder, PROMPTS, "image"), dtype, precision=precision)
    found, native = state["prompt_embeds"].astype(np.float64), native.double().numpy()
    error = np.sqrt(np.mean((found - native) ** 2) / np.mean(native**2))
    assert error < (3e-6 if dtype == "float32" else 0.02)


def test_the_rotary_frequencies_stay_float32_in_half_precision(folder, model):
    """As `from_pretrained` leaves them; casting the loaded model would round them to bfloat16."""
    given = start(model, folder, PROMPTS[:1], "image")
    _, half = staged(folder, given, "bfloat16", ["text.rope"])
    _, single = staged(folder, given, "float32", ["text.rope"])
    assert half["text.rope"].dtype.name == "bfloat16"
    assert np.abs(half["text.rope"].astype(np.float32) - single["text.rope"]).max() < 2**-8
