"""Several runs over one another: what is compared, what the figures show, and what a user's mistake says."""

import copy
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sample_run
from matplotlib.colors import to_rgb

from parity.changemap import colour
from parity.cli import call
from parity.errors import OutputExistsError, UsageError
from parity.overlay import BORDERS, LABEL, MOST, change, differences, named, overlays, step_of_change, turned
from parity.overlaybudget import budget_overlay
from parity.overlaychange import change_figure
from parity.overlayplots import errors_overlay, growth_overlay, plan, ranges_overlay, sequence_overlay
from parity.plots import render_overlays
from parity.plotstyle import DARK, LIGHT, rc
from parity.runfolder import write_json

SMALL = {"blocks": 3, "dtypes": ("float32",), "level": "block"}


def pair(before="diverged", after="clean", **options):
    """Two runs whose figures are the same, but for what one of them broke."""
    return {name: getattr(sample_run, kind)(**SMALL | options) for name, kind in (("old", before), ("new", after))}


def first(runs, place=0):
    return overlays(runs)[place]


def folders(tmp_path, runs):
    for name, run in runs.items():
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / "parity.json", run)
    return [str(tmp_path / name) for name in runs]


def title_of(ax):
    return ax.get_title(loc="left") or ax.get_title()


def words_of(figure):
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return " ".join([*(text.get_text() for text in figure.texts), *legends, *map(title_of, figure.axes)])


def test_each_case_that_runs_share_has_its_figures():
    names = [name for name, _ in plan(pair())]
    assert names == [
        "overlay.errors.square.float32.isolated", "overlay.heatmap.square.float32.isolated",
        "overlay.ranges.square.float32", "overlay.growth.square.float32",
        "overlay.errors.square.float32.accumulated", "overlay.heatmap.square.float32.accumulated",
    ]  # fmt: skip
    assert [name for name, _ in plan(pair(), ("growth",))] == ["overlay.growth.square.float32"]
    steps = [name for name, _ in plan(pair(component="pipeline"), ("steps",))]
    assert steps == ["overlay.steps.square.float32.isolated", "overlay.steps.square.float32.accumulated"]


def test_what_only_one_run_has_is_left_out():
    runs = pair()
    runs["new"]["cases"] = runs["new"]["cases"][1:]
    assert [one.entry["mode"] for one in overlays(runs)] == ["accumulated"]
    runs["new"]["cases"][0]["dtype"] = "float16"
    with pytest.raises(UsageError, match=r"share no case.*old has square float32 isolated.*new has square float16"):
        overlays(runs)


def test_labels_tell_runs_apart():
    run = sample_run.clean(**SMALL)
    assert list(named([Path("/a/mlx"), Path("/b/mlx"), Path("/b/x")], [run] * 3)) == ["a/mlx", "b/mlx", "b/x"]
    long = [Path(f"/runs/{'x' * 40}{end}{'y' * 40}") for end in "ab"]
    labels = list(named(long, [run, run]))
    assert len(set(labels)) == 2
    assert all(len(label) <= LABEL + 2 for label in labels)
    with pytest.raises(UsageError, match="twice"):
        named([Path("/a/mlx"), Path("/b/../a/mlx")], [run, run])
    with pytest.raises(UsageError, match=f"at most {MOST}"):
        named([Path(f"/{i}") for i in range(MOST + 1)], [run] * (MOST + 1))


def row(excess, verdict=None):
    verdict = verdict or ("match" if excess <= 3 else "suspect" if excess <= 10 else "diverged")
    return {"excess": excess, "verdict": verdict}


@pytest.mark.parametrize(
    ("before", "after", "factor", "turn"),
    [
        (row(0.2), row(0.9), 1.0, 0),
        (row(0.5), row(4.0), 4.0, 1),
        (row(40.0), row(2.0), 0.05, -1),
        (row(40.0), row(None, "diverged"), math.inf, 0),
        (row(None, "diverged"), row(0.5), 0.0, -1),
        (row(None, "diverged"), row(None, "diverged"), 1.0, 0),
        (row(None, "missing"), row(40.0), None, 0),
        (None, row(40.0), None, 0),
    ],
)
def test_the_factor_of_a_change(before, after, factor, turn):
    assert change(before, after) == factor
    assert turned(before, after) == turn


def test_a_factor_on_a_border_belongs_to_the_smaller_change():
    factors = (0.0, 0.0099, 0.01, 0.1, 0.4, 1.0, 2.5, 2.51, 10.0, 100.0, 100.1, math.inf)
    assert [step_of_change(factor) for factor in factors] == [0, 0, 1, 2, 3, 3, 3, 4, 4, 5, 6, 6]


