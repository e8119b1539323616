"""The footer of a Parquet file as we read it: the same as pyarrow's, and garbled ones end in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trace_unit

import parity
from parity import trace, tracefile
from parity.errors import UsageError
from parity.parquet_footer import read_footer


@pytest.fixture
def stats(tmp_path):
    trace_unit.write(tmp_path / "candidate", trace_unit.arrays())
    return tmp_path / "candidate" / trace.STATS


def of_pyarrow(path):
    meta = pq.ParquetFile(path).metadata
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    values = {}
    for column in (group.column(j) for group in groups for j in range(group.num_columns)):
        values[column.path_in_schema] = values.get(column.path_in_schema, 0) + column.num_values
    return meta.num_rows, sum(group.total_byte_size for group in groups), values


def test_it_says_what_pyarrow_says(stats, tmp_path):
    found = read_footer(stats)
    assert (found.rows, found.unpacked, dict(found.values)) == of_pyarrow(stats)
    assert found.values["histogram.list.element"] == 82 * found.rows
    table = pa.table({"a": [[1, 2], None, []], "b": [True, None, False], "c": [{"d": 0.5}, None, {"d": 1.5}]})
    for version in ("1.0", "2.6"):
        pq.write_table(table, tmp_path / "other.parquet", version=version, row_group_size=2, write_page_index=True)
        found = read_footer(tmp_path / "other.parquet")
        assert (found.rows, found.unpacked, dict(found.values)) == of_pyarrow(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "the mark at its end is missing"),
        (b"PAR1" * 2, "the mark at its end is missing"),
        (b"PAR1" + b"\0" * 20 + b"PARE", "the mark at its end is missing"),
        (b"PAR1" + (100).to_bytes(4, "little") + b"PAR1", "a footer of 100 bytes"),
        (b"PAR1" + b"\x19" * 900 + (900).to_bytes(4, "little") + b"PAR1", "garbled footer"),
        (b"PAR1" + b"\x1c" * 900 + (900).to_bytes(4, "little") + b"PAR1", "nested too deeply"),
        (b"PAR1\x16\x02\x06\x02\x02\0" + (6).to_bytes(4, "little") + b"PAR1", "field 1 comes twice"),
        (b"PAR1\x18\xff\xff\xff\xff\x0f\0" + (7).to_bytes(4, "little") + b"PAR1", "a text of 4294967295 bytes"),
        (b"PAR1\x19\xf5\xff\xff\xff\xff\x0f\0" + (8).to_bytes(4, "little") + b"PAR1", "a list of 4294967295"),
        (b"PAR1\x16" + b"\xff" * 20 + b"\0" + (22).to_bytes(4, "little") + b"PAR1", "more than 64 bits"),
        (b"PAR1\x16\x02\0\0" + (4).to_bytes(4, "little") + b"PAR1", "garbled footer"),
        (b"PAR1\x36\x03\x19\x0c\0" + (5).to_bytes(4, "little") + b"PAR1", "a size below zero"),
        (b"PAR1\x36\x02\x19\x0c\0\0" + (6).to_bytes(4, "little") + b"PAR1", "1 bytes behind its end"),
    ],
)
def test_what_is_no_footer_is_one_line(tmp_path, raw, says):
    (tmp_path / "x.parquet").write_bytes(raw)
    with pytest.raises(ValueError, match=says):
        read_footer(tmp_path / "x.parquet")


def test_a_spoiled_file_is_refused_or_read_and_never_ends_the_process(stats):
    whole, draw, said = stats.read_bytes(), np.random.default_rng(0), []
    footer = int.from_bytes(whole[-8:-4], "little")
    for number in range(300):
        spoiled = bytearray(whole[: draw.integers(len(whole))] if number % 10 == 0 else whole)
        if number % 10:
            for at in draw.integers(len(whole) - 8 - footer, len(whole), size=3):
                spoiled[at] = draw.integers(256)
        stats.write_bytes(spoiled)
        for ask in (tracefile.read_trace, lambda folder: tracefile.histograms(folder, {"img_in"})):
            try:
                ask(stats.parent)
            except UsageError as error:
                said.append(str(error))
    assert len(said) > 300
    assert all(line.isprintable() for line in said)


def test_nobody_asks_pyarrow_for_the_metadata_of_a_column():
    # What is wrong in them ends the process: a C++ exception that nothing catches.
    sources = {path.name: path.read_text() for path in Path(parity.__file__).parent.rglob("*.py")}
    assert [name for name, text in sources.items() if ".row_group(" in text] == []
