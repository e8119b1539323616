"""Plots are a pure function of the run, survive any figure and any name, and show what the verdicts say."""

import copy
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import sample_run
from matplotlib.colors import to_rgb

from parity.errors import OutputExistsError, UsageError
from parity.plots import errors_figure, growth_figure, heatmap_figure, plan, ranges_figure, render_plots
from parity.plotstyle import LIGHT, excess_edges, excess_of, grid_of, ink_on, short, slug, step_of, visible

SMALL = {"blocks": 2, "dtypes": ("float32",)}


def one(kind, **options):
    """A run of one entry: drawing is what takes the time of these tests."""
    run = getattr(sample_run, kind)(**SMALL | options)
    return run | {"cases": run["cases"][1:]}


def contents(run, folder, **options):
    return {path.name: path.read_bytes() for path in render_plots(run, folder, **options)}


def colours_of(axes):
    return {tuple(np.round(pixel, 6)) for image in axes.images for row in image.get_array() for pixel in row}


def test_a_set_for_each_entry_with_names_that_tell():
    assert [f"{name}.png" for name, _, _ in plan(sample_run.clean(**SMALL))] == [
        "ranges.square.float32.png", "growth.square.float32.png",
        "errors.square.float32.isolated.png", "heatmap.square.float32.isolated.png",
        "errors.square.float32.accumulated.png", "heatmap.square.float32.accumulated.png",
    ]  # fmt: skip


def test_ranges_are_of_the_accumulated_entry_and_growth_needs_a_residual():
    run = sample_run.clean(**SMALL)
    assert {entry["mode"] for name, _, entry in plan(run) if name.startswith(("ranges", "growth"))} == {"accumulated"}
    kinds = [name.split(".")[0] for name, _, _ in plan(sample_run.clean(**SMALL, level="kinds"))]
    assert "growth" not in kinds
    assert "ranges" in kinds


def test_same_run_same_bytes_and_another_number_another_picture(tmp_path):
    run = one("clean", level="kinds")
    first = contents(run, tmp_path / "a")
    assert all(data.startswith(b"\x89PNG") for name, data in first.items() if name.endswith("png"))
    assert first == contents(copy.deepcopy(run), tmp_path / "b")
    row = run["cases"][0]["checkpoints"][8]
    row.update(rel_rmse=row["rel_rmse"] * 9, excess=row["excess"] * 9)
    changed = {name.split(".")[0] for name, data in contents(run, tmp_path / "c").items() if data != first[name]}
    assert changed == {"errors", "heatmap"}


def test_nothing_is_overwritten_without_force(tmp_path):
    run = one("clean", level="kinds")
    last = tmp_path / "heatmap.square.float32.accumulated.svg"
    last.write_text("mine")
    with pytest.raises(OutputExistsError, match="heatmap"):
        render_plots(run, tmp_path, ("svg",))
    assert [path.name for path in tmp_path.iterdir()] == [last.name]
    render_plots(run, tmp_path, ("svg",), force=True)
    assert last.read_text() != "mine"


def test_dark_plots_stand_beside_light_ones(tmp_path):
    run = one("clean", level="kinds")
    light = contents(run, tmp_path, formats=("svg",))
    dark = contents(run, tmp_path, formats=("svg",), dark=True)
    assert all(name.endswith(".dark.svg") for name in dark)
    assert not light.keys() & dark.keys()
    assert all(b"#12171d" in data for data in dark.values())
    assert not any(b"#12171d" in data for data in light.values())


def test_an_unknown_format_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="'pdf'"):
        render_plots(sample_run.clean(**SMALL), tmp_path, ("pdf",))


@pytest.mark.parametrize("kind", ["diverged", "incomplete", "nonfinite", "hostile"])
def test_any_run_is_drawn_without_a_warning(tmp_path, kind):
    run = one(kind)
    for name, data in contents(run, tmp_path, formats=("svg",)).items():
        assert re.fullmatch(r"[a-z]+(\.[a-z0-9_-]+)+\.svg", name)
        root = ElementTree.fromstring(data)
        assert not [node.tag for node in root.iter() if node.tag.endswith(("script", "foreignObject"))]
        assert "\u202e" not in data.decode()
        assert b"http://purl.org/dc/elements/1.1/date" not in data


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diverged", "nonfinite"])
def test_sixty_blocks_stay_small(tmp_path, kind):
    run = one(kind, blocks=60, dtypes=("bfloat16",))
    assert max(len(data) for data in contents(run, tmp_path).values()) < 500_000


