"""The page of two runs: what it says, its chart and its maps, and that text stays text."""

import html
import math
import re

import pytest
import sample_run
from sample_run import HOSTILE

from parity.changemap import MAPS, change_maps, colour
from parity.diffpage import comparison_html, scatter
from parity.errors import OutputExistsError
from parity.pages import address, write_page
from parity.reporters.rundiff import markdown
from parity.rundiff import diff

SMALL = {"blocks": 3, "dtypes": ("float32",)}
NAMES = ("/runs/a", "/runs/b")


def page(before="clean", after="diverged", **options):
    runs = [getattr(sample_run, kind)(**SMALL | options) for kind in (before, after)]
    return comparison_html(diff(*runs, NAMES))


def test_the_page_is_the_same_each_time_and_asks_for_nothing():
    text = page()
    assert text == page()
    assert "http" not in re.sub(r'<meta http-equiv="Content[^>]*>', "", text)
    assert re.search(r"default-src 'none'", html.unescape(text))
    assert text.count("<script>") == text.count("<style>") == 1


@pytest.mark.parametrize(
    ("kinds", "title"),
    [
        (("clean", "diverged"), "Worse"), (("diverged", "clean"), "Better"), (("clean", "clean"), "No change"),
        (("clean", "incomplete"), "Worse"), (("diverged", "incomplete"), "Better and worse"),
    ],
)  # fmt: skip
def test_the_head_says_what_became_of_it(kinds, title):
    text = page(*kinds)
    assert re.search(r'<h1 id="verdict"><span class="chip \w+">([^<]+)</span>', text)[1] == title
    assert "Synthetic weights</strong> in both runs" in text


def test_tables_have_all_that_changed():
    before, after = sample_run.clean(**SMALL), sample_run.diverged(**SMALL)
    text = comparison_html(diff(before, after, NAMES))
    changes = text[text.index('id="changes"') : text.index('id="settings"')]
    many = re.findall(r'<td data-title="How many" data-value="(\d+)">([\d,]+)</td>', changes)
    assert all(int(value) == int(text.replace(",", "")) for value, text in many)
    counted = sum(int(value) for value, _ in many)
    assert counted == diff(before, after)["counts"]["worse"]
    assert re.search(r"<b>new source</b>: [^/]*block\.01\.img\.attn \(and in 1 more block\)", text)


def test_names_lead_to_the_pages_of_the_runs():
    before, after = sample_run.clean(**SMALL), sample_run.diverged(**SMALL)
    for runs, links in (((before, after), ("../a/report.html", "./report.html")), ((before, after), ("", ""))):
        found = re.findall(r'href="([^#"][^"]*)"', comparison_html(diff(*runs, NAMES), links))
        assert {one.partition("#")[0] for one in found} == set(filter(None, links)) | {"data:,"}
        assert ("./report.html#square.float32.isolated/block.01.img.attn" in found) == bool(links[1])
    gone = comparison_html(diff(after, before | {"cases": []}, NAMES), ("../a/report.html", "./report.html"))
    assert '<a href="../a/report.html#square.float32.isolated"><bdi>square</bdi></a>' in gone


def test_an_address_is_as_the_page_of_the_run_makes_it():
    assert address("a b", "float32", "isolated", "x/é") == "#a%20b.float32.isolated/x%2F%C3%A9"
    assert address("a\u202eb", "d", "m") == "#a%5Cu202eb.d.m"
    assert address("x" * 10_000, "d", "m") == ""


def test_runs_without_anything_in_common_and_empty_ones_have_a_page():
    empty = sample_run.clean(**SMALL) | {"cases": []}
    for runs in ((empty, empty), (sample_run.clean(**SMALL), empty), (empty, sample_run.nonfinite(**SMALL))):
        text = comparison_html(diff(*runs, NAMES))
        assert "Nothing in common" in text
        assert 'id="chart"' not in text or "By what repeats" in text


