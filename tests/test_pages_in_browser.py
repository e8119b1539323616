"""The pages of two runs and of many, in a browser: sorting, searching, a phone's width, no word on the console.

Skipped where there is no Chromium.
"""

import pytest
import sample_run
from browser import CHROMIUM, look
from sample_run import HOSTILE

from parity import runindex
from parity.diffpage import comparison_html
from parity.indexpage import index_html
from parity.rundiff import diff
from parity.runfolder import write_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

SMALL = {"blocks": 3, "dtypes": ("float32",)}
WIDE = (
    "return [...page.querySelectorAll('body *:not(.skip)')].filter((one) => one.getBoundingClientRect().right > 390.5)"
)
WIDE += ".filter((one) => !one.closest('thead, .sr')).map((one) => one.tagName).slice(0, 5)"


@pytest.fixture
def browse(tmp_path):
    """What a script in a frame around a page says, and what the console said."""

    def run(html, script, width=1200):
        (tmp_path / "page.html").write_text(html)
        return look(tmp_path / "page.html", f"const page = win.document; {script}", width=width)

    return run


@pytest.fixture
def many(tmp_path):
    """The page over four runs."""
    kinds = ("clean", "diverged", "incomplete", "hostile")
    for day, kind in enumerate(kinds, 1):
        (tmp_path / "runs" / f"r{day}").mkdir(parents=True)
        run = getattr(sample_run, kind)(**SMALL) | {"started": f"2026-01-0{day}T00:00:00Z"}
        write_json(tmp_path / "runs" / f"r{day}" / "parity.json", run)
    return index_html(runindex.index(tmp_path / "runs"))


def both():
    return comparison_html(diff(sample_run.clean(**SMALL), sample_run.diverged(**SMALL), ("/runs/a", "/runs/b")))


def test_rows_are_sorted_and_found(browse, many):
    script = """
      const shown = () => [...page.querySelectorAll('#runtable tbody tr')].filter((row) => !row.hidden)
        .map((row) => row.querySelector('th bdi').textContent).join('');
      const wait = () => new Promise((done) => setTimeout(done, 50)), said = [shown()];
      const head = page.querySelectorAll('#runtable thead button'), form = page.querySelector('form');
      head[4].click(); said.push(shown(), head[4].parentNode.ariaSort); head[4].click(); said.push(shown());
      form.elements.verdict.value = 'incomplete'; form.oninput(); await wait(); said.push(shown());
      form.reset(); await wait(); form.elements.search.value = 'R2'; form.oninput(); await wait();
      said.push(shown(), page.getElementById('count').textContent); return said;"""
    said, console = browse(many, script)
    assert console == []
    assert said == ["r4r3r2r1", "r1r3r4r2", "ascending", "r4r2r3r1", "r3", "r2", "1 of 4 shown"]


@pytest.mark.parametrize("page", ["index", "comparison"])
def test_nothing_sticks_out_of_a_phone(browse, many, page):
    said, console = browse(many if page == "index" else both(), WIDE, width=390)
    assert (said, console) == ([], [])


def test_the_check_itself_finds_what_sticks_out(browse):
    said, _ = browse(both().replace("<main>", "<main><input size=99>"), WIDE, 390)
    assert said == ["INPUT"]


def test_nothing_hostile_is_run_or_shown_as_it_is(browse):
    found = diff(sample_run.clean(cases=(f"square{HOSTILE}",), **SMALL), sample_run.hostile(**SMALL), (HOSTILE, "b"))
    script = "return [page.images.length, page.scripts.length, page.querySelectorAll('[onerror]').length]"
    said, console = browse(comparison_html(found), script)
    assert (said, console) == ([0, 1, 0], [])


def test_the_theme_changes(browse, many):
    script = """const said = [], button = page.getElementById('theme');
      for (let i = 0; i < 3; i++) { button.click(); said.push(page.documentElement.dataset.theme,
        frames[0].getComputedStyle(page.body).backgroundColor); } return said;"""
    said, console = browse(many, script)
    assert console == []
    assert said[:4] == ["light", "rgb(246, 247, 249)", "dark", "rgb(15, 20, 25)"]
