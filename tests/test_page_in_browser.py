"""The page's scripts, run by a browser: every component is drawn, and nothing is said on the console.

Skipped where there is no Chromium.
"""

import re

import pytest
import sample_run
from browser import CHROMIUM, drawn, look, tab
from test_budget import quantized

from parity.report import render_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture
def browse(tmp_path):
    """What a page has become after its scripts, and what they said."""

    def run(source, *, folder=tmp_path, **options):
        page = render_report(source, folder / "report.html", force=True, **options)
        with tab(page.as_uri()) as opened:
            drawn(opened)
            return opened.page.content(), opened.console

    return run


def inside(dom, name):
    """The markup of the element with an id, up to the end of its figure."""
    return dom[dom.index(f'id="{name}"') :].partition("</figure>")[0]


def shown(dom, name):
    """Whether the figure around an element is to be seen."""
    figure = dom[: dom.index(f'id="{name}"')].rpartition("<figure")[2]
    return "hidden" not in figure.partition(">")[0]


SIZES = {"transformer": 3 * 24, "text": 3 * 10, "vision": 3 * 9, "scheduler": 8, "pipeline": 8 * 5}
FIGURES = {
    "transformer": {"heatmap", "excess", "growth", "error", "range"},
    "text": {"heatmap", "excess", "growth", "error", "range"},
    "vision": {"heatmap", "excess", "growth", "error", "range"},
    "vae": {"sequence"},
    "scheduler": {"heatmap", "range"},
    "pipeline": {"heatmap", "steps", "excess", "error", "range"},
}


@pytest.mark.parametrize("component", FIGURES)
def test_every_component_is_drawn(browse, component):
    run = sample_run.diverged(component=component, blocks=3, dtypes=("float32",))
    dom, console = browse(run)
    assert console == []
    names = ("heatmap", "sequence", "steps", "excess", "growth", "error", "range")
    assert {name for name in names if shown(dom, name)} == FIGURES[component]
    if component == "vae":
        assert len(re.findall(r'class="band', inside(dom, "sequence"))) == len(run["cases"][0]["checkpoints"])
    else:
        assert f'data-cells="{SIZES[component]}"' in inside(dom, "heatmap")
    if component == "pipeline":
        assert inside(dom, "steps").count("<canvas") == 4
        assert "a factor of" in inside(dom, "growthwords")
    assert re.search(r'id="message" hidden', dom)


def test_the_page_opens_with_the_part_in_which_it_starts(browse):
    run = sample_run.clean(component="pipeline", blocks=3, dtypes=("float32",), inside=(2,))
    for row in run["cases"][0]["checkpoints"]:
        if row["name"] == "step.02.uncond.block.01.txt.q":
            row.update(excess=90.0, verdict="diverged", source=True)
    run["cases"][0]["sources"] = ["step.02.uncond.block.01.txt.q"]
    dom, console = browse(sample_run.settle(run))
    assert console == []
    assert f'data-cells="{SIZES["transformer"]}"' in inside(dom, "heatmap")
    assert "Excess of 72 checkpoints by kind and block" in inside(dom, "heatmap")
    assert not shown(dom, "steps")


def test_pictures_have_tabs_and_all_are_side_by_side(browse, tmp_path):
    dom, console = browse(sample_run.pictured(tmp_path, dtypes=("float32",)))
    assert console == []
    viewer = dom[dom.index('class="viewer"') :].partition("</details>")[0]
    assert re.search(r'<div class="tabs" role="tablist"[^>]*>', viewer)[0].count("hidden") == 0
    assert re.findall(r'aria-selected="(\w+)"', viewer) == ["true", "false", "false", "false", "false"]
    assert re.findall(r'tabindex="(-?\d)"', viewer) == ["0", "-1", "-1", "-1", "-1", "0"]


def test_the_check_itself_hears_the_console(browse, monkeypatch):
    from parity import report

    monkeypatch.setattr(report, "pack", lambda run, panels: "no gzip")
    dom, console = browse(sample_run.clean(blocks=2, dtypes=("float32",)))
    assert "could not be read" in dom
    assert console


def test_the_error_budget_fits_a_phone(tmp_path):
    page = render_report(quantized(), tmp_path / "report.html", force=True)
    script = """const cells = all("#budget th, #budget td, #budget .plot");
      return [cells.length, cells.filter((one) => one.getBoundingClientRect().right > 390.5).length];"""
    (count, sticking_out), console = look(page, script, width=390)
    assert console == []
    assert count > 8
    assert sticking_out == 0