def test_the_chart_has_worse_above_and_better_below_its_line():
    text = scatter([(1.0, 100.0, "worse"), (100.0, 1.0, "better"), (2.0, 2.0, "same"), (math.inf, 0.0, "other")])
    marks = {name: (float(x), float(y)) for name, x, y in
             re.findall(r'<path class="(\w+)" transform="translate\(([\d.]+) ([\d.]+)\)', text)}  # fmt: skip
    assert set(marks) == {"worse", "better", "same", "other"}
    assert marks["worse"][0] < marks["same"][0] < marks["better"][0] < marks["other"][0]
    assert marks["worse"][1] < marks["same"][1] < marks["better"][1] < marks["other"][1]
    assert "1 worse, 1 better, 1 changed otherwise, 1 as it was" in text
    assert scatter([]) == scatter([(0.0, math.inf, "worse")]) == ""


def test_marks_upon_each_other_are_one():
    many = [(1 + n * 1e-6, 300.0, "worse") for n in range(5000)]
    assert scatter(many).count('class="worse"') == 1


def test_maps_show_the_blocks_in_which_something_changed():
    found = diff(sample_run.clean(**SMALL), sample_run.diverged(**SMALL))
    maps, more = change_maps(found)
    assert [title for title, _ in maps] == ["square float32 isolated, by block", "square float32 accumulated, by block"]
    assert more == 0
    assert "img.attn" in maps[0][1]
    [x, width] = re.search(r'<rect class="w3" x="([\d.]+)" y="0" width="([\d.]+)"', maps[0][1]).groups()
    # Blocks 1 and 2 of three, as one stretch.
    assert (float(x), float(width)) == (pytest.approx(120 + 400 / 3, abs=0.1), pytest.approx(800 / 3 - 0.5, abs=0.1))


def test_drawings_are_drawn():
    text = page()
    assert "&lt;svg" not in text
    assert "<title>img.attn, block 1–2: worse</title>" in text


def test_maps_of_many_entries_are_some_of_them():
    cases = tuple(f"case-{n}" for n in range(5))
    runs = [getattr(sample_run, kind)(**SMALL | {"cases": cases}) for kind in ("clean", "diverged")]
    maps, more = change_maps(diff(*runs))
    assert (len(maps), more) == (MAPS, 4)


@pytest.mark.parametrize(
    ("change", "factor", "name"),
    [("worse", 4, "w1"), ("worse", 40, "w2"), ("worse", math.inf, "w3"), ("better", 0.25, "b1"), ("better", 0.05, "b2"),
     ("better", 0.0, "b3"), ("worse", None, "w3"), ("other", None, "o1"), ("new", None, "n1"), ("gone", None, "n1")],
)  # fmt: skip
def test_a_colour_says_how_far_it_moved(change, factor, name):
    assert colour({"change": change, "factor": factor}) == name


def test_text_from_elsewhere_stays_text():
    found = diff(sample_run.clean(cases=(f"square{HOSTILE}",), **SMALL), sample_run.hostile(**SMALL), (HOSTILE, "b"))
    text = comparison_html(found)
    assert "<img" not in text
    assert not {"\u202e", "\u2066", "\x00"} & set(text)
    assert text.count("<script>") == text.count("</script>") == 1
    assert r"\u202e" in text


def test_names_of_ten_thousand_letters_do_not_make_the_page_large():
    runs = [getattr(sample_run, kind)(**SMALL) for kind in ("clean", "diverged")]
    for run in runs:
        for row in run["cases"][0]["checkpoints"][:3]:
            row["name"] = "x" * 10_000 + row["name"]
    assert len(comparison_html(diff(*runs))) < 100_000
    assert len(markdown(diff(*runs, NAMES))) < 20_000


def test_another_page_is_not_taken_for_ours(tmp_path):
    out = tmp_path / "a" / "x.html"
    assert write_page(page(), out, force=False).read_text() == page()
    write_page(page("diverged", "clean"), out, force=False)
    assert out.read_text() == page("diverged", "clean")
    (tmp_path / "link.html").symlink_to(out)
    (tmp_path / "mine.html").write_text("mine")
    for other in ("link.html", "mine.html"):
        with pytest.raises(OutputExistsError, match="no page of this command"):
            write_page(page(), tmp_path / other, force=False)
    assert (tmp_path / "mine.html").read_text() == "mine"
