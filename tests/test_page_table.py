"""The table of checkpoints in a browser: order, filters, pages, keys; the theme, the tabs of pictures, a phone's width,
and that the page asks the network for nothing.
"""

import json
import re

import browser
import pytest
import sample_run
from test_budget import quantized

from parity.report import render_report, report_html

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]
NAMES = """const names = () => all("#rows > tbody > tr:not(.detail) > th button bdi").map((one) => one.textContent);
  const sorted = () => all("#rows thead th").map((one) => one.getAttribute("aria-sort"));
  const head = (words) => click(all("#rows thead button").find((one) => one.textContent.startsWith(words)));
  const filter = async (values) => {
    click($("#filters [type=reset]"));
    await sleep(30);
    for (const [key, value] of Object.entries(values)) {
      $(`#filters [name=${key}]`).value = value;
      $(`#filters [name=${key}]`).dispatchEvent(new win.Event("input", { bubbles: true }));
    }
    await sleep(30);
  };
"""


@pytest.fixture(scope="module")
def run():
    return sample_run.diverged(blocks=3, dtypes=("float32",))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return render_report(run, tmp_path_factory.mktemp("table") / "report.html", force=True)


def seen_of(page, script, **options):
    seen, console = browser.look(page, NAMES + script, **options)
    assert console == []
    return seen


def rows(run, entry=None):
    cases = run["cases"] if entry is None else [run["cases"][entry]]
    return [row for case in cases for row in case["checkpoints"]]


def shown(value):
    """A figure with the digits that the page sorts by."""
    return float(f"{value:.5g}")


class TestOrder:
    @pytest.mark.parametrize(("column", "key"), [("Excess", "excess"), ("Rel. RMSE", "rel_rmse"), ("Floor", "floor")])
    def test_by_a_figure_down_then_up(self, page, run, column, key):
        script = f"head('{column}'); const down = [names(), sorted()]; head('{column}');"
        script += "return [...down, names(), sorted()];"
        down, first, up, second = seen_of(page, script)
        mine = rows(run, 0)
        assert down == [row["name"] for row in sorted(mine, key=lambda row: -shown(row[key]))]
        assert up == [row["name"] for row in sorted(mine, key=lambda row: shown(row[key]))]
        assert [one for one in first if one != "none"] == ["descending"]
        assert [one for one in second if one != "none"] == ["ascending"]

    def test_the_worst_verdict_comes_first(self, page, run):
        found = seen_of(page, "head('Verdict'); return names();")
        diverged = [row["name"] for row in rows(run, 0) if row["verdict"] == "diverged"]
        assert found[: len(diverged)] == diverged


class TestFilters:
    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            ({"verdict": "diverged"}, lambda row: row["verdict"] == "diverged"),
            ({"verdict": "source"}, lambda row: row["source"]),
            ({"verdict": "!match"}, lambda row: row["verdict"] != "match"),
            ({"index": "2"}, lambda row: ".02." in row["name"]),
            ({"where": "text stream"}, lambda row: re.match(r"block\.\d\d\.txt", row["name"])),
            ({"search": "block.nn.img.attn"}, lambda row: re.match(r"block\.\d\d\.img\.attn$", row["name"])),
            ({"search": "FFN", "index": "1"}, lambda row: row["name"] in ("block.01.img.ffn", "block.01.txt.ffn")),
        ],
    )
    def test_leave_what_was_asked_for(self, page, run, values, wanted):
        script = (
            f"await filter({json.dumps(values | {'mode': 'isolated'})}); return [names(), $('#count').textContent];"
        )
        names, count = seen_of(page, script)
        expected = [row["name"] for row in rows(run, 0) if wanted(row)]
        assert expected
        assert names == expected
        assert count == f"{len(expected)} of {len(rows(run))} checkpoints"

    def test_of_nothing_say_so_and_are_undone(self, page, run):
        script = """await filter({ search: "no such name" });
          const none = [names().length, $("#count").textContent];
          click($("#filters [type=reset]")); await sleep(60); return [...none, $("#count").textContent];"""
        total = len(rows(run))
        assert seen_of(page, script) == [0, f"0 of {total} checkpoints", f"{total} of {total} checkpoints"]

    def test_rows_come_in_pages_of_a_hundred(self, page, run):
        script = """await filter({});
          const step = (by) => click($(`#pager [data-step="${by}"]`)), seen = [names()];
          step(1); seen.push(names(), $("#pager span").textContent);
          step(-1); seen.push(names());
          return seen;"""
        every = [row["name"] for row in rows(run)]
        assert 100 < len(every) <= 200
        assert seen_of(page, script) == [every[:100], every[100:], "Page 2 of 2", every[:100]]


