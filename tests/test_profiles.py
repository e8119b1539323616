"""Profiles of the error along the axes: measured, written, read back, resumed, and hostile files refused."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from mini import write_checkpoint, write_suite
from safetensors.numpy import save_file
from test_lockstep import run as run_toy
from toy import ToyPort

from parity import profiles
from parity import run as engine
from parity.cli import call
from parity.errors import UsageError
from parity.runfolder import from_json, read_run, to_json

UNIT = "square.float32"


PORT = """
from mlx_impl.port import MlxPort


class Port(MlxPort):
    def open(self, *args, **options):
        session = super().open(*args, **options)
        right = session.run

        def run(stage, state, want, **more):
            after, values = right(stage, state, want, **more)
            if "block.00.img.attn" in values:
                values["block.00.img.attn"] = values["block.00.img.attn"].copy()
                values["block.00.img.attn"][:, 2] += 0.5
            return after, values

        session.run = run
        return session
"""


@pytest.mark.parametrize("shape", [(1, 30, 48), (2, 200, 4, 16), (3, 100), (77,), (2, 5, 1, 9, 11), (40, 16, 2)])
def test_every_axis_longer_than_one_has_the_root_mean_squares_of_its_bins(shape):
    draw = np.random.default_rng(1)
    truth = draw.standard_normal(shape)
    value = (truth + draw.standard_normal(shape) / 9).astype(np.float32)
    found = profiles.measure(value, truth)
    assert [axis.axis for axis in found] == [i for i, n in enumerate(shape) if n > 1]
    for axis in found:
        assert (axis.axes, axis.length, axis.bad) == (len(shape), shape[axis.axis], None)
        bins = min(axis.length, 64)
        moved_off, moved_truth = (np.moveaxis(x, axis.axis, 0) for x in (value.astype(float) - truth, truth))
        for i in range(bins):
            part = slice(i * axis.length // bins, (i + 1) * axis.length // bins)
            single = [math.sqrt(np.mean(one**2)) for one in moved_off[part]]
            assert axis.error[i] == pytest.approx(math.sqrt(np.mean(moved_off[part] ** 2)), rel=1e-6)
            assert axis.truth[i] == pytest.approx(math.sqrt(np.mean(moved_truth[part] ** 2)), rel=1e-6)
            assert axis.peak[i] == pytest.approx(max(single), rel=1e-6)
        assert axis.worst == np.argmax([np.mean(one**2) for one in moved_off])


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_the_size_of_the_blocks_changes_nothing(monkeypatch, block):
    truth = np.random.default_rng(2).standard_normal((2, 33, 65))
    value = truth * 1.01
    value[1, 3, 4] = math.nan
    whole = profiles.measure(value, truth)
    monkeypatch.setattr(profiles, "_BLOCK", block)
    for one, other in zip(whole, profiles.measure(value, truth), strict=True):
        assert one.worst == other.worst
        for key in ("error", "peak", "truth", "bad"):
            np.testing.assert_allclose(getattr(one, key), getattr(other, key), rtol=1e-6)


def test_one_wrong_channel_is_not_diluted_and_one_wrong_token_is_on_the_other_axis():
    truth = np.ones((1, 256, 3072))
    value = truth.copy()
    value[..., 1000] += 0.5
    rows, channels = profiles.measure(value, truth)
    assert channels.worst == 1000
    assert channels.peak.max() == channels.peak[1000 * 64 // 3072] == pytest.approx(0.5)
    assert channels.error.max() == pytest.approx(0.5 / math.sqrt(48))
    assert rows.error.min() == pytest.approx(rows.error.max())
    value = truth.copy()
    value[:, 17] += 0.5
    rows, channels = profiles.measure(value, truth)
    assert rows.worst == 17
    assert np.flatnonzero(rows.error).tolist() == [17 // 4]
    assert channels.error.min() == pytest.approx(channels.error.max())


def test_values_that_are_not_finite_are_counted_and_left_out():
    truth = np.ones((4, 8))
    value = truth + 0.25
    value[2, 5], value[2, 6], value[3] = math.nan, -math.inf, math.inf
    rows, columns = profiles.measure(value, truth)
    assert rows.bad.tolist() == [0, 0, 2, 8]
    assert rows.error.tolist() == [0.25, 0.25, 0.25, 0.0]
    assert rows.truth.tolist() == [1, 1, 1, 0]
    assert rows.worst == 3
    assert columns.bad.tolist() == [1, 1, 1, 1, 1, 2, 2, 1]
    assert columns.worst == 5
    assert columns.error.tolist() == [0.25] * 8
    # Where the truth itself is not finite there is no error to speak of.
    truth[0] = math.inf
    assert profiles.measure(value, truth)[0].bad.tolist() == [8, 0, 2, 8]


def test_every_dtype_and_shape_that_checkpoints_have():
    for dtype in (ml_dtypes.bfloat16, np.float16, np.int64, bool):
        value = np.array([[1, 0], [1, 1]]).astype(dtype)
        rows, _ = profiles.measure(value, np.array([[1, 0], [0, 0]]).astype(dtype))
        assert rows.error.tolist() == [0.0, 1.0]
    assert profiles.measure(np.array(2.0), np.array(1.0)) == []
    assert profiles.measure(np.ones((1, 1)), np.ones((1, 1))) == []
    assert profiles.measure(np.ones((0, 3)), np.ones((0, 3))) == []
    with pytest.raises(ValueError, match="differ"):
        profiles.measure(np.ones((2, 3)), np.ones((3, 2)))


def test_the_arrays_that_are_measured_stay_as_they_are():
    truth = np.full((3, 5), math.inf)
    value = np.full((3, 5), 2.0)
    profiles.measure(value, truth)
    assert (truth == math.inf).all()
    assert (value == 2.0).all()


@pytest.mark.parametrize(
    ("name", "axes", "titles"),
    [
        ("block.07.img.attn", 3, "batch row channel"),
        ("block.07.img.q", 4, "batch row head channel"),
        ("vision.block.03.k", 3, "row head channel"),
        ("temb", 2, "row channel"),
        ("rope.img", 3, "row|pair|cos, sin"),
        ("pipeline.image", 4, "batch row column channel"),
        ("vae.decode.conv_in", 5, "batch channel frame row column"),
        ("vae.encode.mid.attn.norm", 4, "batch channel row column"),
        ("pipeline.timesteps", 1, "channel"),
        ("x" * 5000, 6, "batch batch batch batch row channel"),
    ],
)
def test_axes_have_titles(name, axes, titles):
    assert profiles.titles(name, axes) == tuple(titles.split("|" if "|" in titles else None))
    assert len(profiles.titles(name, axes)) == axes


def test_a_unit_at_parity_has_none_and_a_wrong_checkpoint_has_them_in_both_modes():
    _, results = run_toy()
    assert all(not of for result in results.values() for of in result.profiles.values())

    def spoil(x):
        x = x.copy()
        x[:, 3] += np.float32(0.5)
        return x

    judged, results = run_toy(ToyPort({"mid": spoil}))
    for mode, rows in judged.items():
        found = results["block.00"].profiles[mode]
        assert set(found) == {name for name, row in rows.items() if row["worst"] and row["stage"] == "block.00"}
        by_axis = {axis.axis: axis for axis in found["mid"]}
        assert by_axis[1].worst == 3
        assert by_axis[1].error[3] == pytest.approx(0.5, rel=1e-5)
        assert by_axis[2].error == pytest.approx(np.full(16, 0.5 / math.sqrt(16)), rel=1e-5)
    assert "img_in" not in results["embed"].profiles["isolated"]


def packed(value, truth):
    return from_json(json.loads(json.dumps(to_json([axis.packed() for axis in profiles.measure(value, truth)]))))


def wrong(shape=(1, 100, 8), seed=0):
    draw = np.random.default_rng(seed)
    return draw.standard_normal(shape).astype(np.float32), draw.standard_normal(shape)


def test_what_is_journalled_and_written_is_read_back(tmp_path):
    value, truth = wrong()
    value[0, 60, 2] = math.nan
    stages = [
        {"isolated": {"img_in": packed(value, truth)}, "accumulated": {}},
        {"isolated": {}, "accumulated": {"block.00.img.q": packed(*wrong((2, 5, 3, 4)))}},
    ]
    profiles.write(tmp_path / "trace" / UNIT, stages)
    found = profiles.of_unit(tmp_path, UNIT)
    assert {mode: list(of) for mode, of in found.items()} == {
        "isolated": ["img_in"], "accumulated": ["block.00.img.q"],
    }  # fmt: skip
    rows, channels = found["isolated"]["img_in"]
    assert (rows["title"], rows["axis"], rows["axes"], rows["length"], rows["worst"]) == ("row", 1, 3, 100, 60)
    measured = profiles.measure(value, truth)[0]
    for key in ("error", "peak", "truth", "bad"):
        assert rows[key] == getattr(measured, key).tolist()
    assert (channels["title"], sum(channels["bad"])) == ("channel", 1)
    titles = [axis["title"] for axis in found["accumulated"]["block.00.img.q"]]
    assert titles == ["batch", "row", "head", "channel"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert profiles.of_unit(tmp_path, UNIT, {"img_in", "final"}) == {"isolated": found["isolated"]}
    assert profiles.of_unit(tmp_path, UNIT, ()) == {}


def test_what_is_beyond_float32_is_no_figure(tmp_path):
    stages = [{"isolated": {"x": packed(np.full((2, 3), 1e100), np.zeros((2, 3)))}}]
    profiles.write(tmp_path / "trace" / UNIT, stages)
    [rows, _] = profiles.of_unit(tmp_path, UNIT)["isolated"]["x"]
    assert rows["error"] == [None, None]


def test_nothing_to_write_is_no_file_and_too_much_is_cut(tmp_path, monkeypatch):
    folder = tmp_path / "trace" / UNIT
    profiles.write(folder, [{"isolated": {}, "accumulated": {}}])
    assert not folder.exists()
    assert profiles.of_unit(tmp_path, UNIT) == {}
    monkeypatch.setattr(profiles, "MOST", 5)
    profiles.write(folder, [{"isolated": {f"x{i}": packed(*wrong()) for i in range(9)}}])
    assert list(profiles.of_unit(tmp_path, UNIT)["isolated"]) == ["x0", "x1", "x2"]


def test_a_case_may_be_called_anything(tmp_path):
    for unit in ("two words.float32", "größer.float32", "[red].bfloat16"):
        profiles.write(tmp_path / "trace" / unit, [{"isolated": {"x": packed(*wrong())}}])
        assert list(profiles.of_unit(tmp_path, unit)["isolated"]) == ["x"]


@pytest.mark.parametrize("unit", ["../outside", "a/b", "", ".", "..", "x" * 300, "a\0b", "\ud800", "é" * 200])
def test_a_unit_from_elsewhere_leads_nowhere(tmp_path, unit):
    for folder in ("outside", "trace", ".", "trace/a/b"):
        profiles.write(tmp_path / folder, [{"isolated": {"x": packed(*wrong())}}])
    assert profiles.of_unit(tmp_path, unit) == {}


ROW = ["isolated", "x", 1, 3, 4, 0]
FLOATS = dict.fromkeys(("error", "peak", "truth"), np.arange(4, dtype=np.float32))


def spoil_row(place, value):
    return {"rows": [[*ROW[:place], value, *ROW[place + 1 :]]]}


HOSTILE = {
    "mode": (spoil_row(0, "</script>\u202e"), {}), "name": (spoil_row(1, None), {}), "axis": (spoil_row(2, 3), {}),
    "axes": (spoil_row(3, 10**9), {}), "negative": (spoil_row(4, -1), {}), "long": (spoil_row(4, 1 << 62), {}),
    "longer": (spoil_row(4, 10**6), {}), "worst": (spoil_row(5, 4), {}), "float": (spoil_row(5, 0.5), {}),
    "bool": (spoil_row(5, True), {}), "no list": ({"rows": {"x": 1}}, {}), "no rows": ({}, {}),
    "short row": ({"rows": [ROW[:5]]}, {}), "text": ({"rows": ["isolated"]}, {}), "not an object": ([ROW], {}),
    "too many": ({"rows": [ROW] * (profiles.MOST + 1)}, {}), "two rows": ({"rows": [ROW, ROW]}, {}),
    "short": ({"rows": [ROW]}, {"peak": np.zeros(3, np.float32)}),
    "shape": ({"rows": [ROW]}, {"peak": np.zeros((4, 1))}),
    "dtype": ({"rows": [ROW]}, {"truth": np.zeros(4)}), "bad": ({"rows": [ROW]}, {"bad": np.zeros(4, np.float32)}),
}  # fmt: skip


def write_raw(path, index, **tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(FLOATS | tensors, path, {profiles.KEY: json.dumps(index)})


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_file_that_is_something_else_is_one_line(tmp_path, what):
    path = tmp_path / "trace" / UNIT / profiles.FILE
    write_raw(path, {"rows": [ROW]}, more=np.zeros(3))
    assert profiles.of_unit(tmp_path, UNIT)["isolated"]["x"][0]["worst"] == 0
    index, tensors = HOSTILE[what]
    write_raw(path, index, **tensors)
    with pytest.raises(UsageError) as raised:
        profiles.of_unit(tmp_path, UNIT)
    assert str(raised.value).startswith(f"trace/{UNIT}/{profiles.FILE}: ")
    assert len(str(raised.value)) < 300
    assert str(raised.value).isprintable()
    assert ("at most" in str(raised.value)) == (what in ("too many", "no rows", "no list"))


def test_metadata_that_are_not_there_or_no_json(tmp_path):
    path = tmp_path / "trace" / UNIT / profiles.FILE
    path.parent.mkdir(parents=True)
    for metadata in ({}, {profiles.KEY: ""}, {profiles.KEY: "[" * 100_000}, {profiles.KEY: '{"rows": NaN}'}):
        save_file(FLOATS, path, metadata)
        with pytest.raises(UsageError, match=profiles.FILE):
            profiles.of_unit(tmp_path, UNIT)
    save_file({key: array for key, array in FLOATS.items() if key != "peak"}, path,
              {profiles.KEY: json.dumps({"rows": [ROW]})})  # fmt: skip
    with pytest.raises(UsageError, match="peak is missing"):
        profiles.of_unit(tmp_path, UNIT)


def test_names_from_elsewhere_are_given_as_they_are_and_never_break(tmp_path):
    names = ["</script>\u202e", "step.00." * 1300 + "x", "", "../../x", "\ud800"]
    write_raw(tmp_path / "trace" / UNIT / profiles.FILE, {"rows": [[ROW[0], name, *ROW[2:]] for name in names]},
              **{key: np.tile(array, len(names)) for key, array in FLOATS.items()})  # fmt: skip
    found = profiles.of_unit(tmp_path, UNIT)["isolated"]
    assert list(found) == names
    assert found[""][0]["error"] == [0, 1, 2, 3]


def test_files_cut_off_or_spoiled_are_refused_or_read_and_never_break(tmp_path):
    path = tmp_path / "trace" / UNIT / profiles.FILE
    profiles.write(path.parent, [{"isolated": {f"x{i}": packed(*wrong(seed=i)) for i in range(4)}}])
    whole, draw = path.read_bytes(), np.random.default_rng(4)
    said = []
    for number in range(400):
        spoiled = bytearray(whole[: draw.integers(len(whole))] if number % 3 == 0 else whole)
        # The header is at the front, and most of what can go wrong is in it.
        for at in draw.integers(min(len(spoiled), 900), size=3) if spoiled else ():
            spoiled[at] = draw.integers(256)
        path.write_bytes(spoiled)
        try:
            profiles.of_unit(tmp_path, UNIT)
        except UsageError as error:
            said.append(str(error))
    assert len(said) > 200
    assert all(line.isprintable() and profiles.FILE in line for line in said)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="empty file"):
        profiles.of_unit(tmp_path, UNIT)


def test_a_link_out_of_the_run_folder_is_not_followed(tmp_path):
    profiles.write(tmp_path / "outside", [{"isolated": {"x": packed(*wrong())}}])
    (tmp_path / "run" / "trace").mkdir(parents=True)
    (tmp_path / "run" / "trace" / UNIT).symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="leads out of the run folder"):
        profiles.of_unit(tmp_path / "run", UNIT)
    (tmp_path / "link").symlink_to(tmp_path)
    assert profiles.of_unit(tmp_path / "link" / "run", "square.bfloat16") == {}


def test_a_file_too_large_is_not_opened(tmp_path, monkeypatch):
    profiles.write(tmp_path / "trace" / UNIT, [{"isolated": {"x": packed(*wrong())}}])
    monkeypatch.setattr(profiles, "FILE_BYTES", 100)
    with pytest.raises(UsageError, match="against a limit of 100"):
        profiles.of_unit(tmp_path, UNIT)


@pytest.fixture
def cut_off(tmp_path, monkeypatch, capsys):
    """Runs of a wrong port: ``go(out)``, and ``cut(out)``, which ends after two stages."""
    port = tmp_path / "wrong_port.py"
    port.write_text(PORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite, weights = write_suite(tmp_path), write_checkpoint(tmp_path / "weights")
    iterate = engine.iterate

    def go(out):
        return call(["run", str(suite), "--weights", str(weights), "--out", str(tmp_path / out),
                     "--candidate", "wrong_port:Port"])  # fmt: skip

    def cut(out):
        seen = []

        def some(lockstep, chains, done):
            for found in iterate(lockstep, chains, done):
                if len(seen) == 2:
                    raise KeyboardInterrupt
                seen.append(found[0])
                yield found

        with monkeypatch.context() as patched:
            patched.setattr(engine, "iterate", some)
            assert go(out) == 130, capsys.readouterr().err
        return tmp_path / out / "work" / "one.float32.jsonl"

    return go, cut


def test_a_run_that_was_cut_off_and_resumed_has_the_same_profiles(tmp_path, cut_off, capsys):
    go, cut = cut_off
    assert go("whole") == 1, capsys.readouterr().err
    whole = profiles.of_unit(tmp_path / "whole", "one.float32")
    for case in read_run(tmp_path / "whole")["cases"]:
        assert set(whole[case["mode"]]) == {row["name"] for row in case["checkpoints"] if row["worst"]}
    [rows] = [axis for axis in whole["isolated"]["block.00.img.attn"] if axis["title"] == "row"]
    assert rows["worst"] == 2
    cut("cut")
    assert go("cut") == 1
    assert profiles.of_unit(tmp_path / "cut", "one.float32") == whole


def without(journal, number, *keys):
    """A line of a journal without some keys, as an earlier version wrote it."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[number] = {key: value for key, value in lines[number].items() if key not in keys}
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_was_cut_off_before_there_were_profiles_is_taken_up(tmp_path, cut_off, capsys):
    go, cut = cut_off
    journal = cut("cut")
    for number in range(2):
        without(journal, number, "profiles")
    assert go("cut") == 1, capsys.readouterr().err
    assert profiles.of_unit(tmp_path / "cut", "one.float32") == {}
    [row] = [row for case in read_run(tmp_path / "cut")["cases"] if case["mode"] == "isolated"
             for row in case["checkpoints"] if row["source"]]  # fmt: skip
    assert row["worst"]
    assert (tmp_path / "cut" / "report.html").is_file()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda journal: without(journal, 1, "stats", "seconds"), "line 2 lacks stats, seconds, another version wrote"),
        (lambda journal: journal.write_text("{\n[]\n"), "garbled"),
        (lambda journal: journal.write_text("1\n[]\n"), "line 1 lacks everything"),
        (lambda journal: journal.write_bytes(b"\xff\n\xff\n"), "garbled"),
        (lambda journal: journal.with_suffix(".state.safetensors").write_bytes(b"\0" * 30), "garbled"),
    ],
)
def test_a_journal_that_cannot_be_taken_up_is_said_in_one_line(cut_off, capsys, spoil, said):
    go, cut = cut_off
    journal = cut("cut")
    spoil(journal)
    capsys.readouterr()
    assert go("cut") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "one.float32" in last
    assert said in last
    assert "--force begins it again" in last
