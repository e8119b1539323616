"""Plots are a pure function of the run, survive any figure and any name, and show what the verdicts say."""

import copy
import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
import sample_run
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from parity.errorplots import errors_figure, heatmap_figure
from parity.errors import OutputExistsError, UsageError
from parity.plots import plan, render_plots
from parity.plotstyle import LIGHT, excess_edges, excess_of, index_axis, ink_on, rc, short, slug, step_of, visible
from parity.rangeplots import growth_figure, ranges_figure
from parity.sections import main_of, sections
from parity.sequenceplots import MOST, sequence_figure, spans_figure
from parity.stepcurve import steps_figure

SMALL = {"blocks": 2, "dtypes": ("float32",)}


def one(kind, **options):
    """A run of one entry: drawing is what takes the time of these tests."""
    run = getattr(sample_run, kind)(**SMALL | options)
    return run | {"cases": run["cases"][1:]}


def contents(run, folder, **options):
    return {path.name: path.read_bytes() for path in render_plots(run, folder, **options)}


def drawn(figure, run, entry=None):
    """A figure of the main section of an entry, the first one by default."""
    entry = entry or run["cases"][0]
    return figure(run, entry, main_of(sections(entry)), LIGHT)


def colours_of(axes):
    return {tuple(np.round(pixel, 6)) for image in axes.images for row in image.get_array() for pixel in row}


def test_a_set_for_each_entry_with_names_that_tell():
    assert [f"{name}.png" for name, *_ in plan(sample_run.clean(**SMALL))] == [
        "ranges.square.float32.png", "growth.square.float32.png",
        "errors.square.float32.isolated.png", "heatmap.square.float32.isolated.png",
        "errors.square.float32.accumulated.png", "heatmap.square.float32.accumulated.png",
    ]  # fmt: skip


def test_ranges_are_of_the_accumulated_entry_and_growth_needs_a_residual():
    run = sample_run.clean(**SMALL)
    assert {entry["mode"] for name, _, entry, _ in plan(run) if name.startswith(("ranges", "growth"))} == {
        "accumulated"
    }
    kinds = [name.split(".")[0] for name, *_ in plan(sample_run.clean(**SMALL, level="kinds"))]
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
        cells = drawn(heatmap_figure, run).axes[0]
        judged[kind] = colours_of(cells) & {tuple(np.round(to_rgb(step), 6)) for step in LIGHT.steps[5:]}
    assert not judged["clean"]
    assert judged["diverged"]


def test_heatmap_hatches_what_was_not_judged():
    hatches = {}
    for kind in ("clean", "incomplete"):
        run = getattr(sample_run, kind)(**SMALL)
        axes = drawn(heatmap_figure, run).axes[:2]
        hatches[kind] = {patch.get_hatch() for ax in axes for patch in ax.patches} - {None}
    assert hatches == {"clean": set(), "incomplete": {"////", "xxxx", "----"}}


@pytest.mark.parametrize("figure", [ranges_figure, growth_figure, errors_figure])
def test_values_that_are_not_finite_are_marked(figure):
    def crosses(kind):
        run = getattr(sample_run, kind)(**SMALL)
        axes = drawn(figure, run).axes
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
    (ax,) = drawn(growth_figure, run).axes
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
    assert [ink_on(step) for step in ("#ffffff", "#eaf3fa", "#4d1502", "#000000")] == ["#000000"] * 2 + ["#ffffff"] * 2


def names_of(run):
    return [name for name, *_ in plan(run)]


def words_of(figure):
    return " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("text", ["ranges.one.float32", "growth.one.float32", "errors.one.float32.accumulated",
                  "heatmap.one.float32.accumulated"]),
        ("vae", ["ranges.one.float32.encode", "ranges.one.float32.decode", "errors.one.float32.accumulated.encode",
                 "errors.one.float32.accumulated.decode"]),
        ("scheduler", ["ranges.one.float32", "heatmap.one.float32.accumulated"]),
        ("pipeline", ["ranges.one.float32", "steps.one.float32", "errors.one.float32.accumulated",
                      "heatmap.one.float32.accumulated"]),
    ],
)  # fmt: skip
def test_a_component_has_the_figures_that_show_something(component, names):
    assert names_of(one("clean", component=component, cases=("one",))) == names


def test_inside_steps_only_the_worst_pass_has_figures_and_they_say_so():
    run = one("clean", component="pipeline", inside=(1, 6), level="block")
    row = next(r for r in run["cases"][0]["checkpoints"] if r["name"] == "step.06.uncond.block.01.img.attn")
    row.update(excess=40.0, verdict="diverged")
    inner = [(name, draw, entry, section) for name, draw, entry, section in plan(run) if "step-" in name]
    assert {name.rpartition(".")[2] for name, *_ in inner} == {"step-06-uncond"}
    for _, draw, entry, section in inner:
        assert "Of 4 passes inside steps" in words_of(draw(run, entry, section, LIGHT))
    assert "Without the 4 passes inside steps" in words_of(drawn(errors_figure, run))


@pytest.mark.parametrize("component", ["text", "vision", "vae", "scheduler", "pipeline"])
@pytest.mark.parametrize("kind", ["diverged", "incomplete", "hostile"])
@pytest.mark.slow
def test_any_run_of_any_component_is_drawn_without_a_warning(tmp_path, component, kind):
    run = one(kind, component=component, inside=(1,), cases=("one",))
    assert render_plots(run, tmp_path, ("svg",))


