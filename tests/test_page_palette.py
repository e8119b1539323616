"""Colours of the page stay apart for everybody, as those of the plots do, and its words can be read."""

import re
from pathlib import Path

import pytest
from colour_vision import linear, nearest

from parity.plotstyle import DARK, LIGHT

APART = 10.0
CSS = Path(__file__).parents[1] / "parity" / "templates" / "report.css"
VERDICTS = ("match", "suspect", "diverged")
NAMED = re.findall(r"--([\w-]+):\s*light-dark\((#\w{6}),\s*(#\w{6})\)", CSS.read_text(encoding="utf-8"))
LIGHT_PAGE = {name: light for name, light, _ in NAMED}
DARK_PAGE = {name: dark for name, _, dark in NAMED}

both = pytest.mark.parametrize(("page", "theme"), [(LIGHT_PAGE, LIGHT), (DARK_PAGE, DARK)], ids=["light", "dark"])


@both
def test_the_heatmap_has_the_steps_of_the_plots(page, theme):
    assert tuple(page[f"h{step}"] for step in range(9)) == theme.steps


@both
def test_verdicts_sides_and_marks_are_apart(page, theme):
    for colours in (
        [page[verdict] for verdict in VERDICTS],
        [page[name] for name in ("img", "txt", "step", "doc", "bad")],
    ):
        least, which = nearest(*([colour] for colour in colours))
        assert least >= APART, which


def contrast(one, other):
    dark, light = sorted((0.2126, 0.7152, 0.0722) @ linear(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@both
def test_words_can_be_read(page, theme):
    for verdict in VERDICTS:
        assert contrast(page[verdict], page[f"{verdict}-soft"]) >= 4.5
    for word in ("ink", "muted", "link", "bad", "doc", *VERDICTS):
        assert min(contrast(page[word], page["page"]), contrast(page[word], page["panel"])) >= 4.5
