"""Colours of plots stay apart for everybody, with any of the three kinds of colour blindness as well."""

import itertools

import pytest
from colour_vision import SEEN_BY, ciede2000, lab, linear, nearest

from parity.overlaystyle import tones
from parity.plotstyle import DARK, LIGHT, ink_on

# Differences in CIEDE2000: what carries a verdict, a side or a run; and two steps of one scale beside each other.
APART, STEP = 10.0, 5.0

both = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ],
)
def test_differences_are_those_of_the_published_table(first, second, apart):
    assert ciede2000(first, second) == pytest.approx(apart, abs=1e-4)
    assert ciede2000(second, first) == pytest.approx(apart, abs=1e-4)


def test_who_sees_what():
    """GIVEN red beside green and blue beside teal, WHEN measured, THEN they are close to those who confuse them."""
    assert nearest(["#d62728"], ["#9c7b00"])[0] < APART
    assert ciede2000(lab("#d62728"), lab("#9c7b00")) > 30
    assert nearest(["#0080a0"], ["#008560"])[1].endswith("tritanopes")
    assert all(ciede2000(lab("#ffffff", who), lab("#000000", who)) == pytest.approx(100, abs=0.5) for who in SEEN_BY)


@both
def test_verdicts_are_apart_in_a_heatmap(theme):
    least, which = nearest(theme.steps[:3], theme.steps[3:5], theme.steps[5:])
    assert least >= APART, which


@both
def test_better_and_worse_are_apart(theme):
    least, which = nearest(theme.changes[:3], theme.changes[3:4], theme.changes[4:])
    assert least >= APART, which


@both
@pytest.mark.parametrize("scale", ["steps", "changes"])
def test_steps_of_a_scale_can_be_told_from_their_neighbours(theme, scale):
    for one, other in itertools.pairwise(getattr(theme, scale)):
        least, which = nearest([one], [other])
        assert least >= STEP, which


@both
def test_the_larger_the_excess_the_further_from_the_page(theme):
    off = [ciede2000(lab(theme.page), lab(step)) for step in theme.steps]
    assert off[:3] == sorted(off[:3])
    assert off[5:] == sorted(off[5:])
    assert min(off[5:]) > max(off[:3])


@both
def test_lines_marks_and_runs_are_apart(theme):
    for colours in (
        (theme.img, theme.txt, theme.step, theme.documented, theme.bad),
        tones(theme),
        (theme.img, theme.steps[4], theme.bad),
    ):
        least, which = nearest(*([colour] for colour in colours))
        assert least >= APART, which


def contrast(one, other):
    light, dark = sorted(((0.2126, 0.7152, 0.0722) @ linear(colour) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@both
def test_words_and_lines_can_be_read(theme):
    for words in (theme.ink, theme.muted, theme.bad):
        assert min(contrast(words, theme.page), contrast(words, theme.panel)) >= 4.5
    for line in (theme.img, theme.txt, theme.step, theme.documented, theme.bad):
        assert contrast(line, theme.panel) >= 3
    assert all(contrast(ink_on(step), step) >= 4.5 for step in (*theme.steps, *theme.changes))