def test_a_row_that_was_never_made_needs_only_a_name_and_a_verdict(tmp_path):
    run = one("clean")
    rows = run["cases"][0]["checkpoints"]
    rows[15] = {"name": rows[15]["name"], "verdict": "missing"}
    assert render_plots(run, tmp_path, ("svg",))


def test_heatmap_has_the_colours_of_the_verdicts():
    """GIVEN a clean and a diverged run, WHEN drawn, THEN only the second has a colour of `diverged`."""
    judged = {}
    for kind in ("clean", "diverged"):
        run = getattr(sample_run, kind)(**SMALL)
        cells = heatmap_figure(run, run["cases"][0], LIGHT).axes[0]
        judged[kind] = colours_of(cells) & {tuple(np.round(to_rgb(step), 6)) for step in LIGHT.steps[5:]}
    assert not judged["clean"]
    assert judged["diverged"]


def test_heatmap_hatches_what_was_not_judged():
    hatches = {}
    for kind in ("clean", "incomplete"):
        run = getattr(sample_run, kind)(**SMALL)
        axes = heatmap_figure(run, run["cases"][0], LIGHT).axes[:2]
        hatches[kind] = {patch.get_hatch() for ax in axes for patch in ax.patches} - {None}
    assert hatches == {"clean": set(), "incomplete": {"////", "xxxx", "----"}}


@pytest.mark.parametrize("figure", [ranges_figure, growth_figure, errors_figure])
def test_values_that_are_not_finite_are_marked(figure):
    def crosses(kind):
        run = getattr(sample_run, kind)(**SMALL)
        axes = figure(run, run["cases"][0], LIGHT).axes
        return sum(len(line.get_xdata()) for ax in axes for line in ax.lines if line.get_marker() == "x")

    assert crosses("clean") == 0
    assert crosses("nonfinite") > 0


def test_a_missing_block_is_a_gap_in_a_line():
    run = sample_run.incomplete(blocks=4, dtypes=("float32",))
    run["cases"][0]["checkpoints"] = [
        row
        for row in run["cases"][0]["checkpoints"]
        if row["name"].startswith("block") and row["name"].endswith("txt.out")
    ]
    (ax,) = growth_figure(run, run["cases"][0], LIGHT).axes
    line = next(line for line in ax.lines if len(line.get_xdata()) == 4)
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, False]


def test_excess_on_a_border_belongs_to_the_milder_verdict():
    edges = excess_edges(3.0, 10.0)
    assert edges == pytest.approx((0.3, 1.0, 3.0, math.sqrt(30), 10.0, 30.0, 100.0, 1000.0))
    steps = [step_of(value, edges) for value in (0.0, 3.0, 3.0001, 10.0, 10.0001, math.inf)]
    assert steps == [0, 2, 3, 4, 5, 8]


def test_a_divergence_without_a_figure_is_infinite_and_others_have_none():
    assert excess_of({"verdict": "diverged", "excess": None}) == math.inf
    assert excess_of({"verdict": "diverged", "excess": "nan"}) == math.inf
    assert excess_of({"verdict": "uncertain", "excess": None}) is None
    assert excess_of({"verdict": "match", "excess": 0.5}) == 0.5


def test_rows_are_sorted_by_stream_and_kind_and_split_around_the_blocks():
    grid, before, after = grid_of(sample_run.clean(**SMALL)["cases"][0])
    assert list(grid)[:3] == [("img", "mod"), ("img", "normed"), ("img", "modulated")]
    assert list(grid)[-1] == ("txt", "out")
    assert [row["name"] for row in after] == ["norm_out.mod", "norm_out", "final"]
    assert before[0]["name"] == "img_in"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (46e6, "46M"), (-25e3, "−25k"), (1e-5, "10⁻⁵"), (2e-7, "2·10⁻⁷"), (0.3, "0.3"), (3e18, "3·10¹⁸")],
)
def test_numbers_on_axes(value, text):
    assert short(value) == text


def test_names_of_files_differ_where_cases_differ():
    names = ["square", "Square", "SQUARE", "sq/uare", "../square", "sq uare", "", "a" * 60, "a" * 61]
    assert slug("square") == "square"
    assert len({slug(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_-]+", slug(name)) for name in names)


def test_marks_that_hide_or_turn_text_are_spelled_out():
    assert visible("block.07\u202e\x00") == "block.07\\u202e\\u0000"
    assert visible("größe 日本") == "größe 日本"


def test_ink_can_be_read_on_every_step():
    assert [ink_on(step) for step in ("#ffffff", "#eaf3fa", "#4d1502", "#000000")] == ["#111111"] * 2 + ["#ffffff"] * 2
