"""The slider over two pictures: a tab of its own, where both are there."""

import browser
import pytest
import sample_run

from parity.report import render_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]

CUT = 'win.getComputedStyle($(".compare img:last-child")).clipPath'
SHOWN = 'all(".shot").filter((one) => one.offsetParent).map((one) => one.className)'


def test_the_slider_uncovers_the_candidate(tmp_path):
    page = render_report(sample_run.pictured(tmp_path, dtypes=("float32",)), tmp_path / "report.html", force=True)
    script = f"""const seen = [{SHOWN}];
      click($('[role=tab][data-view=slider]')); seen.push({SHOWN}, {CUT});
      const input = $(".slider input"); input.value = 20; input.dispatchEvent(new win.Event("input")); seen.push({CUT});
      const boxes = all(".compare img").map((one) => one.getBoundingClientRect());
      const sizes = boxes.map((one) => [one.x, one.y, one.width, one.height]);
      seen.push(JSON.stringify(sizes[0]) === JSON.stringify(sizes[1]) && sizes[0][2] > 100);
      press("ArrowRight", $('[role=tab][data-view=slider]')); seen.push({SHOWN});
      return seen;"""
    (before, slider, half, fifth, aligned, after), console = browser.look(page, script)
    assert console == []
    assert before == after == ["shot reference", "shot candidate", "shot difference"]
    assert slider == ["shot slider"]
    assert (half, fifth) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 20%)")
    assert aligned


def test_without_one_of_the_pictures_there_is_none(tmp_path):
    run = sample_run.pictured(tmp_path, dtypes=("float32",))
    (tmp_path / "pictures/pipeline-plain.float32/candidate.00.png").unlink()
    page = render_report(run, tmp_path / "report.html", force=True)
    seen, console = browser.look(page, 'return all("[role=tab]").map((one) => one.textContent);')
    assert console == []
    assert "Slider" not in seen
    assert "Side by side" in seen
