"""The page under a hand: a real pointer, real keys, the browser's Back, a system's dark theme, the printer."""

import browser
import pytest
import sample_run

from parity.report import render_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def run():
    return sample_run.diverged(blocks=12, dtypes=("float32",))


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    return render_report(run, tmp_path_factory.mktemp("driven") / "report.html", force=True).as_uri()


@pytest.fixture
def page(address):
    with browser.tab(address, width=1280, height=900) as opened:
        browser.drawn(opened)
        yield opened.page
        assert opened.console == []
        assert opened.requests == []


def index_of(run, name):
    return next(i for i, row in enumerate(run["cases"][0]["checkpoints"]) if row["name"] == name)


def cell(page, row):
    """The middle of a cell of the heatmap, in the window."""
    page.locator("#heatmap").scroll_into_view_if_needed()
    at = page.evaluate("(i) => { const { x, y } = cellMiddle(i); return [x, y]; }", row)
    return tuple(at)


def selected(page):
    """Checkpoint in the address, and the rows that stand open."""
    parts = page.evaluate("location.hash.slice(1).split('/').map(decodeURIComponent)")
    return parts[1] if len(parts) > 1 else "", page.locator('#rows button[aria-expanded="true"]').all_inner_texts()


def test_a_click_selects_and_back_undoes_it(page, run):
    page.mouse.click(*cell(page, index_of(run, "block.07.img.ffn")))
    page.locator(".detail").wait_for()
    assert selected(page) == ("block.07.img.ffn", ["block.07.img.ffn"])
    page.get_by_role("button", name="square").nth(1).click()
    page.locator(".detail").wait_for(state="detached")
    page.go_back()
    page.locator(".detail").wait_for()
    assert selected(page) == ("block.07.img.ffn", ["block.07.img.ffn"])
    page.go_back()
    page.locator(".detail").wait_for(state="detached")
    assert selected(page) == ("", [])


def test_the_pointer_is_told_what_it_is_at(page, run):
    tip = page.locator(".tip")
    page.mouse.move(*cell(page, index_of(run, "block.08.img.attn")))
    tip.wait_for()
    assert tip.inner_text() == "block.08.img.attn: diverged, excess 240×, source"
    assert page.evaluate("getComputedStyle(document.getElementById('heatmap')).cursor") == "pointer"
    page.mouse.move(2, 2)
    tip.wait_for(state="hidden")


def test_keys_alone_lead_from_source_to_source_and_over_the_heatmap(page):
    page.keyboard.press("j")
    page.locator(".detail").wait_for()
    assert selected(page)[0] == "block.05.img.attn"
    page.keyboard.press("Escape")
    page.locator(".detail").wait_for(state="detached")
    page.locator("#heatmap").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.locator(".detail").wait_for()
    assert selected(page)[0] == "block.05.img.mid"
    assert page.evaluate("document.activeElement.textContent") == "block.05.img.mid"


def test_tab_comes_to_the_heatmap_and_goes_on(page):
    page.locator(".card").last.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "heatmap"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "heatmap"


def test_a_drag_zooms_and_a_double_click_shows_all(page):
    over = page.locator("#error .u-over")
    over.scroll_into_view_if_needed()
    box = over.bounding_box()

    def place(share):
        return box["x"] + share * box["width"], box["y"] + 60

    def right():
        page.mouse.move(*place(0.99))
        return page.locator(".tip > div").first.inner_text()

    assert right() == "block 11"
    page.mouse.move(*place(0.2))
    page.mouse.down()
    page.mouse.move(*place(0.52), steps=8)
    page.mouse.up()
    assert right() == "block 6"
    page.mouse.dblclick(*place(0.5))
    assert right() == "block 11"


def test_search_and_sorting_by_hand(page, run):
    page.get_by_label("Search").fill("txt.attn")
    page.get_by_label("Verdict").select_option("source")
    names = page.locator("#rows tbody th bdi")
    assert names.count() == sum(row["source"] and ".txt." in row["name"] for row in run["cases"][0]["checkpoints"])
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("columnheader", name="Excess").get_by_role("button").click()
    assert page.locator('#rows th[aria-sort="descending"]').inner_text().startswith("Excess")
    assert "240×" in page.locator("#rows tbody tr").first.inner_text()


GROUND = "getComputedStyle(document.body).backgroundColor"


def test_the_system_s_theme_is_followed_while_it_changes(page):
    picture = "document.querySelector('#error canvas').toDataURL()"
    light, drawn = page.evaluate(GROUND), page.evaluate(picture)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(before) => {picture} !== before", arg=drawn)
    assert page.evaluate(GROUND) != light
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"(before) => {picture} === before", arg=drawn)
    assert page.evaluate(GROUND) == light


def test_it_is_printed_and_is_afterwards_as_it_was(address):
    with browser.tab(address, width=1280, height=900, dark=True) as opened:
        browser.drawn(opened)
        page = opened.page
        before = page.evaluate(GROUND), page.evaluate("document.documentElement.dataset.theme")
        paper = page.pdf(format="A4")
        assert paper.startswith(b"%PDF")
        assert len(paper) > 50_000
        assert (page.evaluate(GROUND), page.evaluate("document.documentElement.dataset.theme")) == before
        assert opened.console == []


def test_nothing_glides_for_whom_that_is_switched_off(page):
    style = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(style) == "smooth"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(style) == "auto"


def test_a_phone_turned_upright(page):
    page.set_viewport_size({"width": 390, "height": 844})
    width = "document.querySelector('#heatmap canvas').getBoundingClientRect().width"
    page.wait_for_function(f"() => {width} < 390")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#heatmap").scroll_into_view_if_needed()
    page.mouse.click(*cell(page, 60))
    page.locator(".detail").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
