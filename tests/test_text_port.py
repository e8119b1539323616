"""The MLX text encoder as a component: held against the reference in lockstep, and against diffusers' pipelines."""

from __future__ import annotations

# isort: off
import mlx_impl  # noqa: F401  first, since it puts the BLAS in place
import mlx.core as mx
# isort: on

import json
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from PIL import Image
from text_model import rewritten, write_model
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from mlx_impl.port import MlxPort
from mlx_impl.prompts import Prompter, encode
from mlx_impl.text_encoder import StreamedTextEncoder, load_text_encoder
from mlx_impl.text_port import TextSession
from parity.components.text import TextCase, text_graph
from parity.lockstep import Lockstep, Unit, iterate
from parity.tap import changing
from parity.verdict import judge
from reference.port import ReferencePort
from reference.text import PictureProcessor

GRAPH = text_graph(2)
CASES = {
    "batch": TextCase(name="batch", seed=0, prompts=("A red fox sits in fresh snow.", "", "一只橘色的猫")),
    "cut": TextCase(name="cut", seed=1, prompts=("A red fox sits in fresh snow.", "fox"), max_sequence_length=5),
    # The editing templates do not heed the length.
    "plus": TextCase(
        name="plus", seed=2, prompts=("Blue.",), template="edit_plus", pictures=((112, 168), (84, 56)),
        max_sequence_length=4,
    ),
    "grid": TextCase(
        name="grid", seed=3, prompts=("Blue.", "Remove the boat."), template="edit", pictures=((112, 168), (84, 56)),
        positions="grid",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def inputs(folder, case, dtype="float32"):
    return case.inputs({"text_encoder": json.loads((folder / "text_encoder" / "config.json").read_text())}, dtype)


def judged(folder, case, dtype, candidate=None):
    """mode -> judged rows of one unit."""
    unit = Unit(case, dtype, ("isolated", "accumulated"), GRAPH, 3)
    lockstep = Lockstep(unit, ReferencePort("cpu"), candidate or MlxPort(), folder)
    rows = {mode: [] for mode in unit.modes}
    for _, _, result in iterate(lockstep, lockstep.start(inputs(folder, case, dtype)), 0):
        for mode in unit.modes:
            rows[mode] += result.rows[mode]
    return {mode: judge(found, GRAPH, isolated=mode == "isolated") for mode, found in rows.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint_matches_the_reference(folder, name, dtype):
    for mode, rows in judged(folder, CASES[name], dtype).items():
        assert [row["name"] for row in rows if row["verdict"] != "match"] == [], mode
        assert len(rows) == len(GRAPH.expected)
        assert max(row["excess"] for row in rows) < 2, mode
        others = [row for row in rows if row["name"] not in GRAPH.exact]
        assert {row["dtype"] for row in others} == {dtype}
        # Floors of what is computed are those of the dtype: neither zero nor so high that nothing could be seen.
        floors = [row["floor"] for row in others]
        assert max(floors) < (2e-6 if dtype == "float32" else 0.05)
        assert min(floors) > 0


FAULTS = {
    "text.ids": lambda x: x + 1,
    "text.position_ids": lambda x: x + (mx.arange(x.shape[-1]) == 3),
    "text.embed": lambda x: x * 1.01,
    "text.layer.01.v": lambda x: x[:, :, ::-1],
    "text.layer.00.gated": lambda x: x + 1e-4,
    "text.prompt_mask": lambda x: mx.logical_not(x),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_where_it_is(folder, name):
    """GIVEN a wrong value at one checkpoint, WHEN both run in isolated mode, THEN it is a source, the only one."""

    class Faulty(TextSession):
        def run(self, stage, state, want, *, precision="default"):
            with changing({name: FAULTS[name]}):
                return super().run(stage, state, want, precision=precision)

    class Port(MlxPort):
        def open(self, weights, *, dtype, hold=None, component="text"):
            return Faulty(weights, mx.float32, mx.float32)

    rows = judged(folder, CASES["batch"], "float32", Port())["isolated"]
    assert [row["name"] for row in rows if row["source"]] == [name]


def test_what_stands_in_padding_is_not_judged(folder):
    """GIVEN not-a-number in every row of padding, WHEN a layer runs, THEN nothing of it is handed over."""
    session = MlxPort().open(folder, dtype="float32", component="text")
    state = inputs(folder, CASES["batch"])
    for stage in session.stages[:2]:
        session.load(stage)
        state, _ = session.run(stage, state, ())
    session.load("text.layer.00")
    poisoned = state | {"hidden": np.where(state["mask"][..., None], state["hidden"], np.float32(1e3))}
    _, clean = session.run("text.layer.00", state, GRAPH.expected)
    _, found = session.run("text.layer.00", poisoned, GRAPH.expected)
    for name, value in clean.items():
        np.testing.assert_array_equal(found[name], value, name)
        assert not value[~state["mask"]].any()


def test_stages_streamed_equal_the_whole_and_both_apis(folder):
    case = CASES["plus"]
    session, state = MlxPort().open(folder, dtype="bfloat16", component="text"), inputs(folder, case, "bfloat16")
    features = mx.array(state["image_features"].astype(np.float32)).astype(mx.bfloat16)
    for stage in session.stages:
        session.load(stage)
        state, _ = session.run(stage, state, ())
        session.free(stage)
    assert set(state) == {"prompt_embeds"}
    assert state["prompt_embeds"].dtype.name == "bfloat16"
    tokens = Prompter(folder)(case.prompts, case.template, case.grids)
    for model in (load_text_encoder(folder, "bfloat16"), StreamedTextEncoder(folder, "bfloat16")):
        embeds, mask = encode(model, tokens, features)
        assert mask is None
        np.testing.assert_array_equal(np.array(embeds.astype(mx.float32)), state["prompt_embeds"].astype(np.float32))


def test_weights_are_held_in_another_dtype(folder, tmp_path):
    """GIVEN weights with more digits than bfloat16 has, WHEN they are held in it, THEN those digits are gone."""
    rewritten(folder, tmp_path, lambda tensors: {key: tensor.float() * 1.0001 for key, tensor in tensors.items()})
    embedded = []
    for hold in (mx.float32, mx.bfloat16):
        session, state = TextSession(tmp_path, mx.float32, hold), inputs(folder, CASES["batch"])
        for stage in ("text.tokens", "text.embed"):
            session.load(stage)
            state, _ = session.run(stage, state, ())
        embedded.append(state["hidden"])
    assert embedded[1].dtype == np.float32
    np.testing.assert_array_equal(embedded[1], embedded[0].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(embedded[1] - embedded[0]).max() > 1e-5


def test_a_stage_must_be_loaded(folder):
    session = MlxPort().open(folder, dtype="float32", component="text")
    with pytest.raises(ValueError, match="not loaded"):
        session.run("text.tokens", inputs(folder, CASES["batch"]), ())


@pytest.mark.parametrize("key", ["positions", "max_sequence_length"])
def test_settings_may_be_left_out(folder, key):
    state = inputs(folder, CASES["batch"])
    results = []
    for given in (state, {k: v for k, v in state.items() if k != key}):
        for port in (MlxPort(), ReferencePort("cpu")):
            session, after = port.open(folder, dtype="float32", component="text"), given
            for stage in session.stages:
                session.load(stage)
                after, _ = session.run(stage, after, ())
            results.append(after["prompt_embeds"])
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])


@pytest.fixture(scope="module")
def theirs(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)


def images(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((112, 168), (84, 56))[:count]]


def check(found, expected):
    embeds, mask = np.array(found[0]), found[1]
    theirs, their_mask = expected[0].numpy(), expected[1]
    assert embeds.shape == theirs.shape
    assert (mask is None) == (their_mask is None)
    if mask is not None:
        np.testing.assert_array_equal(np.array(mask), their_mask.bool().numpy())
        assert not embeds[~np.array(mask)].any()
    assert math.sqrt(np.mean((embeds - theirs) ** 2) / np.mean(theirs**2)) < 3e-6


@pytest.mark.parametrize("longest", [1024, 4])
@pytest.mark.parametrize("prompts", [["A red fox."], ["A red fox.", "", "一只橘色的猫 👩‍👩‍👧"], ["x " * 600]])
def test_embeddings_equal_the_pipeline(folder, theirs, prompts, longest):
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    with torch.no_grad():
        expected = QwenImagePipeline(None, None, theirs, tokenizer, None).encode_prompt(
            prompts, device="cpu", max_sequence_length=longest
        )
    tokens = Prompter(folder)(prompts)
    check(encode(load_text_encoder(folder, "float32"), tokens, max_sequence_length=longest), expected)


@pytest.mark.parametrize(
    ("cls", "template", "prompts", "count"),
    [
        (QwenImageEditPipeline, "edit", ["Make the fox blue."], 1),
        (QwenImageEditPipeline, "edit", ["Make the fox blue.", "Remove it"], 2),
        (QwenImageEditPlusPipeline, "edit_plus", ["Put picture 1 into picture 2."], 2),
        (QwenImageEditPlusPipeline, "edit_plus", ["Paint a fox", "and a boat on the lake"], 0),
    ],
)
def test_embeddings_equal_the_editing_pipelines(folder, theirs, cls, template, prompts, count):
    """With picture features from transformers' vision tower on both sides."""
    processor = PictureProcessor.from_pretrained(folder / "processor")
    pipe = cls(None, None, theirs, processor.tokenizer, processor, None)
    features, grids = None, ()
    with torch.no_grad():
        expected = pipe.encode_prompt(prompts, images(count) or None, device="cpu")
        if count:
            found = processor.image_processor(images(count), return_tensors="pt")
            grids = [tuple(grid) for grid in found["image_grid_thw"].tolist()]
            parts = theirs.model.get_image_features(found["pixel_values"], found["image_grid_thw"]).pooler_output
            features = mx.array(torch.cat(parts).numpy())
    tokens = Prompter(folder)(prompts, template, grids)
    check(encode(load_text_encoder(folder, "float32"), tokens, features, 4), expected)
