"""Histograms of the mode that a trace is not of: measured, journalled, read back; hostile files refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_lockstep import run as run_toy
from toy import ToyPort

from parity import histograms
from parity.errors import UsageError
from parity.runfolder import from_json, to_json
from parity.stats import BINADES

UNIT = "square.float32"


def counts(at=40, count=7):
    made = [0] * BINADES
    made[at] = count
    return made


def test_of_the_other_mode_what_is_no_match_has_one():
    _, results = run_toy(ToyPort({"mid": lambda x: x * np.float32(1.5)}))
    found = {stage: one.histograms for stage, one in results.items()}
    # Fed the reference's values, the head is right, and so is the sum of what it is made of in the first stage.
    assert found["embed"] == found["head"] == {"isolated": {}}
    assert set(found["block.00"]["isolated"]) == {"mid", "out"}
    _, clean = run_toy(ToyPort())
    assert all(one.histograms == {"isolated": {}} for one in clean.values())
    _, alone = run_toy(ToyPort({"mid": lambda x: x * np.float32(1.5)}), modes=("isolated",))
    assert alone["block.00"].histograms == {}
    kept = found["block.00"]["isolated"]["mid"]
    assert kept == alone["block.00"].stats["candidate"]["mid"].histogram


def test_what_is_written_is_read_back(tmp_path):
    stages = [{"isolated": {"x": counts(1)}}, {}, {"isolated": {"y": counts(2)}, "accumulated": {"x": counts(3)}}]
    histograms.write(tmp_path / "trace" / UNIT, from_json(json.loads(json.dumps(to_json(stages)))))
    assert histograms.of_unit(tmp_path, UNIT) == {
        "isolated": {"x": counts(1), "y": counts(2)}, "accumulated": {"x": counts(3)},
    }  # fmt: skip
    assert histograms.of_unit(tmp_path, UNIT, {"y"}) == {"isolated": {"y": counts(2)}}
    assert histograms.of_unit(tmp_path, "other") == {}


def test_without_any_no_file_is_written(tmp_path):
    histograms.write(tmp_path / "trace" / UNIT, [{}, {"isolated": {}}])
    assert not (tmp_path / "trace").exists()


def test_so_many_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(histograms, "MOST", 3)
    histograms.write(tmp_path / "trace" / UNIT, [{"isolated": {f"x{i}": counts() for i in range(5)}}])
    assert list(histograms.of_unit(tmp_path, UNIT)["isolated"]) == ["x0", "x1", "x2"]


ROWS = {"rows": [["isolated", "x"]]}
WHOLE = np.zeros((1, BINADES), np.int64)


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        ({}, {"counts": WHOLE}, "its metadata have no parity.histograms"),
        ({"rows": 3}, {"counts": WHOLE}, "no list of at most"),
        ({"rows": [["nowhere", "x"]]}, {"counts": WHOLE}, "expected isolated or accumulated, and a name"),
        ({"rows": [["isolated", 3]]}, {"counts": WHOLE}, "expected isolated or accumulated, and a name"),
        ({"rows": [[["isolated"], "x"]]}, {"counts": WHOLE}, "expected isolated or accumulated, and a name"),
        (ROWS, {"other": WHOLE}, "counts is missing"),
        (ROWS, {"counts": WHOLE.astype(np.int32)}, r"counts is I32 \[1, 82\], expected I64 \[1, 82\]"),
        (ROWS, {"counts": WHOLE[:, 1:]}, r"counts is I64 \[1, 81\]"),
        (ROWS, {"counts": WHOLE - 1}, "a count below 0"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, metadata, tensors, said):
    place = tmp_path / "trace" / UNIT
    place.mkdir(parents=True)
    about = {histograms.KEY: json.dumps(metadata)} if metadata else {"nothing": "here"}
    save_file(tensors, place / histograms.FILE, about)
    with pytest.raises(UsageError, match=said):
        histograms.of_unit(tmp_path, UNIT)


def test_files_cut_off_too_large_or_elsewhere_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "trace" / UNIT
    histograms.write(place, [{"isolated": {"x": counts()}}])
    whole = (place / histograms.FILE).read_bytes()
    for size in (0, 4, 30, len(whole) - 100):
        (place / histograms.FILE).write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"trace/square\.float32/histograms\.safetensors"):
            histograms.of_unit(tmp_path, UNIT)
    (place / histograms.FILE).write_bytes(whole)
    assert histograms.of_unit(tmp_path, UNIT)
    assert histograms.of_unit(tmp_path / "trace" / "x", "../square.float32") == {}
    (tmp_path / "run" / "trace").mkdir(parents=True)
    (tmp_path / "run" / "trace" / UNIT).symlink_to(place)
    with pytest.raises(UsageError, match="leads out of the run folder"):
        histograms.of_unit(tmp_path / "run", UNIT)
    monkeypatch.setattr(histograms, "FILE_BYTES", 100)
    with pytest.raises(UsageError, match="against a limit of 100"):
        histograms.of_unit(tmp_path, UNIT)
