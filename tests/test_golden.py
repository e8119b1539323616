"""Golden traces: recorded from the reference, read back whole, refused where they are not."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from mini import write_checkpoint, write_suite
from safetensors import safe_open

from parity import trace
from parity.casefile import case_hash
from parity.cli import call
from parity.errors import UsageError
from parity.golden import read_golden
from parity.ports import open_port
from parity.rounding import round_state
from parity.runfolder import read_run
from parity.sketch import Spec, sketch
from parity.suite import load


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, weights, suite):
    """One golden trace of the mini model, accumulated, with two checkpoints kept whole."""
    out = tmp_path_factory.mktemp("golden") / "g"
    kept = ["--keep", "block.01.img.*", "--keep", "final"]
    assert call(["trace", "record", str(suite), "--weights", str(weights), "--out", str(out), *kept]) == 0
    return out


@pytest.fixture
def copied(tmp_path, recorded):
    shutil.copytree(recorded, tmp_path / "g")
    return tmp_path / "g" / "one.float32"


def record(suite, weights, out, *more):
    return call(["trace", "record", str(suite), "--weights", str(weights), "--out", str(out), *more])


def test_it_holds_a_sketch_of_the_truth_and_the_floor_of_a_run(recorded, suite, weights, tmp_path):
    golden = read_golden(recorded)
    assert len(golden.graph.expected) == len(golden.floors) == 2 * 18 + 14 - 2
    # The truth, computed again by the port protocol alone.
    planned = load(str(suite)).cases[0]
    session = open_port("reference").open(weights, dtype="float64", hold="float32")
    inputs = planned.case.inputs(golden.about["configs"], "float32")
    assert golden.about["case_hash"] == case_hash(inputs)
    state = round_state(inputs, np.dtype(np.float64))
    for stage in golden.graph.stages:
        session.load(stage)
        state, values = session.run(stage, state, golden.graph.names_of(stage))
        for name, value in values.items():
            np.testing.assert_allclose(golden.trace.sketches[name], sketch(value), rtol=1e-12, atol=1e-12)
            assert golden.floors[name].truth_rms == pytest.approx(np.sqrt(np.mean(value**2)))
            assert golden.shape(name) == value.shape
            # Statistics are of the reference in the run's dtype, as a port's are.
            assert golden.trace.stats[name]["dtype"] == "float32"
    np.testing.assert_allclose(golden.values("final"), values["final"], rtol=1e-14)
    # The floors are those that a run of the same suite judges with.
    assert call(["run", str(suite), "--weights", str(weights), "--detail", "block", "--out", str(tmp_path / "r")]) == 0
    case = next(one for one in read_run(tmp_path / "r")["cases"] if one["mode"] == "accumulated")
    for row in case["checkpoints"]:
        floor = golden.floors[row["name"]]
        for key in ("floor", "peak_floor", "precision"):
            assert getattr(floor, key) == pytest.approx(row[key], rel=1e-6), (row["name"], key)
        assert floor.floor_by == row["floor_by"]


def test_a_file_of_whole_values_holds_its_own(copied):
    one, other = (trace.tensor_file(copied, name) for name in ("final", "block.01.img.attn"))
    shutil.copyfile(other, one)
    with pytest.raises(UsageError, match=r"holds block.01.img.attn, expected final"):
        read_golden(copied).values("final")


def test_only_what_was_asked_for_is_kept_whole(recorded):
    golden = read_golden(recorded)
    assert golden.values("block.01.img.attn") is not None
    assert golden.values("block.00.img.attn") is None
    assert golden.values("../../etc/passwd") is None


def test_isolated_mode_has_floors_of_its_own(suite, weights, recorded, tmp_path, capsys):
    assert record(suite, weights, tmp_path / "i", "--mode", "isolated") == 0
    one, other = read_golden(tmp_path / "i"), read_golden(recorded)
    assert (one.about["mode"], other.about["mode"]) == ("isolated", "accumulated")
    assert one.floors["final"].floor < other.floors["final"].floor
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "i" / "one.float32")]


def test_a_ports_own_trace_is_no_golden_one(suite, weights, tmp_path):
    assert record(suite, weights, tmp_path / "p", "--port", "mlx_impl", "--mode", "isolated") == 0
    with pytest.raises(UsageError, match="without the reference's floors"):
        read_golden(tmp_path / "p")


def test_another_sketch_is_recorded_and_said(suite, weights, tmp_path):
    assert record(suite, weights, tmp_path / "s", "--buckets", "64", "--seed", "9") == 0
    golden = read_golden(tmp_path / "s")
    assert golden.spec == Spec(64, 9)
    assert golden.trace.sketches["final"].shape == (64,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--buckets", "100"), "power of two"),
        (("--keep", "block.07.*"), "no checkpoint of one is named so"),
        (("--case", "two"), "no case two"),
        (("--mode", "fast"), "Invalid value"),
    ],
)
def test_mistakes_are_one_line(more, said, suite, weights, tmp_path, capsys):
    assert record(suite, weights, tmp_path / "x", *more) == 2
    err = capsys.readouterr().err
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten_unasked(suite, weights, copied, capsys):
    out = copied.parent
    before = (copied / trace.STATS).read_bytes()
    assert record(suite, weights, out) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert (copied / trace.STATS).read_bytes() == before
    (copied / "notes.txt").write_text("mine")
    assert record(suite, weights, out, "--force") == 2
    assert (copied / "notes.txt").read_text() == "mine"
    (copied / "notes.txt").unlink()
    assert record(suite, weights, out, "--force") == 0


def edit(folder, **changes):
    path = folder / trace.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graph": {"name": "nothing"}}, "graph describes none"),
        ({"graph": 7}, "graph describes none"),
        ({"graph": {"name": "transformer", "num_layers": 3, "level": "block"}}, "its graph expects 66 in order"),
        ({"graph": {"name": "transformer", "num_layers": 10**9, "level": "block"}}, "graph describes none"),
        ({"mode": "backwards"}, "mode backwards"),
        ({"case": {}}, "names no case"),
        ({"case_hash": 3}, "names no case"),
        ({"schema": 99}, "schema is 99"),
        ({"side": "candidate"}, "without the reference's floors"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(copied, changes, said):
    edit(copied, **changes)
    with pytest.raises(UsageError, match=said):
        read_golden(copied)


def test_sketches_that_are_missing_or_odd_are_refused(copied):
    path = copied / trace.SKETCHES
    with safe_open(path, framework="np") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a mapping)
    trace.write_sketches(path, {key: x for key, x in found.items() if key != "final"}, Spec())
    with pytest.raises(UsageError, match="1 checkpoints lack a floor or a sketch, final first"):
        read_golden(copied)
    trace.write_sketches(path, found | {"final": found["final"][:5]}, Spec())
    with pytest.raises(UsageError, match=r"final is F64 \[5\], expected F64 or F32 \[2048\]"):
        read_golden(copied)
    trace.write_sketches(path, found | {"other": found["final"]}, Spec())
    with pytest.raises(UsageError, match="other is not in stats"):
        read_golden(copied)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UsageError, match=r"sketches\.safetensors"):
        read_golden(copied)


def test_floors_that_are_impossible_are_refused(copied):
    table = pq.read_table(copied / trace.STATS)
    place = table.schema.get_field_index("floor")
    negative = table.set_column(place, table.schema.field(place), [[-1.0] * table.num_rows])
    pq.write_table(negative, copied / trace.STATS)
    with pytest.raises(UsageError, match="is negative"):
        read_golden(copied)


def test_which_of_several_is_asked(copied, tmp_path):
    shutil.copytree(copied, copied.parent / "two.float32")
    with pytest.raises(UsageError, match=r"2 traces are here \(one.float32, two.float32\); name one"):
        read_golden(copied.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no trace here"):
        read_golden(tmp_path / "empty")
    with pytest.raises(UsageError, match="there is no such folder"):
        read_golden(tmp_path / "nowhere")
    (tmp_path / "dump.safetensors").touch()
    with pytest.raises(UsageError, match="a file; expected a golden trace"):
        read_golden(tmp_path / "dump.safetensors")
