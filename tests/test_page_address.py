"""The page's address keeps what is selected, Back undoes it, and keys move between the sources."""

from urllib.parse import unquote

import browser
import pytest
import sample_run

from parity.report import render_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]

SELECTED = """({ address: win.location.hash, shown: $("#shown").textContent, lost: $("#lost").textContent,
  open: all('#rows button[aria-expanded="true"]').map((one) => one.textContent),
  chosen: [$("#heatmap").dataset.chosen].filter(Boolean) })"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = sample_run.diverged(blocks=3, dtypes=("float32",))
    return render_report(run, tmp_path_factory.mktemp("address") / "report.html", force=True)


@pytest.mark.parametrize(
    ("address", "entry", "name"),
    [
        ("#block.02.txt.ffn", "isolated", "block.02.txt.ffn"),
        ("#square.float32.accumulated/block.02.txt.ffn", "accumulated", "block.02.txt.ffn"),
        ("#square.float32.accumulated", "accumulated", None),
        ("#final", "isolated", "final"),
    ],
)
def test_an_address_selects(page, address, entry, name):
    seen, console = browser.look(page, f"return {SELECTED};", address=address)
    assert console == []
    assert seen["shown"].endswith(entry)
    assert seen["open"] == ([name] if name else [])
    assert seen["chosen"] == ([name] if name and name != "final" else [])
    assert seen["lost"] == ""


def test_a_click_changes_the_address_and_back_undoes_it(page):
    steps = f"""const seen = [];
      const now = () => seen.push({SELECTED});
      point("click", $("#heatmap"), cell(40)); await until(() => $("#heatmap").dataset.chosen); now();
      click(all(".card")[1]); await until(() => !$("#heatmap").dataset.chosen); now();
      win.history.back(); await until(() => $("#heatmap").dataset.chosen); now();
      win.history.back(); await until(() => !$("#heatmap").dataset.chosen); now();
      return seen;"""
    (cell, card, back, start), console = browser.look(page, steps)
    assert console == []
    assert cell["address"].startswith("#square.float32.isolated/block.")
    assert cell["open"] == cell["chosen"] == [cell["address"].partition("/")[2]]
    assert (card["address"], card["open"]) == ("#square.float32.accumulated", [])
    assert back == cell
    assert (start["address"], start["open"], start["chosen"]) == ("", [], [])


def test_keys_move_between_sources_and_escape_lets_go(page):
    steps = f"""const seen = [];
      for (const key of ["j", "j", "k", "Escape"]) {{ press(key); await sleep(200); seen.push({SELECTED}); }}
      press("j", $("[name=search]")); await sleep(200); seen.push({SELECTED});
      return seen;"""
    seen, console = browser.look(page, steps)
    assert console == []
    first, second = "block.01.img.attn", "block.01.txt.attn"
    assert [one["open"] for one in seen] == [[first], [second], [first], [], []]
    assert seen[3]["address"] == seen[4]["address"] == "#square.float32.isolated"


def test_what_the_run_does_not_have_is_said_and_sections_stay_anchors(page):
    for address, said in (("#block.99.img.attn", "block.99.img.attn"), ("#%E0%A4%A", "%E0%A4%A"), ("#charts", "")):
        seen, console = browser.look(page, f"return {SELECTED};", address=address)
        assert console == []
        assert said in seen["lost"]
        assert bool(seen["lost"]) == bool(said)
        assert seen["open"] == []


def test_hostile_names_are_addresses_too(tmp_path):
    run = sample_run.hostile(blocks=2, dtypes=("float32",))
    page = render_report(run, tmp_path / "report.html", force=True)
    steps = f"press('j'); await until(() => $('.detail')); return {SELECTED};"
    seen, console = browser.look(page, steps)
    assert console == []
    assert "</script><img" in unquote(seen["address"])
    assert len(seen["open"]) == 1
    reload = "win.location.reload(); await sleep(500); await until(() => $('.detail'));"
    again, _ = browser.look(page, f"press('j'); await until(() => $('.detail')); {reload} return {SELECTED};")
    assert again == seen


def test_a_health_alert_leads_to_its_checkpoint(tmp_path):
    page = render_report(sample_run.nonfinite(blocks=2, dtypes=("float32",)), tmp_path / "report.html", force=True)
    seen, console = browser.look(page, f"click($('.alert .jump')); await until(() => $('.detail')); return {SELECTED};")
    assert console == []
    assert seen["open"] == ["block.01.img.ffn"]
