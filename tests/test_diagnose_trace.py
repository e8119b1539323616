"""Traces alone: where statistics part, what they suggest, and files from elsewhere that are wrong or hostile."""

import copy
import json
import math
import mmap

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from parity import trace
from parity.diagnosis import tracefile
from parity.diagnosis.from_trace import compare, from_trace
from parity.diagnosis.statsclues import LIMITS, fingerprint
from parity.diagnosis.tracefile import fit_shapes, read_dump, read_trace, unknown_names
from parity.errors import UsageError
from parity.names import parse, qwen_image_transformer
from parity.safetensors_header import HEADER_LIMIT
from parity.stats import describe

GRAPH = qwen_image_transformer(2, "block")
ABOUT = {
    "side": "candidate", "case": {"name": "square", "seed": 0, "img_shapes": [[1, 4, 4]]}, "dtype": "float32",
    "mode": "accumulated", "component": "transformer",
    "configs": {"transformer": {"num_layers": 2, "attention_head_dim": 16}}, "environment": {},
}  # fmt: skip


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    widths = {"mod": 48, "norm_out.mod": 16}
    return {
        name: (rng.standard_normal((1, 24, widths.get(parse(name).kind, 8))) * (i + 1)).astype(np.float32)
        for i, name in enumerate(GRAPH.expected)
    }


def write(folder, made, **about):
    chunks = {"mod": 6, "norm_out.mod": 2}
    stats = {name: vars(describe(x, chunks=chunks.get(parse(name).kind, 0))) for name, x in made.items()}
    trace.write(folder, stats, ABOUT | about)


@pytest.fixture
def unit(tmp_path):
    """A unit's folder: `change(name, array)` says what the candidate has."""

    def make(change=lambda name, x: x, folder="square.float32", **about):
        right = arrays()
        wrong = {name: y for name, x in right.items() if (y := change(name, x)) is not None}
        write(tmp_path / folder / "reference", right, side="reference")
        write(tmp_path / folder / "candidate", wrong, **about)
        return tmp_path / folder

    return make


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


def test_empty_folders_and_other_files_are_errors(tmp_path, unit):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="empty: no trace here; expected manifest"):
        from_trace(empty)
    pair = unit()
    (empty / "notes.md").write_text("x")
    with pytest.raises(UsageError, match="not a trace"):
        from_trace(empty / "notes.md")
    with pytest.raises(UsageError, match="the reference's own trace"):
        from_trace(pair / "reference")
    with pytest.raises(UsageError, match="no such file"):
        from_trace(pair / "candidate", tmp_path / "none")
    with pytest.raises(UsageError, match="no trace here"):
        from_trace(pair / "candidate", empty)
    (pair / "candidate" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="a trace that was cut off"):
        from_trace(pair)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 9}, "schema is 9, this version reads 1"),
        ({"order": "img_in"}, "order is no list of names"),
        ({"order": ["a", "a"]}, "order has a name twice"),
        ({"order": ["../../etc/passwd"]}, "name other checkpoints"),
        ({"component": "../x"}, "component is ../x, expected one of"),
        ({"dtype": 4}, "dtype is 4, expected a text"),
        ({"case": []}, "case is []"),
    ],
)
def test_a_garbled_manifest_is_an_error_that_says_where(unit, change, said):
    path = unit() / "candidate" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError) as error:
        read_trace(path.parent)
    assert said in str(error.value)
    assert str(error.value).startswith("square.float32/candidate")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1, "schema": 1}', b"[" * 100_000])
def test_a_manifest_that_is_no_object_is_an_error(unit, content):
    path = unit() / "candidate" / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"garbled|comes twice"):
        read_trace(path.parent)


def test_a_huge_manifest_is_refused_unread(unit):
    path = unit() / "candidate" / "manifest.json"
    with path.open("wb") as file:
        file.truncate(HEADER_LIMIT + 1)
    with pytest.raises(UsageError, match=f"{HEADER_LIMIT + 1} bytes, against a limit"):
        read_trace(path.parent)


def test_too_many_rows_or_bytes_are_refused_unread(unit, monkeypatch):
    folder = unit() / "candidate"
    monkeypatch.setattr(tracefile, "STATS_BYTES", 5000)
    with pytest.raises(UsageError, match="against a limit of 5000"):
        read_trace(folder)
    monkeypatch.setattr(tracefile, "STATS_BYTES", 1 << 28)
    monkeypatch.setattr(tracefile, "ROWS", 10)
    with pytest.raises(UsageError, match="against a limit of 10"):
        read_trace(folder)


@pytest.mark.parametrize(
    ("column", "said"), [("quantiles", "values in quantiles.list.element, against"), ("histogram", None)]
)
def test_few_bytes_that_unpack_to_many_are_refused_or_never_unpacked(unit, column, said):
    folder = unit() / "candidate"
    table = pq.read_table(folder / "stats.parquet")
    rows = table.to_pylist()
    path = folder / "stats.parquet"
    index = table.column_names.index(column)
    wide = pa.array([[0] * 5_000_000] + [[]] * (len(rows) - 1), table.schema.field(column).type)
    pq.write_table(table.set_column(index, table.schema.field(column), wide), path, compression="zstd")
    assert path.stat().st_size < 100_000
    if said is None:
        assert "histogram" not in read_trace(folder).stats["img_in"]
        return
    with pytest.raises(UsageError, match=said):
        read_trace(folder)


