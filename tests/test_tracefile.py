"""Trace files from elsewhere that are wrong or hostile: errors of one line, bounded before anything is read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_unit import arrays, attempt, write

from parity import tracefile
from parity.diagnosis.from_trace import compare, from_trace
from parity.errors import UsageError
from parity.safetensors_header import HEADER_LIMIT
from parity.tracefile import read_trace


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
