"""``parity compare``: verdicts from sketches, values, statistics and ranges, and what none of them may claim."""

import json
import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from golden_unit import FLOOR, GRAPH, arrays, dump, log, printed, shape_of, write_golden
from safetensors.numpy import save_file

from parity import comparison_trace, profiles, trace
from parity.cli import call
from parity.compare import compare
from parity.errors import UsageError
from parity.golden import read_golden
from parity.imports import open_candidate
from parity.imports.base import Imported, Reading
from parity.panelpage import panels
from parity.plots import render_plots
from parity.report import render_report
from parity.runfolder import read_run
from parity.sketch import DEFAULT, sketch
from parity.stats import describe, error


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return read_golden(write_golden(tmp_path_factory.mktemp("golden") / "square.float32"))


@pytest.fixture
def judged(golden, tmp_path):
    """The rows of a comparison of what `change(name, array)` makes of the reference's values."""

    def go(change=lambda name, x: x, **options):
        made = {name: y for name, x in arrays().items() if (y := change(name, x)) is not None}
        run = compare(golden, open_candidate([dump(tmp_path / "d.safetensors", made)]), **options)
        return run, {row["name"]: row for row in run["cases"][0]["checkpoints"]}

    return go


AT = "block.01.img.attn"


def at(function, where=AT):
    return lambda name, x: function(x) if name == where else x


def noise(x, size):
    return x * (1 + np.random.default_rng(3).standard_normal(x.shape) * size)


def test_equal_values_are_parity(judged):
    run, rows = judged()
    assert run["verdict"] == "parity"
    assert run["counts"]["match"] == run["counts"]["expected"] == len(GRAPH.expected)
    assert {row["evidence"] for row in rows.values()} == {"sketch"}
    assert all(row["uncertainty"] == DEFAULT.half_width for row in rows.values())


@pytest.mark.parametrize(("size", "verdict"), [(1e-6, "match"), (6e-6, "suspect"), (1e-3, "diverged")])
def test_the_error_is_estimated_and_graded(judged, size, verdict):
    run, rows = judged(at(lambda x: noise(x.astype(np.float64), size).astype(np.float32)))
    x = arrays()[AT]
    true = error(noise(x.astype(np.float64), size).astype(np.float32), x).rel_rmse
    assert rows[AT]["rel_rmse"] == pytest.approx(true, rel=0.1)
    assert rows[AT]["excess"] == pytest.approx(true / FLOOR, rel=0.1)
    assert rows[AT]["verdict"] == verdict
    assert run["cases"][0]["sources"] == ([AT] if verdict == "diverged" else [])


def test_a_figure_near_a_limit_is_said_to_be(judged):
    x = arrays()[AT].astype(np.float64)
    step = np.zeros_like(x)
    # One error in each of many buckets, none above the others.
    step.reshape(-1)[:] = np.sign(np.random.default_rng(0).standard_normal(x.size)) * 3e-6 * np.sqrt(np.mean(x**2))
    _, rows = judged(at(lambda y: x + step))
    assert rows[AT]["excess"] == pytest.approx(3, rel=0.08)
    if abs(rows[AT]["excess"] - 3) <= 3 * DEFAULT.half_width:
        assert "within its uncertainty of the limit 3" in rows[AT]["reason"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.roll(x, 1, axis=1),
        lambda x: np.roll(x, 1, axis=-1),
        lambda x: x[..., ::-1],
        lambda x: -x,
        lambda x: 2 * x,
        lambda x: x + 1,
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, x + np.float32(1e-2) * np.abs(x).max(), x),
        lambda x: np.zeros_like(x),
    ],
    ids=["rows", "channels", "reversed", "sign", "scale", "offset", "one element", "zeros"],
)
def test_what_a_port_gets_wrong_is_seen(judged, change):
    _, rows = judged(at(lambda x: np.ascontiguousarray(change(x))))
    assert rows[AT]["verdict"] == "diverged"
    assert rows[AT]["source"]