@pytest.mark.parametrize("column", ["rms", "shape", "name"])
def test_a_column_that_is_missing_or_of_another_type_is_named(unit, column):
    path = unit() / "candidate" / "stats.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(UsageError, match=f"column {column} is missing, expected"):
        read_trace(path.parent)
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array([b"x"] * len(table))), path)
    with pytest.raises(UsageError, match=f"column {column} is binary, expected"):
        read_trace(path.parent)


def test_a_row_that_is_not_whole_or_comes_twice_is_named(unit):
    path = unit() / "candidate" / "stats.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]], schema=table.schema), path)
    with pytest.raises(UsageError, match="img_in comes twice"):
        read_trace(path.parent)
    rows[1]["rms"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(UsageError, match=f"the row of {rows[1]['name']} is not whole"):
        read_trace(path.parent)


def attempt(function, *arguments):
    """What a function gives, and what it says where it refuses."""
    try:
        return function(*arguments), ""
    except UsageError as error:
        return None, str(error)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_stats_file_is_an_error_and_never_a_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t") / "u" / "candidate"
    write(folder, {name: arrays()[name] for name in ("img_in", "temb")})
    path = folder / "stats.parquet"
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    found, said = attempt(read_trace, folder)
    assert "\n" not in said
    if found is not None:
        assert list(found.stats) == ["img_in", "temb"]
        compare(found, found)


def test_fingerprints_of_equal_arrays_are_empty():
    one = vars(describe(arrays()["img_in"]))
    assert fingerprint(one, copy.deepcopy(one), "float32") == []


def dump(path, **tensors):
    save_file(tensors, path)
    return path


def test_a_dump_gives_its_arrays_without_a_copy(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    path = dump(tmp_path / "d.safetensors", **{"img_in": x, "block.00.img.attn": x.astype(ml_dtypes.bfloat16)})
    found = read_dump(path, GRAPH.parents)
    np.testing.assert_array_equal(found["img_in"], x)
    assert found["block.00.img.attn"].dtype == ml_dtypes.bfloat16
    owner = found["img_in"]
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        found["img_in"][0] = 1


def test_names_that_are_near_are_suggested(tmp_path):
    assert unknown_names(["img_in", "block.00.img.attention", "\x1b"], GRAPH.parents) == {
        "block.00.img.attention": ["block.00.img.attn", "block.01.img.attn", "block.00.img.out"],
        "\x1b": [],
    }
    path = dump(tmp_path / "d.safetensors", image_in=np.ones(3, np.float32))
    with pytest.raises(UsageError, match=r"none of its 1 names is a checkpoint: image_in \(nearest: img_in"):
        read_dump(path, GRAPH.parents)
    assert list(read_dump(path)) == ["image_in"]


def test_a_batch_dimension_too_many_or_too_few_is_noticed():
    x = np.ones((3, 4), np.float32)
    arrays, notes = fit_shapes(
        {"img_in": x, "final": x[None], "temb": x, "new": x}, {"img_in": (1, 3, 4), "final": (3, 4), "temb": (5,)}
    )
    assert {name: one.shape for name, one in arrays.items()} == {
        "img_in": (1, 3, 4), "final": (3, 4), "temb": (3, 4), "new": (3, 4),
    }  # fmt: skip
    assert notes == [
        "1 arrays lack a batch dimension, img_in first; compared with one",
        "1 arrays have a batch dimension, final first; compared without",
    ]


def test_a_dump_is_compared_with_a_dump_and_held_against_ranges(tmp_path):
    made = arrays()
    right = dump(tmp_path / "right.safetensors", **made)
    wrong = dump(tmp_path / "wrong.safetensors", **(made | {"temb": made["temb"] * np.float32(2)}))
    assert from_trace(wrong, right)["sources"] == ["temb"]
    assert from_trace(right, right)["sources"] == []
    assert "documented ranges only" in from_trace(right)["notes"][-1]


def header(entries):
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty file"),
        ((1 << 62).to_bytes(8, "little") + b"{}", "a header of"),
        (header({"img_in": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}), "truncated"),
        (header({"img_in": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}), "takes 4 bytes"),
        (header({"img_in": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}) + b"x", "write it as F32"),
        (header({"img_in": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "is empty"),
    ],
)
def test_a_hostile_dump_allocates_nothing(tmp_path, content, said):
    path = tmp_path / "d.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_dump(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_dump_is_an_error_and_never_a_crash(tmp_path_factory, data):
    path = dump(tmp_path_factory.mktemp("d") / "d.safetensors", img_in=np.ones((2, 3), np.float32))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    found, said = attempt(read_dump, path)
    assert "\n" not in said
    if found is not None:
        assert all(math.prod(one.shape) == one.size for one in found.values())
