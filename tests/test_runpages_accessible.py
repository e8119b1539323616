"""The pages of two runs and of many for everybody: axe-core finds no violation, keys and pointers lead to the runs.

axe-core is looked for as in `test_page_accessible`; without it, or without Chromium, these tests are skipped.
"""

import re

import browser
import pytest
import sample_run
from sample_run import HOSTILE
from test_page_accessible import AXE, FOUND

from parity import runindex
from parity.diffpage import comparison_html
from parity.indexpage import index_html
from parity.reporters.rundiff import excess
from parity.rundiff import diff
from parity.runfolder import write_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]
axe = pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core")

SMALL = {"blocks": 3, "dtypes": ("float32",)}
LINKS = ("../a/report.html", "./report.html")


def put(folder, run, day):
    folder.mkdir(parents=True)
    write_json(folder / "parity.json", run | {"started": f"2026-01-{day:02d}T03:04:05+00:00"})


def folder_of_runs(root, kinds=("clean", "diverged", "incomplete", "hostile", "nonfinite", "clean")):
    """Runs of every state; half of them with a page."""
    for day, kind in enumerate(kinds, 1):
        run = getattr(sample_run, kind)(**SMALL)
        put(root / f"r{day}", run, day)
        if day % 2:
            (root / f"r{day}" / "report.html").write_text("<title>a run</title>")
    (root / "half" / "work").mkdir(parents=True)
    (root / "half" / "work" / "plan.json").write_text("{}")
    (root / "cut").mkdir()
    (root / "cut" / "parity.json").write_text('{"schema":2,"cas')
    return root


def pages(root):
    def two(before, after, names=("/runs/a", "/runs/b")):
        runs = [getattr(sample_run, kind)(**SMALL) for kind in (before, after)]
        return comparison_html(diff(*runs, names), LINKS)

    many = [f"case-{n}" for n in range(8)]
    crowd = sample_run.clean(**SMALL | {"cases": tuple(many)})
    put(root / "crowd" / "a", crowd, 1)
    return {
        "worse": two("clean", "diverged"), "same": two("clean", "clean"), "mixed": two("diverged", "incomplete"),
        "hostile": two("hostile", "nonfinite", (HOSTILE, "b")),
        "index": index_html(runindex.index(folder_of_runs(root / "runs"))),
        "one run": index_html(runindex.index(root / "crowd")),
    }  # fmt: skip


def with_axe(source):
    """A page with axe-core in it, which its own policy would forbid."""
    policy = source[source.index('<meta http-equiv="Content-Security-Policy"') :].partition(">")[0] + ">"
    script = f"<script>{AXE.read_text(encoding='utf-8')}</script>"
    return source.replace(policy, "").replace("</body>", f"{script}</body>")


@axe
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["worse", "same", "mixed", "hostile", "index", "one run"])
def test_no_violation(tmp_path, kind, width):
    path = tmp_path / "page.html"
    path.write_text(with_axe(pages(tmp_path)[kind]), encoding="utf-8")
    for clicks in (1, 2):
        themes = f"const button = $('#theme'); for (let n = 0; n < {clicks}; n++) click(button); await sleep(100);"
        found, _ = browser.look(path, themes + FOUND, width=width)
        assert found == []


@axe
def test_the_check_itself_finds_a_violation(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(with_axe(pages(tmp_path)["worse"]).replace("</main>", '<img src="data:,"></main>'))
    assert [one[0] for one in browser.look(path, FOUND)[0]] == ["image-alt"]


@pytest.fixture
def index(tmp_path):
    root = folder_of_runs(tmp_path / "runs")
    path = root / "index.html"
    path.write_text(index_html(runindex.index(root)), encoding="utf-8")
    return path


POINT = """const at = (node, share, kind) => { const box = node.getBoundingClientRect();
    node.dispatchEvent(new win.PointerEvent(kind, { clientX: box.left + share * box.width, clientY: box.top + 5,
                                                    bubbles: true })); };
  const tip = () => $("#tip").hidden ? "" : $("#tip").textContent;"""


def test_a_point_names_its_run_and_leads_to_it(index):
    look = (
        POINT
        + """
      const said = [], strip = $(".timeline > .strip");
      const row = all("#trendtable tbody tr").find((one) => one.querySelector("bdi").textContent === "square");
      const spark = row.querySelector(".spark");
      at(spark, 0.02, "pointermove"); said.push(tip());
      at(spark, 0.99, "pointermove"); said.push(tip());
      at(spark, 0.5, "pointerleave"); said.push(tip());
      at(strip, 0, "pointermove"); said.push(tip());
      const verdict = $("#runs select"); verdict.value = "parity"; $("#runs form").oninput(); await sleep(50);
      const spot = all(".timeline > .strip rect").findIndex((one) => one.matches(".divergence"));
      said.push($("#run-" + spot).hidden);
      at(strip, (spot + 0.5) / 60, "click"); await sleep(50);
      said.push(win.location.hash === "#run-" + spot, $("#run-" + spot).hidden, $("tr:target") === $("#run-" + spot));
      return said;"""
    )
    said, console = browser.look(index, look)
    assert console == []
    found = runindex.index(index.parent)
    first = next(trend["points"][0] for trend in found["trends"] if trend["case"] == "square")
    assert said[0] == f"excess {excess(first['worst'])} · r1 · 2026-01-01 03:04"
    assert said[1].endswith(" · r6 · 2026-01-06 03:04")
    assert said[2:] == ["", "r1 · 2026-01-01 03:04 · parity", True, True, False, True]


def test_links_from_the_index_lead_to_a_page_and_back_leads_to_the_index(index):
    look = """
      const [link] = all("#runtable a").filter((one) => one.textContent === "r1");
      win.location = link.href; await until(() => win.document?.title === "a run");
      const there = win.document.title; win.history.back();
      await until(() => $("#runtable")); return [there, all("#runtable tbody tr").length];"""
    said, console = browser.look(index, look)
    assert (said, console) == (["a run", 8], [])


def test_tables_are_sorted_by_keys(index):
    look = """const head = $("#trendtable thead button"); head.focus();
      const order = () => all("#trendtable tbody tr").map((row) => row.cells[2].textContent);
      $("#trendtable thead th:nth-child(3) button").click(); const up = order();
      $("#trendtable thead th:nth-child(3) button").click();
      return [win.document.activeElement === head, up, order(), all("a, button").every((one) => one.tabIndex === 0)];"""
    said, _ = browser.look(index, look)
    assert said[0] is True
    assert said[1] == sorted(said[1])
    assert said[2] == sorted(said[1], reverse=True)
    assert said[3] is True


def test_figures_of_the_drawings_are_those_of_the_runs(tmp_path):
    root = folder_of_runs(tmp_path / "runs")
    found = runindex.index(root)
    page = index_html(found)
    drawn = re.findall(r'<svg class="spark"[^>]* data-points="([^"]*)"', page)
    for trend in found["trends"]:
        listed = " ".join(f"{point['run']}:{excess(point['worst'], point['differ'])}" for point in trend["points"])
        assert listed in drawn
    assert str(root) in page
