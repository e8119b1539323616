"""The VAE's names, their parents, its cases and their inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from parity.components import build_graph, case_class
from parity.components.vae import VaeCase, vae_graph
from parity.errors import UsageError
from parity.suite import load

CONFIG = {"base_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_dim": 16, "input_channels": 3}
SHAPE = (16, (1, 2, 4, 4), 2)


def case(**change) -> VaeCase:
    return VaeCase(**{"name": "one", "seed": 5, "image": (32, 48)} | change)


def test_names_of_each_level():
    full, block, kinds = (vae_graph(*SHAPE, level=level).expected for level in ("full", "block", "kinds"))
    assert set(kinds) < set(block) < set(full)
    assert kinds == (
        "vae.encode.conv_in", "vae.encode.down.02.downsample", "vae.encode.down.05.downsample",
        "vae.encode.down.08.downsample", "vae.encode.mid.resnet.01", "vae.encode.logvar", "vae.encode.mean",
        "vae.encode.latents", "vae.decode.conv_in", "vae.decode.mid.resnet.01", "vae.decode.up.00.upsample",
        "vae.decode.up.01.upsample", "vae.decode.up.02.upsample", "vae.decode.image",
    )  # fmt: skip
    assert {"vae.encode.down.03.resnet", "vae.decode.mid.attn", "vae.decode.up.01.resnet.02"} < set(block)
    assert {"vae.encode.down.03.resnet.norm2", "vae.decode.mid.attn.qkv"} < set(full)
    assert not [name for name in block if name.endswith((".norm1", ".conv1", ".shortcut", ".qkv", ".proj"))]


def test_shortcuts_are_where_the_width_changes():
    found = [name for name in vae_graph(*SHAPE).expected if name.endswith(".shortcut")]
    assert found == [
        "vae.encode.down.03.resnet.shortcut", "vae.encode.down.06.resnet.shortcut",
        "vae.decode.up.01.resnet.00.shortcut",
    ]  # fmt: skip


def test_parents():
    parents = vae_graph(*SHAPE).parents
    here = "vae.encode.down.03.resnet"
    assert parents[f"{here}.shortcut"] == parents[f"{here}.norm1"] == ("vae.encode.down.02.downsample",)
    assert parents[here] == (f"{here}.shortcut", f"{here}.conv2")
    assert parents["vae.encode.down.04.resnet"] == (here, "vae.encode.down.04.resnet.conv2")
    assert parents["vae.decode.mid.attn"] == ("vae.decode.mid.resnet.00", "vae.decode.mid.attn.proj")
    assert parents["vae.encode.mean"] == parents["vae.encode.logvar"] == ("vae.encode.conv_out",)
    assert parents["vae.encode.latents"] == ("vae.encode.mean",)
    assert parents["vae.decode.latents"] == ("vae.encode.latents",)


def test_latents_are_only_decoded():
    graph = vae_graph(*SHAPE, start="latents")
    assert graph.stages[0] == "vae.decode.in"
    assert all(name.startswith("vae.decode.") for name in graph.expected)
    assert graph.parents["vae.decode.latents"] == ()


@pytest.mark.parametrize("wrong", [{"level": "some"}, {"start": "noise"}])
def test_unknown_levels_and_starts(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        vae_graph(*SHAPE, **wrong)


def test_a_case_describes_its_graph():
    described = case(start="latents").graph({"vae": CONFIG}, "block")
    assert build_graph(described) == vae_graph(*SHAPE, start="latents", level="block")


def test_pictures_are_structured_and_shared():
    state = case(batch=2).inputs({"vae": CONFIG}, "float32")
    image = state["image"]
    assert (set(state), image.shape, image.dtype) == ({"image"}, (2, 3, 1, 32, 48), np.float32)
    assert -1 <= image.min() < -0.2 < 0.2 < image.max() <= 1
    # Neighbours are alike, as they are not in noise.
    assert np.abs(np.diff(image, axis=-1)).mean() < 0.5 * image.std()
    assert not np.array_equal(image[0], image[1])
    rounded = case(batch=2).inputs({"vae": CONFIG}, "bfloat16")["image"]
    np.testing.assert_array_equal(rounded, image.astype(ml_dtypes.bfloat16))


def test_layered_models_have_an_opaque_fourth_channel():
    image = case().inputs({"vae": CONFIG | {"input_channels": 4}}, "float32")["image"]
    assert image.shape == (1, 4, 1, 32, 48)
    assert (image[:, 3] == 1).all()


def test_latents_are_standard_normal():
    latents = case(start="latents", image=(256, 256)).inputs({"vae": CONFIG}, "float32")["latents"]
    assert latents.shape == (1, 16, 1, 32, 32)
    assert abs(latents.mean()) < 0.05
    assert abs(latents.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": (30, 48)}, "30 × 48"),
        ({"image": (0, 8)}, "multiple of 8"),
        ({"image": (8,)}, "height and width"),
        ({"batch": 0}, "at least one picture"),
        ({"start": "noise"}, "picture, latents"),
    ],
)
def test_impossible_cases(change, said):
    with pytest.raises(UsageError, match=said):
        case(**change)


def test_the_suite_covers_shapes_batches_and_decoding_alone():
    cases = [planned.case for planned in load("vae").cases]
    assert all(type(one) is case_class("vae") for one in cases)
    assert {one.start for one in cases} == {"picture", "latents"}
    assert max(one.batch for one in cases) > 1
    assert any(one.image[0] != one.image[1] for one in cases)
