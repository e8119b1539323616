"""Runs that are empty, half written or full of hostile text: the page is drawn, and says what is missing."""

import re
import time

import browser
import pytest
import sample_run

from parity.report import render_report, report_html

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]

SEEN = """return { message: $("#message").textContent, hidden: $("#message").hidden, count: $("#count").textContent,
  rows: all("#rows > tbody > tr").length, shown: all("#figures figure").filter((one) => one.offsetParent).length,
  flow: $("#flowwords").textContent, wide: win.document.documentElement.scrollWidth,
  foreign: all("script").length - 2 + all("img[src=x]").length };"""


def test_a_run_without_entries(tmp_path):
    run = sample_run.clean(blocks=2, dtypes=("float32",))
    run |= {"cases": [], "counts": dict.fromkeys(run["counts"], 0), "verdict": "incomplete"}
    page = render_report(run, tmp_path / "report.html", force=True)
    seen, console = browser.look(page, SEEN)
    assert console == []
    assert (seen["rows"], seen["shown"], seen["count"]) == (0, 0, "0 of 0 checkpoints")
    assert "This run has no entries" in seen["message"]


def test_an_entry_without_checkpoints(tmp_path):
    run = sample_run.clean(blocks=2, dtypes=("float32",))
    run["cases"][0]["checkpoints"] = []
    page = render_report(sample_run.settle(run), tmp_path / "report.html", force=True)
    seen, console = browser.look(page, SEEN)
    assert console == []
    assert (seen["rows"], seen["shown"]) == (0, 0)
    assert "This entry has no checkpoints" in seen["message"]
    seen, console = browser.look(page, "click(all('.card')[1]); await until(() => $('#heatmap[data-cells]'));" + SEEN)
    assert console == []
    assert seen["hidden"]
    assert seen["rows"] > 40


def test_rows_that_are_only_names(tmp_path):
    run = sample_run.clean(blocks=2, dtypes=("float32",))
    for case in run["cases"]:
        case["checkpoints"] = [{"name": row["name"], "verdict": "missing"} for row in case["checkpoints"]]
    page = render_report(run, tmp_path / "report.html", force=True)
    seen, console = browser.look(page, SEEN, address="#block.01.img.ffn")
    assert console == []
    assert seen["hidden"]
    assert seen["rows"] == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_names_of_ten_thousand_letters(tmp_path, width):
    run = sample_run.diverged(blocks=2, dtypes=("float32",))
    for case in run["cases"]:
        case["name"] = "case" + "x" * 10_000
        for row in case["checkpoints"][:4]:
            row["name"] += "\u202e</script>" * 800
            row["source"] = True
        case["sources"] = [row["name"] for row in case["checkpoints"] if row["source"]]
    page = render_report(sample_run.settle(run), tmp_path / "report.html", force=True)
    seen, console = browser.look(page, "press('j'); await until(() => $('.detail'));" + SEEN, width=width)
    assert console == []
    assert seen["foreign"] == 0
    assert seen["rows"] >= 2
    assert seen["wide"] <= width


def test_hostile_text_in_every_place(tmp_path):
    run = sample_run.hostile(blocks=2, dtypes=("float32",))
    page = render_report(run, tmp_path / "report.html", force=True)
    script = """const rows = all("#rows > tbody > tr").slice(0, 12).map((one) => one.dataset.row);
      for (const row of rows) click($(`#rows tr[data-row="${row}"] button`));
      for (const link of all(".jump").slice(0, 8)) { click(link); await sleep(30); }"""
    seen, console = browser.look(page, script + SEEN)
    assert console == []
    assert seen["foreign"] == 0


def test_a_hundred_thousand_checkpoints(tmp_path):
    run = sample_run.clean(blocks=60, level="kinds", dtypes=("float32",))
    entry = run["cases"][0]
    run["cases"] = [
        {**entry, "name": f"case-{i}", "graph": None} for i in range(1 + 100_000 // len(entry["checkpoints"]))
    ]
    run = sample_run.settle(run)
    page = render_report(run, tmp_path / "report.html", force=True)
    began = time.monotonic()
    seen, console = browser.look(page, SEEN)
    assert console == []
    assert seen["count"].endswith(f"of {run['counts']['expected']:,} checkpoints")
    assert time.monotonic() - began < 100


def test_a_page_that_cannot_be_drawn_says_so(tmp_path):
    source = report_html(sample_run.clean(blocks=2, dtypes=("float32",)))
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', source)[0]
    head = "function drawFlow(data, entry, stage, focus) {"
    assert head in source
    page = tmp_path / "report.html"
    page.write_text(source.replace(policy, "").replace(head, f"{head} throw new Error('no flow');"), encoding="utf-8")
    seen, console = browser.look(page, SEEN)
    assert not seen["hidden"]
    assert seen["message"].endswith("could not be read or drawn: no flow")
    assert console == ["no flow"]