@pytest.mark.parametrize("factor", [0.0, 0.0099, 0.01, 0.09, 0.1, 0.3, 2.6, 10.0, 10.1, 100.0, 101.0, math.inf])
def test_the_map_of_a_comparison_has_the_same_borders(factor):
    row = {"change": "worse" if factor > 1 else "better", "factor": factor}
    assert colour(row) == f"{row['change'][0]}{abs(step_of_change(factor) - 3)}"
    assert BORDERS == ("÷100", "÷10", "÷2.5", "×2.5", "×10", "×100")


def test_the_heatmap_shows_what_got_better_and_worse():
    """GIVEN a fix, WHEN drawn, THEN cells are blue; exchanged, they are red and the worse verdicts are framed."""
    runs = pair()
    for order, side, other in ((("old", "new"), "better", "worse"), (("new", "old"), "worse", "better")):
        figure = change_figure(first({name: runs[name] for name in order}), LIGHT)
        [picture] = figure.axes[0].images
        seen = {tuple(np.round(pixel, 6)) for line in picture.get_array() for pixel in line}
        faces = [tuple(np.round(to_rgb(face), 6)) for face in LIGHT.changes]
        assert bool(seen & set(faces[:3])) == (side == "better")
        assert bool(seen & set(faces[4:])) == (side == "worse")
        frames = [patch for patch in figure.axes[0].patches if not patch.get_hatch()]
        assert bool(frames) == (side == "worse")
        assert f"{side}; verdicts:" in words_of(figure)
        assert f" {other}" not in title_of(figure.axes[0])


def test_what_was_not_judged_in_both_is_hatched():
    figure = change_figure(first(pair("clean", "incomplete")), LIGHT)
    assert "////" in {patch.get_hatch() for patch in figure.axes[0].patches}
    assert "not judged in both runs" in words_of(figure)
    assert "not judged" not in words_of(change_figure(first(pair()), LIGHT))


def test_each_run_has_its_line_in_its_colour():
    runs = pair()
    one = first(runs, 1)
    for figure in (errors_overlay(one, DARK), growth_overlay(one, DARK), ranges_overlay(one, DARK)):
        colours = {line.get_color() for ax in figure.axes for line in ax.lines}
        assert {DARK.img, DARK.txt} <= colours
        assert "old" in words_of(figure)
    ax = next(ax for ax in errors_overlay(one, LIGHT).axes if title_of(ax) == "img.attn")
    rows = {row["name"]: row for row in runs["old"]["cases"][1]["checkpoints"]}
    expected = [rows[f"block.{i:02}.img.attn"]["rel_rmse"] for i in range(3)]
    drawn = [line for line in ax.lines if line.get_color() == LIGHT.img and len(line.get_xdata()) == 3]
    assert any(np.allclose(line.get_ydata(), expected) for line in drawn)


def test_the_legend_counts_verdicts_and_the_share_of_checkpoints_ends_below_one_where_values_are_not_finite():
    figure = errors_overlay(first(pair("nonfinite", "clean")), LIGHT)
    assert "old: 4 diverged of" in words_of(figure)
    assert "new: none off of" in words_of(figure)
    ends = [line.get_ydata()[-1] for line in figure.axes[-1].lines if len(line.get_xdata()) > 2]
    assert len(ends) == 2
    assert ends[0] < 1
    assert ends[1] == 1


def test_what_does_not_repeat_has_a_mark_a_run():
    runs = pair(component="vae", level="full")
    one = first(runs)
    figure = sequence_overlay(one, LIGHT)
    marks = {line.get_marker() for ax in figure.axes for line in ax.lines}
    assert {"o", "s"} <= marks
    name = next(row["name"] for row in runs["old"]["cases"][0]["checkpoints"] if row["verdict"] == "diverged")
    labels = [label.get_text() for of in overlays(runs)[:2] for ax in sequence_overlay(of, LIGHT).axes
              for label in ax.get_yticklabels()]  # fmt: skip
    assert name.removeprefix("vae.decode.") in labels