def test_arrows_move_through_the_table(page, run):
    script = """const now = () => win.document.activeElement;
      $("#rows tbody button").focus();
      const seen = [now().textContent];
      for (const key of ["ArrowDown", "ArrowDown", "ArrowUp"]) { press(key, now()); seen.push(now().textContent); }
      return seen;"""
    first, second, third = (row["name"] for row in rows(run, 0)[:3])
    assert seen_of(page, script) == [first, second, third, second]


def test_the_theme_is_changed_by_its_button(page):
    script = """const ground = () => win.getComputedStyle(win.document.body).backgroundColor, seen = [];
      for (let n = 0; n < 4; n++) { seen.push([$("#theme").textContent, ground()]); click($("#theme")); }
      return seen;"""
    seen = seen_of(page, script)
    assert [words for words, _ in seen] == ["Theme: system", "Theme: light", "Theme: dark", "Theme: system"]
    assert seen[1][1] != seen[2][1]
    assert seen[3][1] == seen[0][1]


def test_tabs_of_a_picture_show_one_and_keys_move_between_them(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    page = render_report(run, tmp_path / "report.html", force=True)
    script = """const shots = () => all(".viewer .shot").filter((one) => one.offsetParent);
      const visible = () => shots().map((one) => one.className);
      const tabs = () => all(".viewer [role=tab]"), seen = [visible()];
      for (const kind of ["reference", "candidate", "difference", "slider"]) {
        click(tabs().find((one) => one.dataset.view === kind));
        seen.push(visible());
      }
      press("Home", tabs()[4]); seen.push(visible()); press("ArrowLeft", tabs()[0]); seen.push(visible());
      return seen;"""
    together, *single, home, last = seen_of(page, script)
    assert together == home == ["shot reference", "shot candidate", "shot difference"]
    assert single == [["shot reference"], ["shot candidate"], ["shot difference"], ["shot slider"]]
    assert last == ["shot slider"]


RUNS = {
    "transformer": lambda: sample_run.diverged(blocks=60, dtypes=("float32",)),
    "vae": lambda: sample_run.diverged(component="vae", dtypes=("float32",)),
    "pipeline": lambda: sample_run.diverged(component="pipeline", blocks=3, dtypes=("float32",)),
    "several": sample_run.several,
    "quantized": quantized,
}


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_sticks_out_of_a_phone(tmp_path, kind):
    page = render_report(RUNS[kind](), tmp_path / "report.html", force=True)
    script = """press("j"); await sleep(300);
      // What lies in a box of its own that can be moved may be wider.
      const out = (one) => one.getBoundingClientRect().width && one.getBoundingClientRect().right > 390.5;
      const within = (one) => one.matches(".sr") || one.parentNode.closest(".flow, .scroll, .plot, svg");
      const { scrollWidth, clientWidth } = win.document.documentElement;
      const found = all("main *").filter((one) => out(one) && !within(one));
      return [scrollWidth - clientWidth, found.map((one) => one.outerHTML)];"""
    assert seen_of(page, script, width=390) == [0, []]


def requests(page):
    """Addresses that the page asked for, but for files."""
    with browser.tab(page.as_uri()) as opened:
        browser.drawn(opened)
        opened.page.wait_for_timeout(300)
        return opened.requests


def test_nothing_is_asked_of_the_network(tmp_path):
    page = render_report(sample_run.pictured(tmp_path, dtypes=("float32",)), tmp_path / "report.html", force=True)
    assert requests(page) == []


def test_the_check_itself_hears_a_request(tmp_path):
    source = report_html(sample_run.clean(blocks=2, dtypes=("float32",)))
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', source)[0]
    page = tmp_path / "report.html"
    page.write_text(
        source.replace(policy, "").replace("</main>", '<img alt="" src="http://parity.invalid/x.png"></main>')
    )
    assert requests(page) == ["http://parity.invalid/x.png"]
