"""Traces alone: where statistics part and what they suggest."""

import copy

import numpy as np
import pytest
from trace_unit import ABOUT, GRAPH, arrays, write

from parity.diagnosis.from_trace import from_trace
from parity.diagnosis.statsclues import LIMITS, fingerprint
from parity.errors import UsageError
from parity.names import qwen_image_transformer
from parity.stats import describe


def at(name, function):
    """A change at one checkpoint, and a noise at all that follow."""
    start = GRAPH.expected.index(name)

    def change(where, x):
        if where == name:
            return function(x)
        return x * np.float32(1.3) if GRAPH.expected.index(where) > start and name in ancestors(where) else x

    return change


def ancestors(name):
    found, pending = set(), [name]
    while pending:
        for parent in GRAPH.parents[pending.pop()]:
            if parent not in found:
                found.add(parent)
                pending.append(parent)
    return found


def codes(result, confidence=None):
    return [one["code"] for one in result["causes"] if confidence in (None, one["confidence"])]


def test_equal_statistics_give_no_cause_and_no_proof(unit):
    result = from_trace(unit())
    assert (result["subject"], result["sources"], result["causes"]) == ("trace", [], [])
    assert "statistics see no permutation" in result["notes"][0]
    assert f"{len(GRAPH.expected)} of {len(GRAPH.expected)} checkpoints compared" in result["notes"][0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_is_no_divergence_and_a_little_more_is(unit, dtype):
    noise = np.random.default_rng(1)
    step = LIMITS[dtype][0] / 10

    def rounded(name, x):
        return x * (1 + step * noise.standard_normal(x.shape).astype(np.float32))

    for folder, change, sources in (("clean", rounded, 0), ("off", lambda n, x: x * (1 + 20 * step), 1)):
        pair = unit(change, folder, dtype=dtype)
        write(pair / "reference", arrays(), side="reference", dtype=dtype)
        assert bool(from_trace(pair)["sources"]) == bool(sources)


SCALED, OFFSET = {"relation": "scale"}, {"relation": "offset"}


@pytest.mark.parametrize(
    ("name", "function", "code", "confidence", "relation"),
    [
        ("img_in", np.zeros_like, "backend.kernel", "possible", {"relation": "zeros"}),
        ("block.01.img.ffn", lambda x: x * 2.5, "ffn.activation", "possible", SCALED | {"factor": 2.5}),
        ("block.01.txt.ffn", lambda x: -x, "weights.swapped", "possible", SCALED | {"factor": -1.0}),
        ("block.00.img.ffn", lambda x: x.clip(-40, 40), "ffn.clamped", "likely",
         {"relation": "clamped", "bound": 40.0}),
        ("norm_out", lambda x: x * 3.1, "norm_out.order", "likely", SCALED | {"factor": 3.1}),
        ("temb", lambda x: x + 9, "weights.bias_missing", "possible", OFFSET | {"offset": 9.0}),
        ("block.00.img.normed", lambda x: x + 3, "norm.rms_for_layer", "likely", OFFSET | {"offset": 3.0}),
        ("block.01.img.attn", lambda x: np.where(x > 9, np.nan, x), "attention.row_all_masked", "possible", None),
        ("block.00.img.modulated", lambda x: x**2, "modulation.order", "possible", None),
        ("block.00.img.mod", lambda x: np.roll(x, 8, -1), "modulation.order", "likely",
         {"relation": "chunks permuted", "order": [5, 0, 1, 2, 3, 4]}),
        ("final", lambda x: x[:, :20], "weights.swapped", "possible",
         {"relation": "shape", "candidate": [1, 20, 8], "reference": [1, 24, 8]}),
    ],
)  # fmt: skip
def test_the_first_checkpoint_that_parts_and_what_suggests_itself(unit, name, function, code, confidence, relation):
    result = from_trace(unit(at(name, function)))
    assert result["sources"] == [name]
    assert result["first_divergence"] == {
        "case": "square", "mode": "accumulated", "dtype": "float32", "checkpoint": name,
    }  # fmt: skip
    assert code in codes(result, confidence)
    assert result["explained"] is False
    assert name in result["would_decide"]
    if relation:
        (mine,) = [one for one in result["unexplained"][0]["fingerprint"] if one["relation"] == relation["relation"]]
        assert mine == {
            key: pytest.approx(value, rel=1e-3) if type(value) is float else value for key, value in relation.items()
        }


def test_nothing_is_ever_proven(unit):
    for name in ("img_in", "block.00.img.mod", "norm_out"):
        result = from_trace(unit(at(name, lambda x: x * np.float32(3)), name))
        assert {one["confidence"] for one in result["causes"]} <= {"likely", "possible"}


def test_two_places_of_their_own_are_both_named(unit):
    def change(name, x):
        return x * np.float32(1.5) if name in ("img_in", "txt_in", "block.00.img.normed") else x

    assert from_trace(unit(change))["sources"] == ["img_in", "txt_in"]


def test_a_permutation_is_not_seen_and_that_is_said(unit):
    result = from_trace(unit(lambda name, x: x[:, ::-1]))
    assert result["sources"] == []
    assert "see no permutation" in result["notes"][0]


def test_what_is_missing_or_unknown_is_counted(unit):
    pair = unit(lambda name, x: None if name == "temb" else x)
    assert any("1 checkpoints missing in the candidate, temb first" in note for note in from_trace(pair)["notes"])


def test_a_reference_that_is_not_finite_judges_nothing(unit):
    pair = unit(lambda name, x: x * np.float32(2) if name == "final" else x)
    made = arrays()
    made["final"][0, 0, 0] = np.inf
    write(pair / "reference", made, side="reference")
    assert from_trace(pair)["sources"] == []


def test_half_precision_that_overflows_is_named(unit):
    pair = unit(lambda name, x: np.where(x > 20, np.inf, x) if name == "block.01.img.ffn" else x, dtype="float16")
    write(pair / "reference", arrays(), side="reference", dtype="float16")
    assert "ffn.fp16_overflow" in codes(from_trace(pair), "likely")


@pytest.mark.parametrize("where", ["unit", "candidate", "run", "trace", "given"])
def test_the_pair_is_found_from_any_folder(unit, tmp_path, where):
    pair = unit(at("temb", lambda x: x * np.float32(2)), "run/trace/square.float32")
    asked = {
        "unit": (pair, None), "candidate": (pair / "candidate", None), "run": (tmp_path / "run", None),
        "trace": (tmp_path / "run" / "trace", None), "given": (pair / "candidate", pair / "reference"),
    }[where]  # fmt: skip
    assert from_trace(*asked)["sources"] == ["temb"]


def test_several_units_are_one_diagnosis(unit, tmp_path):
    unit(folder="run/a.float32")
    for name in ("temb", "img_in"):
        unit(at(name, np.zeros_like), f"run/{name}.float32")
    result = from_trace(tmp_path / "run")
    assert result["sources"] == ["img_in", "temb"]
    assert [one["where"] for one in result["causes"] if one["code"] == "weights.missing"] == [["img_in", "temb"]]
    assert len(result["causes"]) == len(set(codes(result)))


def test_a_trace_alone_is_held_against_the_documented_ranges(unit):
    pair = unit(lambda name, x: np.zeros_like(x) if name == "img_in" else x)
    for one in (pair / "reference").iterdir():
        one.unlink()
    result = from_trace(pair / "candidate")
    assert result["subject"] == "trace"
    assert result["sources"] == ["img_in"]
    assert "--reference" in result["notes"][-1]
    write(pair / "candidate", arrays(), component="vae")
    with pytest.raises(UsageError, match="documented ranges are of the transformer"):
        from_trace(pair / "candidate")


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"dtype": "bfloat16"}, "dtype is bfloat16 and float32"),
        ({"mode": "isolated"}, "mode is isolated and accumulated"),
        ({"component": "vae"}, "component is vae and transformer"),
        ({"case": ABOUT["case"] | {"seed": 7}}, "case.seed is 7 and 0"),
        ({"case": ABOUT["case"] | {"name": "wide"}}, "case.name is wide and square"),
        ({"configs": {"transformer": {"num_layers": 2, "attention_head_dim": 32}}},
         "configs.transformer.attention_head_dim is 32 and 16"),
    ],
)  # fmt: skip
def test_traces_that_do_not_belong_together_are_an_error_of_one_line(unit, about, said):
    pair = unit(**about)
    with pytest.raises(UsageError, match=said) as error:
        from_trace(pair)
    assert str(error.value) == f"square.float32/candidate and square.float32/reference do not belong together: {said}"


def test_traces_of_another_level_do_not_belong_together(unit):
    kinds = qwen_image_transformer(2, "kinds").expected
    pair = unit(lambda name, x: x if name in kinds else None)
    with pytest.raises(UsageError, match="level of detail is kinds and block"):
        from_trace(pair)


def test_fingerprints_of_equal_arrays_are_empty():
    one = vars(describe(arrays()["img_in"]))
    assert fingerprint(one, copy.deepcopy(one), "float32") == []