def test_steps_start_where_the_first_of_them_is_done():
    run = one("clean", component="scheduler")
    rows = run["cases"][0]["checkpoints"]
    run["cases"][0]["checkpoints"] = [
        row for row in rows if not row["name"].startswith("sched.step.0") or row["name"] > "sched.step.05"
    ]
    cells = drawn(heatmap_figure, run).axes[0]
    assert cells.get_xlim() == (4.5, 7.5)
    assert [(text.get_position()[0], text.get_text()) for text in cells.texts] == [(5, "="), (6, "="), (7, "=")]
    [picture] = cells.images
    assert tuple(picture.get_extent()[:2]) == (4.5, 7.5)
    assert picture.get_array().shape[1] == 3


@pytest.mark.parametrize("count", [1, 2, 60, 3999, 4001, 99_999])
def test_an_axis_has_few_ticks_and_its_ends_for_any_number_of_blocks(count):
    ax = Figure().add_subplot()
    index_axis(ax, range(count), "block", most=4)
    ticks = ax.get_xticks().tolist()
    assert ticks[0] == 0
    assert ticks[-1] == count - 1
    assert len(ticks) <= 6


def test_what_must_be_equal_is_marked_and_counted():
    figures = [drawn(heatmap_figure, one(kind, component="scheduler")) for kind in ("clean", "diverged")]
    marks = ["".join(text.get_text() for text in figure.axes[0].texts) for figure in figures]
    assert marks == ["========", "===≠≠≠≠≠"]
    assert "12 checkpoints must equal the reference bit for bit: all are." in words_of(figures[0])
    assert "5 of them differ" in words_of(figures[1])


def test_the_step_curve_says_the_factor_and_shows_both_modes():
    run = sample_run.clean(**SMALL, component="pipeline", level="kinds")
    figure = drawn(steps_figure, run)
    assert [ax.get_title().partition(":")[0] for ax in figure.axes] == ["latents", "noise_pred", "cond", "uncond"]
    factors = [text.get_text() for text in figure.axes[0].texts]
    assert len(factors) == 1
    assert f"a factor of {factors[0][1:]};" in words_of(figure).replace("\n", " ")
    run["cases"] = run["cases"][1:]
    figure = drawn(steps_figure, run)
    assert len(figure.axes[0].texts) == 1
    assert "no isolated entry" in words_of(figure)


@pytest.mark.parametrize("figure", [sequence_figure, spans_figure])
def test_what_does_not_repeat_has_a_line_each_in_order(figure):
    run = one("clean", component="vae", level="block")
    shown = drawn(figure, run)
    lines = [label.get_text() for ax in shown.axes for label in ax.get_yticklabels() if label.get_text()]
    assert [f"vae.{line}" for line in lines] == [row["name"] for row in run["cases"][0]["checkpoints"]]


def test_more_lines_than_a_page_holds_are_those_with_the_largest_excess():
    run = one("clean", component="vae")
    rows = run["cases"][0]["checkpoints"]
    assert len(rows) > MOST
    for place in (3, -3):
        rows[place].update(excess=9.0, verdict="suspect")
    figure = drawn(sequence_figure, run)
    lines = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels() if label.get_text()]
    assert len(lines) == MOST
    assert {rows[place]["name"].partition(".")[2] for place in (3, -3)} <= set(lines)
    order = [row["name"].partition(".")[2] for row in rows]
    assert lines == sorted(lines, key=order.index)
    assert f"{MOST} of {len(rows)} checkpoints" in words_of(figure)


def test_the_key_names_only_what_is_there():
    """GIVEN runs with and without sources, values that are not finite and gaps, THEN their keys say so."""
    said = {}
    for kind in ("clean", "diverged", "nonfinite", "incomplete"):
        run = getattr(sample_run, kind)(**SMALL)
        figures = [drawn(figure, run) for figure in (errors_figure, heatmap_figure, ranges_figure)]
        said[kind] = {text.get_text() for one in figures for legend in one.legends for text in legend.get_texts()}
    marks = {"source of a divergence", "not finite", "missing", "uncertain", "skipped"}
    assert {kind: marks & words for kind, words in said.items()} == {
        "clean": set(), "diverged": {"source of a divergence"},
        "nonfinite": {"source of a divergence", "not finite", "uncertain"},
        "incomplete": {"missing", "uncertain", "skipped"},
    }  # fmt: skip
    run = sample_run.clean(**SMALL)
    for row in run["cases"][0]["checkpoints"]:
        row["reference"] = None
    alone = {text.get_text() for text in drawn(ranges_figure, run).legends[0].get_texts()}
    assert "reference" in said["clean"] - alone


@pytest.mark.parametrize("kind", ["diverged", "nonfinite", "incomplete"])
def test_no_words_leave_the_page(kind):
    """GIVEN any run, WHEN drawn, THEN title, key and footnote lie within the page."""
    run = getattr(sample_run, kind)(**SMALL | {"blocks": 6})
    with matplotlib.rc_context(rc(LIGHT)):
        for figure in (errors_figure, heatmap_figure, ranges_figure, growth_figure):
            shown = drawn(figure, run)
            shown.canvas.draw()
            wide = shown.bbox.width
            for one in (*shown.texts, *shown.legends):
                box = one.get_window_extent()
                assert box.x0 >= 0
                assert box.x1 <= wide, one
