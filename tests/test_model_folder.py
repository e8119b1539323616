"""A model's folder: what a suite needs is found and checked, and what is missing is named at once."""

import json

import layout_folders
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_checkpoint import SMALL
from test_checkpoint import write as write_transformer

from parity import model_folder
from parity.errors import WeightsError

WHOLE = ("transformer", "vae", "text_encoder", "scheduler", "tokenizer", "processor")


@pytest.fixture
def model(tmp_path):
    """A model with a few tensors in each component."""
    write_transformer(tmp_path / "transformer")
    for folder, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"of": folder}))
        save_file({"weight": np.ones((2, 3), np.float32)}, tmp_path / folder / f"{stem}.safetensors")
    for folder, file in (
        ("scheduler", "scheduler_config.json"),
        ("tokenizer", "tokenizer_config.json"),
        ("processor", "preprocessor_config.json"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(json.dumps({"of": folder}))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    return tmp_path


def test_only_what_is_needed_is_looked_at(model):
    (model / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"no header")
    found = model_folder.inspect(model, ("text_encoder", "scheduler"))
    assert found.configs == {"text_encoder": {"of": "text_encoder"}, "scheduler": {"of": "scheduler"}}
    assert found.nbytes == 24
    assert found.root == model
    with pytest.raises(WeightsError, match=r"vae: this checkpoint cannot be used"):
        model_folder.inspect(model, ("vae",))


def test_the_whole_model_is_described(model):
    found = model_folder.inspect(model, WHOLE)
    about = found.describe()
    assert about["pipeline"] == "QwenImagePipeline"
    assert (about["synthetic"], about["preset"]) == (False, None)
    assert about["configs"]["transformer"]["num_layers"] == SMALL["num_layers"]
    assert about["tensors"] == len(found.checkpoints["transformer"].tensors) + 2
    assert found.check_finite() == ()


def test_a_transformer_alone_is_a_model_for_suites_that_need_no_more(model):
    alone = model_folder.inspect(model / "transformer")
    assert alone.root == model / "transformer"
    assert alone.pipeline == "QwenImagePipeline"
    assert alone.fingerprint() == model_folder.inspect(model).fingerprint()


def test_everything_that_is_missing_is_said_at_once(model):
    (model / "scheduler" / "scheduler_config.json").unlink()
    (model / "vae" / "config.json").unlink()
    with pytest.raises(
        WeightsError, match=r"lacks vae/config.json, scheduler/scheduler_config.json; found model_index"
    ):
        model_folder.inspect(model, WHOLE)
    (model / "processor" / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks processor/.*; only the editing models"):
        model_folder.inspect(model, ("processor",))


def test_a_component_s_folder_is_not_the_model(model):
    with pytest.raises(WeightsError, match="this is one component's folder: name the one above it"):
        model_folder.inspect(model / "transformer", ("transformer", "vae"))
    with pytest.raises(WeightsError, match="there is no such folder"):
        model_folder.inspect(model / "nowhere", ("vae",))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none(model, content):
    (model / "vae" / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"vae/config.json: "):
        model_folder.inspect(model, ("vae",))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "tokenizer" / "merges.txt").write_text("a b"),
        lambda model: (model / "vae" / "config.json").write_text('{"of": "another"}'),
        lambda model: save_file({"weight": np.zeros((2, 3), np.float32)}, model / "text_encoder" / "model.safetensors"),
    ],
)
def test_the_fingerprint_sees_a_change_in_any_component(model, change):
    before = model_folder.inspect(model, WHOLE).fingerprint()
    assert model_folder.inspect(model, WHOLE).fingerprint() == before
    change(model)
    assert model_folder.inspect(model, WHOLE).fingerprint() != before


def test_values_that_are_not_finite_are_found_in_any_component(model):
    weight = np.ones((2, 3), np.float32)
    weight[1, 2] = np.nan
    save_file({"weight": weight}, model / "text_encoder" / "model.safetensors")
    with pytest.raises(WeightsError, match="weight: 1 NaN of 6 values"):
        model_folder.inspect(model, WHOLE).check_finite()
    save_file({"weight": 0 * np.ones((2, 3), np.float32)}, model / "text_encoder" / "model.safetensors")
    assert model_folder.inspect(model, WHOLE).check_finite() == ("text_encoder: weight",)


@pytest.mark.parametrize("content", ["not json", "[]", '{"_class_name": 3}', "{}"])
def test_an_index_that_says_nothing_names_no_pipeline(model, content):
    (model / "model_index.json").write_text(content)
    assert model_folder.inspect(model).pipeline is None


def test_layout_and_bits_are_described(tmp_path):
    four = layout_folders.packed(layout_folders.weights(), 4)
    layout_folders.write_mflux(tmp_path / "transformer", four, 4)
    about = model_folder.inspect(tmp_path).describe()
    assert (about["layout"], about["bits"]) == ("mflux", {"transformer": {"4-bit group 64": 34}})
    dense = layout_folders.write_model(tmp_path / "dense", layout_folders.weights())
    both = model_folder.inspect(dense, ("transformer", "vae"))
    assert (both.describe()["layout"], both.bits) == ("diffusers", {})
    layout_folders.write_mflux(dense / "mlx", four, 4)
    for file in (dense / "transformer").iterdir():
        file.unlink()
    for file in (dense / "mlx").iterdir():
        file.rename(dense / "transformer" / file.name)
    mixed = model_folder.inspect(dense, ("transformer", "vae"))
    assert mixed.layout == "transformer: mflux, vae: diffusers"
    assert mixed.describe()["parameters"] == both.describe()["parameters"]
    with pytest.raises(WeightsError, match=r"lacks processor/preprocessor_config\.json"):
        model_folder.inspect(dense, ("transformer", "processor"))