def test_a_single_wrong_element_is_judged_by_its_size(golden):
    """Where the mean still matches: one error of 10^-3 of the rms in 200,000 elements of a float32 run."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(200_000)
    y = x + rng.standard_normal(x.size) * FLOOR / 2
    y[777] += 1e-3
    reading = Reading(None, None, None, sketch(y))
    found = _row_of(golden, x, reading)
    assert found["peak"] == pytest.approx(1e-3, rel=0.2)
    assert found["rel_rmse"] < 3 * FLOOR


def _row_of(golden, truth, reading):
    from parity.golden_rows import _of_sketches

    class Stand:
        spec = golden.spec
        trace = type("T", (), {"sketches": {"x": sketch(truth)}})

        @staticmethod
        def shape(name):
            return truth.shape

    return _of_sketches(Stand, "x", reading, trace.Floor(FLOOR, "rounding", 1e-6, FLOOR, float(np.std(truth))))


def test_nothing_that_is_not_finite_matches(judged):
    def put(value):
        def change(x):
            y = x.copy()
            y.reshape(-1)[3] = value
            return y

        return change

    for value in (np.nan, np.inf, -np.inf):
        _, rows = judged(at(put(value)))
        assert rows[AT]["verdict"] == "diverged"
        assert "not finite" in rows[AT]["reason"]


def test_missing_ones_make_it_incomplete(judged):
    run, rows = judged(lambda name, x: None if name == AT else x)
    assert (run["verdict"], rows[AT]["verdict"]) == ("incomplete", "missing")
    assert run["counts"]["missing"] == 1


def test_wrong_shapes_diverge_and_a_batch_axis_does_not(judged):
    run, _ = judged(lambda name, x: x[0] if x.shape[0] == 1 else x)
    assert run["verdict"] == "parity"
    assert any("batch dimension" in note for note in run["notes"])
    _, rows = judged(at(lambda x: x[:, :-1]))
    assert rows[AT]["verdict"] == "diverged"
    assert rows[AT]["reason"] == "shape (1, 23, 32), expected (1, 24, 32)"


def test_kept_values_are_measured(golden, tmp_path):
    folder = tmp_path / "g"
    shutil.copytree(golden.trace.folder, folder)
    x = arrays()[AT]
    (folder / trace.TENSORS).mkdir()
    save_file({AT: x.astype(np.float64)}, trace.tensor_file(folder, AT))
    wrong = arrays() | {AT: noise(x.astype(np.float64), 1e-4).astype(np.float32)}
    run = compare(read_golden(folder), open_candidate([dump(tmp_path / "d.safetensors", wrong)]))
    row = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == AT)
    assert (row["evidence"], row["uncertainty"]) == ("values", None)
    assert row["rel_rmse"] == pytest.approx(error(wrong[AT], x).rel_rmse, rel=1e-6)
    assert row["max_at"] == [int(i) for i in np.unravel_index(np.argmax(np.abs(wrong[AT] - x)), x.shape)]


def port_trace(folder, made, sketched=True, **about):
    stats = {name: vars(describe(x)) for name, x in made.items()}
    sketches = {name: sketch(x) for name, x in made.items()} if sketched else None
    manifest = {"side": "candidate", "case": {"name": "square"}, "dtype": "float32", "mode": "accumulated",
                "component": "transformer", "configs": {}}  # fmt: skip
    trace.write(folder, stats, manifest | about, sketches=sketches)
    return folder


def test_a_ports_trace_is_judged_as_its_tensors_are(golden, tmp_path):
    wrong = arrays() | {AT: noise(arrays()[AT], 1e-3).astype(np.float32)}
    by_trace = compare(golden, open_candidate([port_trace(tmp_path / "t", wrong)]))
    by_tensors = compare(golden, open_candidate([dump(tmp_path / "d.safetensors", wrong)]))
    rows = zip(by_trace["cases"][0]["checkpoints"], by_tensors["cases"][0]["checkpoints"], strict=True)
    for one, other in rows:
        assert one["rel_rmse"] == pytest.approx(other["rel_rmse"], rel=1e-5, abs=1e-12)
        assert one["verdict"] == other["verdict"]


def test_statistics_alone_prove_divergence_and_never_parity(golden, tmp_path):
    run = compare(golden, open_candidate([port_trace(tmp_path / "right", arrays(), sketched=False)]))
    assert run["verdict"] == "incomplete"
    assert run["counts"]["uncertain"] == run["counts"]["expected"]
    wrong = arrays() | {AT: arrays()[AT] * np.float32(1.01)}
    run = compare(golden, open_candidate([port_trace(tmp_path / "wrong", wrong, sketched=False)]))
    assert run["cases"][0]["sources"] == [AT]
    row = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == AT)
    assert row["evidence"] == "statistics"
    # The bound is below the error, and near it where all of it is scale.
    assert 0.9 * 0.01 < row["rel_rmse"] <= 0.01
    moved = arrays() | {AT: np.roll(arrays()[AT], 1)}
    run = compare(golden, open_candidate([port_trace(tmp_path / "moved", moved, sketched=False)]))
    assert run["verdict"] == "incomplete", "statistics see no permutation, and must not say that they do"


def test_a_log_proves_divergence_and_never_parity(golden, tmp_path):
    run = compare(golden, open_candidate([log(tmp_path / "right.log", arrays())]))
    assert run["verdict"] == "incomplete"
    assert run["counts"]["diverged"] == 0
    assert run["counts"]["uncertain"] == 11
    low, high = arrays()[AT].min(), arrays()[AT].max()
    run = compare(golden, open_candidate([log(tmp_path / "wrong.log", arrays(), **{AT: (low, high + 0.1)})]))
    assert run["cases"][0]["sources"] == [AT]
    row = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == AT)
    assert row["evidence"] == "range"
    assert row["reason"].startswith("its max is")
    # What the last printed digit leaves open is no divergence.
    run = compare(golden, open_candidate([log(tmp_path / "rounded.log", arrays(), **{AT: (low, high + 0.004)})]))
    assert run["counts"]["diverged"] == 0


@pytest.mark.parametrize("ends", [(math.nan, 3.0), (-3.0, math.inf), (-math.inf, math.inf), (math.nan, math.nan)])
def test_a_range_that_is_not_finite_diverges(golden, tmp_path, ends):
    run = compare(golden, open_candidate([log(tmp_path / "bad.log", arrays(), **{AT: ends})]))
    assert run["cases"][0]["sources"] == [AT]


@dataclass(frozen=True, kw_only=True)
class Sketches(Imported):
    """Sketches alone: nothing is known of shapes and ranges."""

    values: dict

    def read(self, name, *, chunks=0, sketched=True):
        return Reading(None, None, None, self.values[name])


def test_sketches_alone_are_judged_and_have_no_ranges(golden, tmp_path):
    values = {name: sketch(x) for name, x in arrays().items()}
    run = compare(golden, Sketches(label="s", kind="sketches", names=tuple(values), values=values))
    assert run["verdict"] == "parity"
    assert run["sentence"].endswith("equal the reference's, as far as sketches tell.")
    assert all(row["candidate"] is None and row["range"] is None for row in run["cases"][0]["checkpoints"])
    render_report(run, tmp_path / "report.html", force=True)
    render_plots(run, tmp_path / "plots", force=True)
    values[AT] = values[AT] + 1
    run = compare(golden, Sketches(label="s", kind="sketches", names=tuple(values), values=values))
    assert run["cases"][0]["sources"] == [AT]


def test_sketches_of_nan_diverge(golden):
    found = Sketches(label="odd", kind="sketches", names=(AT,), values={AT: np.full(DEFAULT.buckets, np.nan)})
    run = compare(golden, found)
    assert run["cases"][0]["sources"] == [AT]


def mod_log(path, low, high):
    path.write_text(f"[BLOCK 01] [MOD] scale=[{low:.3f}, {high:.3f}]\n")
    return path


def test_scales_in_a_log_are_held_against_scales(golden, tmp_path):
    mod = arrays()["block.01.img.mod"]
    shift1, scale1, gate1, _, scale2, _ = np.split(mod, 6, axis=-1)
    for right in (scale1, scale2, np.concatenate([scale1, scale2])):
        run = compare(golden, open_candidate([mod_log(tmp_path / "m.log", right.min(), right.max())]))
        assert run["counts"]["diverged"] == 0
        assert run["counts"]["uncertain"] == 1
    for wrong in (shift1, gate1, mod, np.array([np.nan, 1]), np.array([-np.inf, 1])):
        run = compare(golden, open_candidate([mod_log(tmp_path / "m.log", wrong.min(), wrong.max())]))
        assert run["cases"][0]["sources"] == ["block.01.img.mod"]


def test_some_checkpoints_alone(golden, tmp_path, capsys):
    some = {name: x for name, x in arrays().items() if name.startswith("block.01.")}
    path = dump(tmp_path / "d.safetensors", some)
    arguments = ["compare", str(golden.trace.folder), str(path)]
    assert call(arguments) == 5
    assert call([*arguments, "--only", "block.01.*", "--out", str(tmp_path / "run")]) == 0
    assert "only block.01.*: 24 of 84 checkpoints were asked about" in capsys.readouterr().err
    assert call(["report", str(tmp_path / "run")]) == 0
    assert call([*arguments, "--only", "block.0[01].*"]) == 5
    wrong = dump(tmp_path / "w.safetensors", some | {AT: some[AT] * 2})
    assert call(["compare", str(golden.trace.folder), str(wrong), "--only", "block.01.img.*"]) == 1
    capsys.readouterr()
    assert call([*arguments, "--only", "block.77.*"]) == 2
    assert "no checkpoint of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"case_hash": "f" * 64}, "of another case"),
        ({"dtype": "bfloat16"}, "of a run in bfloat16"),
        ({"mode": "isolated"}, "mode isolated"),
    ],
)
def test_what_was_made_otherwise_is_refused(golden, tmp_path, about, said):
    with pytest.raises(UsageError, match=said):
        compare(golden, open_candidate([port_trace(tmp_path / "t", arrays(), **about)]))


def test_another_case_and_no_checkpoint_are_refused(golden, tmp_path):
    with pytest.raises(UsageError, match="of another case"):
        compare(golden, open_candidate([dump(tmp_path / "d.safetensors", arrays(), case="0" * 64)]))
    with pytest.raises(UsageError, match=r"none of its 1 names is a checkpoint"):
        compare(golden, open_candidate([dump(tmp_path / "e.safetensors", {"weights": np.ones(3)})]))


def test_the_command_writes_a_run_that_can_be_reported_again(golden, tmp_path, capsys):
    wrong = dump(tmp_path / "d.safetensors", arrays() | {AT: arrays()[AT] * np.float32(1.5)})
    arguments = ["compare", str(golden.trace.folder), str(wrong), "--out", str(tmp_path / "run")]
    assert call(arguments) == 1
    out = capsys.readouterr().out
    assert f"starts at {AT}" in out
    assert "±3.1%" in out
    assert out.splitlines()[-1] == str(tmp_path / "run" / "report.html")
    assert read_run(tmp_path / "run")["first_divergence"]["checkpoint"] == AT
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert call(["report", str(tmp_path / "run")]) == 1
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    assert call(["plot", str(tmp_path / "run")]) == 0
    assert call(["diagnose", str(tmp_path / "run")]) == 2
    assert "`parity diagnose DUMP --weights DIR`" in capsys.readouterr().err
    assert call(arguments) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert call([*arguments, "--force"]) == 1
    (tmp_path / "run" / "mine.txt").write_text("x")
    assert call([*arguments, "--force"]) == 2
    assert (tmp_path / "run" / "mine.txt").exists()


@pytest.mark.parametrize("format", ["json", "md", "junit", "github"])
def test_every_format_takes_it(golden, tmp_path, capsys, monkeypatch, format):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    right = dump(tmp_path / "d.safetensors", arrays())
    assert call(["compare", str(golden.trace.folder), str(right), "--format", format]) == 0
    if format == "json":
        found = printed(capsys)
        assert found["verdict"] == "parity"
        assert json.dumps(found)
    else:
        assert "square" in capsys.readouterr().out


def test_shapes_of_the_test_are_those_of_the_graph():
    assert {name: x.shape for name, x in arrays().items()} == {name: shape_of(name) for name in GRAPH.expected}


def kept(golden, folder, *names):
    """A golden trace with whole values of some checkpoints."""
    shutil.copytree(golden.trace.folder, folder)
    (folder / trace.TENSORS).mkdir()
    for name in names:
        save_file({name: arrays()[name].astype(np.float64)}, trace.tensor_file(folder, name))
    return folder


def one_row(x):
    y = x.copy()
    y[:, 7] *= 1.5
    return y


def test_a_comparison_keeps_where_the_error_lies(golden, tmp_path, capsys):
    wrong = dump(tmp_path / "d.safetensors", {name: at(one_row)(name, x) for name, x in arrays().items()})
    folder = kept(golden, tmp_path / "g", AT, "block.00.img.ffn")
    out = tmp_path / "run"
    assert call(["compare", str(folder), str(wrong), "--out", str(out)]) == 1, capsys.readouterr().err
    assert list(profiles.of_unit(out, "square.float32")) == ["accumulated"]
    assert list(profiles.of_unit(out, "square.float32")["accumulated"]) == [AT]
    rows, channels = profiles.of_unit(out, "square.float32")["accumulated"][AT]
    assert (rows["title"], rows["worst"], channels["title"]) == ("row", 7, "channel")
    assert [i for i, size in enumerate(rows["error"]) if size] == [7]
    run = read_run(out)
    [panel] = panels(run, out)[0].values()
    assert [axis["title"] for axis in panel["axes"]] == ["row", "channel"]
    _, theirs, ours = panel["histogram"]
    assert sum(theirs) == sum(ours) == arrays()[AT].size
    assert theirs != ours
    before = (out / "report.html").read_bytes()
    assert call(["report", str(out)]) == 1
    assert (out / "report.html").read_bytes() == before


@pytest.mark.parametrize(("most", "names"), [(1, [AT]), (2, ["block.00.img.attn", AT])])
def test_of_much_that_is_off_the_sources_are_kept(golden, tmp_path, monkeypatch, most, names):
    """GIVEN a suspect before the source, THEN it comes after it, and in the trace as in the model."""
    monkeypatch.setattr(comparison_trace, "MOST", most)
    off = {"block.00.img.attn": lambda x: noise(x.astype(np.float64), 6e-6).astype(np.float32), AT: one_row}
    wrong = dump(tmp_path / "d.safetensors", {name: off.get(name, lambda x: x)(x) for name, x in arrays().items()})
    out = tmp_path / "run"
    assert call(["compare", str(golden.trace.folder), str(wrong), "--out", str(out)]) == 1
    assert list(trace.read_stats(out / "trace/square.float32/candidate")) == names


def test_without_whole_values_a_comparison_keeps_histograms(golden, tmp_path, capsys):
    wrong = dump(tmp_path / "d.safetensors", {name: at(one_row)(name, x) for name, x in arrays().items()})
    out = tmp_path / "run"
    assert call(["compare", str(golden.trace.folder), str(wrong), "--out", str(out)]) == 1
    [panel] = panels(read_run(out), out)[0].values()
    assert list(panel) == ["histogram"]
    assert call(["compare", str(golden.trace.folder), str(out)]) == 2
    assert "of a comparison, what was off alone is in it" in " ".join(capsys.readouterr().err.split())


def test_a_recorded_trace_brings_its_histograms(golden, tmp_path):
    port_trace(tmp_path / "t", {name: at(one_row)(name, x) for name, x in arrays().items()})
    out = tmp_path / "run"
    assert call(["compare", str(golden.trace.folder), str(tmp_path / "t"), "--out", str(out)]) == 1
    [panel] = panels(read_run(out), out)[0].values()
    assert sum(panel["histogram"][1]) == sum(panel["histogram"][2]) == arrays()[AT].size


def test_what_cannot_be_profiled_is_left_out(golden, tmp_path):
    made = {name: at(lambda x: x[:, :-1])(name, x) for name, x in arrays().items()}
    out = tmp_path / "run"
    folder = kept(golden, tmp_path / "g", AT)
    assert call(["compare", str(folder), str(dump(tmp_path / "d.safetensors", made)), "--out", str(out)]) == 1
    assert not (out / "trace").exists()
    clean = dump(tmp_path / "c.safetensors", arrays())
    assert call(["compare", str(folder), str(clean), "--out", str(tmp_path / "clean")]) == 0
    assert not (tmp_path / "clean" / "trace").exists()


def test_forced_over_another_run_nothing_of_it_is_left(golden, tmp_path, capsys):
    out, clean = tmp_path / "run", dump(tmp_path / "c.safetensors", arrays())
    wrong = dump(tmp_path / "d.safetensors", {name: at(one_row)(name, x) for name, x in arrays().items()})
    assert call(["compare", str(golden.trace.folder), str(wrong), "--out", str(out)]) == 1
    (out / "diagnosis.json").write_text("{}")
    assert call(["compare", str(golden.trace.folder), str(clean), "--out", str(out)]) == 2
    assert call(["compare", str(golden.trace.folder), str(clean), "--out", str(out), "--force"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["parity.json", "report.html"]
    (out / "trace").mkdir()
    shutil.copy(clean, out / "trace")
    capsys.readouterr()
    inside = str(out / "trace" / clean.name)
    assert call(["compare", str(golden.trace.folder), inside, "--out", str(out), "--force"]) == 2
    assert "would be overwritten; choose another --out" in " ".join(capsys.readouterr().err.split())