def test_quantized_runs_have_their_budgets_over_one_another():
    runs = pair("clean", "clean")
    for name, quantization in (("old", 0.1), ("new", None)):
        for entry in runs[name]["cases"]:
            for row in entry["checkpoints"]:
                row |= {"precision": row["floor"] / 2, "quantization": quantization}
    assert not [name for name, _ in plan(runs) if "budget" in name]
    runs["old"]["weights"]["bits"] = {"transformer": {"4-bit group 64": 3}}
    assert [name for name, _ in plan(runs, ("budget",))] == [
        f"overlay.budget.square.float32.{mode}" for mode in ("isolated", "accumulated")
    ]
    figure = budget_overlay(first(runs), LIGHT)
    assert [title_of(ax).partition(",")[0] for ax in figure.axes] == ["quantization", "precision", "implementation"] * 2
    values = [np.unique(line.get_ydata()).tolist() for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert values == [[0.1]]
    assert len([line for line in figure.axes[1].lines if len(line.get_xdata()) == 3]) == 2


def test_figures_say_in_what_else_the_runs_differ():
    runs = pair()
    assert differences(runs) == ""
    runs["new"]["environment"]["candidate"]["mlx"] = "0.99"
    assert "candidate mlx (0.32.4 / 0.99)" in differences(runs)
    assert "candidate mlx (0.32.4 / 0.99)" in words_of(growth_overlay(first(runs, 1), LIGHT))


@pytest.mark.parametrize("kind", ["nonfinite", "incomplete", "hostile"])
def test_any_two_runs_are_drawn_without_a_warning(tmp_path, kind):
    runs = pair("clean", kind) if kind != "hostile" else pair("hostile", "hostile")
    paths = render_overlays(runs, tmp_path, ("svg",))
    assert len(paths) == 6
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert not [node.tag for node in root.iter() if node.tag.endswith(("script", "foreignObject"))]
        assert "\u202e" not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("component", ["text", "vision", "vae", "scheduler", "pipeline"])
def test_any_component_is_drawn_without_a_warning(tmp_path, component):
    options = {"component": component, "level": "full"} | ({"inside": (1,)} if component == "pipeline" else {})
    assert render_overlays(pair(**options), tmp_path, ("png",), dark=True)


def test_runs_of_different_size_and_detail_share_what_both_have():
    runs = pair()
    runs["new"] = sample_run.clean(blocks=5, dtypes=("float32",), level="kinds")
    one = first(runs)
    assert one.span == range(5)
    assert errors_overlay(one, LIGHT).axes
    assert "not judged in both runs" in words_of(change_figure(one, LIGHT))


def test_rows_that_were_never_made_need_only_a_name_and_a_verdict(tmp_path):
    runs = pair()
    rows = runs["new"]["cases"][1]["checkpoints"]
    runs["new"]["cases"][1]["checkpoints"] = [{"name": row["name"], "verdict": "missing"} for row in rows]
    assert render_overlays(runs, tmp_path, ("svg",))


def test_same_runs_same_bytes_and_nothing_is_overwritten(tmp_path):
    runs = pair()
    [path] = render_overlays(runs, tmp_path / "a", ("png",), kinds=("growth",))
    [again] = render_overlays(copy.deepcopy(runs), tmp_path / "b", ("png",), kinds=("growth",))
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(OutputExistsError, match=r"overlay\.growth"):
        render_overlays(runs, tmp_path / "a", ("png",), kinds=("growth",))


def test_the_command_draws_kinds_cases_and_formats(tmp_path, capsys):
    runs = {name: sample_run.clean(**SMALL, cases=("square", "wide")) for name in ("old", "new")}
    old, new = folders(tmp_path, runs)
    assert call(["plot", old, "--kind", "growth", "--case", "wide", "--format", "svg", "--dark"]) == 0
    assert capsys.readouterr().out.split() == [f"{old}/plots/growth.wide.float32.dark.svg"]
    assert call(["plot", old, new, "--kind", "heatmap", "--case", "square", "--out", str(tmp_path / "o")]) == 0
    names = [f"overlay.heatmap.square.float32.{mode}.{form}" for mode in ("isolated", "accumulated")
             for form in ("png", "svg")]  # fmt: skip
    assert capsys.readouterr().out.split() == [str(tmp_path / "o" / name) for name in names]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--case", "wide"], "--case wide: the run has no such case; it has square"),
        (["--kind", "budget"], "--kind budget: there is nothing of it to show; there is ranges, growth"),
        (["--kind", "pie"], "Invalid value"),
        (["--terminal", "--force"], "--terminal writes no files"),
        (["--terminal", "--kind", "steps"], "--kind steps: there is nothing of it"),
        (["OLD"], "twice"),
        (["NOWHERE"], "no parity.json here"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, options, said):
    [old] = folders(tmp_path, {"old": sample_run.clean(**SMALL)})
    given = [{"OLD": old, "NOWHERE": str(tmp_path / "x")}.get(option, option) for option in options]
    assert call(["plot", old, *given]) == 2
    told = capsys.readouterr()
    assert said in told.err.replace("\n", " ")
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_key_stays_on_the_page_and_off_the_panels(count):
    """GIVEN runs with names as long as can be, WHEN drawn, THEN their key is neither cut off nor over a panel."""
    runs = {f"{'W' if i else 'w'}{i}{'x' * (LABEL - 2)}": run for i, run in enumerate([*pair().values()] * 3)}
    one = first(dict(list(runs.items())[:count]))
    with matplotlib.rc_context(rc(DARK)):
        for draw in (errors_overlay, growth_overlay, ranges_overlay):
            figure = draw(one, DARK)
            figure.canvas.draw()
            for box in (one.get_window_extent() for one in (*figure.texts, *figure.legends)):
                assert box.x0 >= 0
                assert box.x1 <= figure.bbox.width
            top = max(ax.get_tightbbox().y1 for ax in figure.axes)
            assert figure.legends[0].get_window_extent().y0 >= top - 1
