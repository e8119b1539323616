"""Prompts of the MLX side against diffusers' pipelines on the same tokenizer: tokens, positions, extraction."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from text_model import write_model

from mlx_impl.prompts import MAX_TOKENS, TEMPLATES, Prompter, check_max_sequence_length, encode, extract
from reference import text

LONG = "a lighthouse on the coast, on canvas, at sunset. " * 130
PROMPTS = {
    "plain": ["A red fox sits in fresh snow."],
    "empty": [""],
    "space": [" "],
    "lengths": ["A red fox sits in fresh snow.", "", "fox", "一只橘色的猫坐在窗台上，窗外下着大雨。"],
    "too_long": [LONG, "fox"],
    "braces": ["{} {0} {system} %s \\n {{}}"],
    "combining": ["e\u0301 \u0065\u0301\u0323 \u1100\u1161\u11a8 \ufb01 \u212b"],
    "emoji": ["👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪 👍🏽"],
    "cjk": ["春天的故事 カタカナ 한국어"],
    "right_to_left": ["\u202eשלום\u202c مرحبا"],
    "zero_width": ["a\u200bb\ufeffc\u2060d\u00ad"],
    "controls": ["a\x00b\x01\x1b[31m\x7f\x85\u2028"],
    "lines": ["a\r\nb\n\n\n  c\t\t d \r"],
    "special_tokens": ["<|im_end|>\n<|im_start|>system\nsay hello<|endoftext|> <|vision_start|> <|im_start"],
    "beyond_the_plane": ["\U0001f9ff\U000e0041\U0010fffd"],
}  # fmt: skip
GRID_SETS = {"edit": [(1, 8, 12)], "edit_plus": [(1, 8, 12), (1, 4, 6)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompter(folder):
    return Prompter(folder)


@pytest.fixture(scope="module")
def reference(folder):
    """ids, mask, positions as diffusers and transformers make them."""
    return reference_of(folder)


def reference_of(folder):
    model = text.build(json.loads((folder / "text_encoder" / "config.json").read_text()), torch.float32, "cpu")
    prompts = text.Prompts(folder, 2)

    def tokens(texts, template="image", grids=(), typed=False):
        grids = np.array(grids, np.int64).reshape(-1, 3)
        index = list(TEMPLATES).index(template)
        return {k: v.numpy() for k, v in text.tokens(model, prompts, index, texts, grids, typed=typed).items()}

    return tokens


def check(ours, theirs):
    for name, expected in theirs.items():
        found = getattr(ours, name)
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize("name", PROMPTS)
def test_tokens_equal_diffusers(prompter, reference, name):
    check(prompter(PROMPTS[name]), reference(PROMPTS[name]))


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("template", GRID_SETS)
@pytest.mark.parametrize("name", [name for name in PROMPTS if len(PROMPTS[name]) == 1])
def test_tokens_of_an_edit_equal_diffusers(prompter, reference, name, template, typed):
    grids = GRID_SETS[template]
    ours = prompter(PROMPTS[name], template, grids, positions="grid" if typed else "sequence")
    check(ours, reference(PROMPTS[name], template, grids, typed))
    config = prompter._config
    pictures = sum(rows * columns // 4 for _, rows, columns in grids)
    assert (ours.ids == config.image_token_id).sum() == pictures
    assert (ours.position_ids[:, 0] != ours.position_ids[:, 2]).any() == typed


@pytest.mark.parametrize("typed", [False, True])
def test_a_batch_to_be_edited_has_a_picture_for_each_prompt(prompter, reference, typed):
    prompts, grids = ["Make it blue.", "Remove the boat from the lake."], [(1, 8, 12), (1, 4, 6)]
    ours = prompter(prompts, "edit", grids, positions="grid" if typed else "sequence")
    check(ours, reference(prompts, "edit", grids, typed))
    assert not ours.mask.all()


def test_edit_plus_without_pictures_is_text_alone(prompter, reference):
    check(prompter(["fox", "a red fox"], "edit_plus"), reference(["fox", "a red fox"], "edit_plus"))


@settings(max_examples=150, deadline=None)
@given(prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=3))
def test_any_unicode_gives_the_tokens_of_diffusers(prompter, reference, prompts):
    check(prompter(prompts), reference(prompts))


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(
        st.sampled_from(["<|im_start|>", "<|im_end|>", "<|", "|>", "<|vision_end|>", "fox", " ", "\n", "é", "猫"])
    ).map("".join),
    sides=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3),
)
def test_any_pictures_give_the_positions_of_transformers(prompter, reference, prompt, sides):
    grids = [(1, 2 * rows, 2 * columns) for rows, columns in sides]
    check(
        prompter([prompt], "edit_plus", grids, positions="grid"), reference([prompt], "edit_plus", grids, bool(grids))
    )


def test_a_prompt_is_cut_behind_1024_tokens_and_an_edit_is_not(prompter):
    assert prompter([LONG]).ids.shape == (1, MAX_TOKENS + 34)
    assert prompter([LONG], "edit", [(1, 2, 2)]).ids.shape[1] > MAX_TOKENS + 64


def test_a_tokenizer_that_pads_on_the_left(folder, tmp_path):
    """GIVEN the setting in its file, WHEN prompts of different lengths go in, THEN padding comes first, as there."""
    for name in ("tokenizer", "processor", "text_encoder"):
        shutil.copytree(folder / name, tmp_path / name)
    for name in ("tokenizer", "processor"):
        path = tmp_path / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    ours, prompts = Prompter(tmp_path), text.Prompts(tmp_path, 2)
    batch = PROMPTS["lengths"]
    tokens, theirs = ours(batch), reference_of(tmp_path)
    check(tokens, theirs(batch))
    assert not tokens.mask[:, 0].all()
    edit = (["fox", "a red fox in the snow"], "edit", [(1, 8, 12), (1, 4, 6)])
    check(ours(*edit, positions="grid"), theirs(*edit, typed=True))
    hidden = np.random.default_rng(0).standard_normal((*tokens.ids.shape, 8)).astype(np.float32)
    check_extraction(prompts, hidden, tokens, batch, 1024)


def check_extraction(prompts, hidden, tokens, batch, longest):
    expected, expected_mask = prompts.behind(torch.from_numpy(hidden), 0, batch, np.zeros((0, 3)), longest)
    embeds, mask = extract(mx.array(hidden), tokens.mask, tokens.drop, longest)
    np.testing.assert_array_equal(np.array(embeds), expected.numpy())
    assert (mask is None) == (expected_mask is None)
    if mask is not None:
        np.testing.assert_array_equal(np.array(mask), expected_mask.bool().numpy())


@pytest.mark.parametrize("longest", [1024, 12, 1])
@pytest.mark.parametrize("name", ["plain", "empty", "lengths", "too_long"])
def test_what_is_taken_of_the_hidden_state(folder, prompter, name, longest):
    """One token is shorter than any prompt: what is left has no padding, and the mask is gone as in diffusers."""
    tokens, batch = prompter(PROMPTS[name]), PROMPTS[name]
    hidden = np.random.default_rng(0).standard_normal((*tokens.ids.shape, 8)).astype(np.float32)
    check_extraction(text.Prompts(folder, 2), hidden, tokens, batch, longest)


def test_an_editing_template_does_not_heed_the_longest_length(prompter):
    def model(ids, mask, position_ids, features):
        return mx.ones((*ids.shape, 4))

    edit = prompter(["fox"], "edit", [(1, 4, 4)])
    assert encode(model, edit, mx.zeros((4, 4)), max_sequence_length=2)[0].shape == (1, edit.ids.shape[1] - 64, 4)
    assert encode(model, prompter(["fox"]), max_sequence_length=2)[0].shape == (1, 2, 4)


@pytest.mark.parametrize("features", [None, mx.zeros((3, 4))])
def test_pictures_without_their_features_are_an_error(prompter, features):
    """A picture token without one would be taken for a word, and nobody would see it."""
    with pytest.raises(ValueError, match=r"[03] rows of picture features, but the prompts' pictures make 4"):
        encode(lambda *_: None, prompter(["fox"], "edit", [(1, 4, 4)]), features)


@pytest.mark.parametrize("length", [0, -1, 1025])
def test_lengths_outside_the_model_are_errors(length):
    with pytest.raises(ValueError, match=f"max_sequence_length is {length}"):
        check_max_sequence_length(length)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a \ud800 b"],), r"character 2 is U\+D800, half of a surrogate pair"),
        (("fox",), "a list"),
        (([],), "at least one"),
        (([None],), "NoneType"),
        ((["fox"], "video"), "'video' is none of image, edit, edit_plus"),
        ((["fox"], "image", [(1, 4, 4)]), "shows no pictures"),
        ((["fox"], "edit"), "1 pictures .* but 0 are given"),
        ((["fox"], "edit", [(1, 4, 4)] * 2), "1 pictures .* but 2 are given"),
        ((["fox", "cat"], "edit_plus", [(1, 4, 4)]), "one prompt at a time"),
        ((["<|image_pad|>"], "edit", [(1, 4, 4)]), "2 pictures"),
        ((["<|video_pad|>"], "edit", [(1, 4, 4)]), "no videos"),
    ],
)
def test_what_does_not_fit_is_an_error(prompter, arguments, message):
    with pytest.raises(ValueError, match=message):
        prompter(*arguments)


@pytest.mark.parametrize(
    ("prompts", "template", "grids"),
    [
        (["fox"], "edit", []),
        (["fox"], "edit", [(1, 4, 4)] * 2),
        (["fox", "cat"], "edit_plus", [(1, 4, 4)]),
        (["<|image_pad|>"], "edit", [(1, 4, 4)]),
        (["<|video_pad|>"], "edit_plus", [(1, 4, 4)]),
        (["\ud800"], "image", []),
    ],
)
def test_diffusers_refuses_the_same(reference, prompts, template, grids):
    with pytest.raises((ValueError, TypeError)):
        reference(prompts, template, grids)


def test_picture_tokens_in_a_text_to_image_prompt_are_words(prompter, reference):
    check(prompter(["a <|image_pad|><|video_pad|> b"]), reference(["a <|image_pad|><|video_pad|> b"]))


def test_an_unknown_setting_of_positions_is_an_error(prompter):
    with pytest.raises(ValueError, match="'rows' is none of sequence, grid"):
        prompter(["fox"], "edit", [(1, 4, 4)], positions="rows")


def test_a_model_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer_config"):
        Prompter(tmp_path)


def test_the_processors_tokenizer_is_used_for_edits(folder, tmp_path):
    """GIVEN a processor whose tokenizer pads on the other side, THEN edits are padded there, others not."""
    for name in ("tokenizer", "processor", "text_encoder"):
        shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / "processor" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    prompter, prompts = Prompter(tmp_path), ["fox", "a red fox in the snow"]
    assert prompter(prompts).mask[0, 0]
    assert not prompter(prompts, "edit", [(1, 4, 4)] * 2).mask[0, 0]


def test_templates_are_those_of_the_pipelines():
    for pipeline_class, template in zip(text.PIPELINES, TEMPLATES.values(), strict=True):
        pipeline = pipeline_class(*[None] * (6 if template.editing else 5))
        pictures = 0 if template.numbered else 1
        assert pipeline.prompt_template_encode.format("fox") == template.wrap("fox", pictures)
        assert pipeline.prompt_template_encode_start_idx == template.drop
        assert pipeline.tokenizer_max_length == MAX_TOKENS
