"""Traces come back as they were written, and a folder with a manifest is whole."""

import json
import math
from dataclasses import asdict

import ml_dtypes
import numpy as np
import pytest

from parity import trace
from parity.errors import ResourceError
from parity.stats import describe

ABOUT = {"side": "candidate", "dtype": "float32", "config": {"num_layers": 2}}


def stats_of(**arrays):
    return {name: asdict(describe(x, chunks=6 if name.endswith("mod") else 0)) for name, x in arrays.items()}


@pytest.fixture
def stats():
    draw = np.random.default_rng(0)
    broken = np.array([[1.0, np.nan, np.inf, -np.inf, 0.0, -3.0]], np.float32)
    return stats_of(
        z_last_by_name_first_made=draw.standard_normal((1, 4, 8)).astype(np.float32),
        mod=draw.standard_normal((1, 12)).astype(ml_dtypes.bfloat16),
        broken=broken,
        nothing_finite=np.full((2, 2), np.nan, np.float32),
        zeros=np.zeros((3,), np.float32),
        a=np.ones((1, 1), np.float32),
    )


def plain(value):
    """As Parquet gives it: lists for tuples, and NaN made equal to itself."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def test_what_is_written_comes_back_to_the_last_bit_and_in_order(tmp_path, stats):
    trace.write(tmp_path / "deep" / "trace", stats, ABOUT)
    found = trace.read_stats(tmp_path / "deep" / "trace")
    assert list(found) == list(stats)
    assert plain(found) == plain(stats)


def test_figures_that_are_not_finite_are_kept_apart(tmp_path, stats):
    trace.write(tmp_path, stats, ABOUT)
    found = trace.read_stats(tmp_path)
    assert (found["broken"]["nan"], found["broken"]["pos_inf"], found["broken"]["neg_inf"]) == (1, 1, 1)
    assert found["broken"]["max"] == 1.0
    assert math.isnan(found["nothing_finite"]["mean"])
    assert math.isnan(found["nothing_finite"]["absmax"])
    assert found["zeros"]["headroom"] == math.inf
    assert found["zeros"]["zeros"] == 3


def test_ranges_of_chunks_are_kept(tmp_path, stats):
    trace.write(tmp_path, stats, ABOUT)
    found = trace.read_stats(tmp_path)
    assert len(found["mod"]["chunks"]) == 6
    assert found["mod"]["chunks"] == [list(pair) for pair in stats["mod"]["chunks"]]
    assert found["mod"]["dtype"] == "bfloat16"
    assert found["a"]["chunks"] == []


def test_the_manifest_says_schema_order_and_what_it_was_told(tmp_path, stats):
    trace.write(tmp_path, stats, ABOUT)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {"schema": trace.SCHEMA, **ABOUT, "order": list(stats)}


def test_the_manifest_is_written_last(tmp_path, stats, monkeypatch):
    written = []

    def note(path, value):
        written.append((path.name, sorted(p.name for p in tmp_path.iterdir())))

    monkeypatch.setattr(trace, "write_json", note)
    trace.write(tmp_path, stats, ABOUT)
    assert written == [("manifest.json", ["stats.parquet"])]


def test_a_trace_that_was_cut_off_has_no_manifest(tmp_path, stats, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace.pq, "write_table", full)
    with pytest.raises(ResourceError, match="no room on the disk"):
        trace.write(tmp_path, stats, ABOUT)
    assert not (tmp_path / "manifest.json").exists()


def test_a_trace_of_nothing(tmp_path):
    trace.write(tmp_path, {}, ABOUT)
    assert trace.read_stats(tmp_path) == {}
    assert json.loads((tmp_path / "manifest.json").read_text())["order"] == []


def test_every_statistic_has_a_column(stats):
    fields = {field for row in stats.values() for field in row}
    assert fields == set(trace.COLUMNS.names) - {"name"}
