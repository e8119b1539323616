"""Faults of weights, quantization and LoRAs: each found where it was made, as what it is."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mini import write_checkpoint
from stages import stage_of

from parity import checkpoint
from parity.diagnosis.fault import by_code, catalogue
from parity.diagnosis.faults.quant import quantized
from parity.diagnosis.inquiry import wrong_of
from parity.diagnosis.search import Search
from parity.diagnosis.weights import ModelWeights

BLOCK = "block.00"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def _with(name: str, **weights):
    """The value of a checkpoint with other tensors: canonical key -> function of the tensor."""

    def change(values):
        place = values.place(name)
        keys = {key.replace("__", "."): function for key, function in weights.items()}
        return place.changed(
            weight=lambda key: keys[key](place.weight(key)) if key in keys else place.weight(key)
        ).recipe()

    return change


TO_V, TO_K, ADD_V = (f"transformer_blocks.0.attn.{name}" for name in ("to_v", "to_k", "add_v_proj"))


def _other(folder, key):
    weights = ModelWeights(checkpoint.inspect(folder), "float32")
    return lambda _: weights(key)


CASES = [
    ("weights.bias_missing", "no bias in", lambda f: {f"{TO_V}.bias": np.zeros_like}),
    ("weights.transposed", "transposed", lambda f: {f"{TO_V}.weight": np.transpose}),
    ("weights.missing", "is zeros", lambda f: {f"{TO_V}.weight": np.zeros_like}),
    ("weights.missing", "is ones, its bias zero", lambda f: {f"{TO_V}.weight": np.ones_like,
                                                             f"{TO_V}.bias": np.zeros_like}),
    ("weights.swapped", "attn.to_v is transformer_blocks.N.attn.to_k",
     lambda f: {f"{TO_V}.{leaf}": _other(f, f"{TO_K}.{leaf}") for leaf in ("weight", "bias")}),
    ("weights.swapped", "attn.to_v is transformer_blocks.N.attn.add_v_proj",
     lambda f: {f"{TO_V}.{leaf}": _other(f, f"{ADD_V}.{leaf}") for leaf in ("weight", "bias")}),
    ("weights.swapped", "is that of block N+1",
     lambda f: {f"{TO_V}.{leaf}": _other(f, f"transformer_blocks.1.attn.to_v.{leaf}") for leaf in ("weight", "bias")}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("code", "detail", "weights"), CASES, ids=[f"{c}: {d}" for c, d, _ in CASES])
def test_a_fault_of_weights_is_found_as_what_it_is(folder, code, detail, weights, dtype) -> None:
    name = f"{BLOCK}.img.v"
    changes = {key.replace(".", "__"): value for key, value in weights(folder).items()}
    stage = stage_of(folder, BLOCK, {name: _with(name, **changes)}, dtype=dtype)
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == name)

    matches = Search(catalogue()).explain(stage, wrong)

    assert matches, "nothing explains it"
    assert matches[0].codes == (code,)
    assert detail in matches[0].steps[0][1]
    assert matches[0].proves()


def test_weights_that_are_no_mix_up_are_told_by_the_map_that_fits_them(folder) -> None:
    draw = np.random.default_rng(0)
    # 24 image tokens do not fix a map of 64 inputs; img_in's 16 they do.
    name = "img_in"
    noise = {"img_in__weight": lambda w: draw.standard_normal(w.shape)}
    stage = stage_of(folder, "embed", {name: _with(name, **noise)})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == name)

    matches = Search(catalogue()).explain(stage, wrong)

    assert [match.codes for match in matches] == [("weights.random",)]


def test_what_is_not_linear_is_not_called_other_weights(folder) -> None:
    stage = stage_of(folder, "embed", {"img_in": lambda values: np.tanh(values["img_in"])})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == "img_in")

    assert Search(catalogue()).explain(stage, wrong) == []


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_quantized_is_what_mlx_leaves_of_a_weight(bits, group) -> None:
    weight = np.random.default_rng(bits).standard_normal((24, 256)).astype(np.float32)
    packed = mx.quantize(mx.array(weight), group_size=group, bits=bits)
    expected = np.array(mx.dequantize(*packed, group_size=group, bits=bits))

    found = quantized(weight.astype(np.float64), bits, group)

    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_low_bits_of_the_modulation_are_told_with_their_width(folder) -> None:
    name, key = f"{BLOCK}.img.mod", "transformer_blocks__0__img_mod__1__weight"
    stage = stage_of(folder, BLOCK, {name: _with(name, **{key: lambda w: quantized(w, 4, 64)})})
    wrong = next(one for one in wrong_of(stage, stage.local()) if one.name == name)

    matches = Search(catalogue()).explain(stage, wrong)

    assert matches[0].codes == ("quant.modulation_low_bits",)
    assert matches[0].steps[0][1] == "4 bits, group 64"


def test_every_fault_of_weights_is_in_the_catalogue_with_a_fix() -> None:
    for code in ("missing", "unused", "random", "swapped", "transposed", "bias_missing"):
        assert by_code()[f"weights.{code}"].fix
    for code in ("group_size", "bits", "packing", "modulation_low_bits"):
        assert by_code()[f"quant.{code}"].fix
    for code in ("not_applied", "scale", "lost_in_precision"):
        assert by_code()[f"lora.{code}"].fix
