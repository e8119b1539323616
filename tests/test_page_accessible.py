"""axe-core finds no violation in the page, light and dark, wide and narrow, with a row open.

It is looked for in ``node_modules`` (``npm install --no-save axe-core``) or at ``AXE_CORE``; without it, or without
Chromium, these tests are skipped. The rest of what a reader without eyes or a mouse needs is tested elsewhere.
"""

import os
from pathlib import Path

import browser
import pytest
import sample_run
from test_budget import quantized

from parity.report import report_html

AXE = Path(os.environ.get("AXE_CORE") or Path(__file__).parent.parent / "node_modules/axe-core/axe.min.js")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None or not AXE.is_file(), reason="needs Chromium and axe-core"),
]
FOUND = """const report = await win.axe.run(win.document, { resultTypes: ["violations"] });
  return report.violations.map(({ id, nodes }) => [id, nodes.length, nodes[0].html.slice(0, 200)]);"""


def page(tmp_path, run, folder=None, *, spoil=""):
    """The page with axe-core in it, which its own policy would forbid."""
    source = report_html(run, folder)
    policy = source[source.index('<meta http-equiv="Content-Security-Policy"') :].partition(">")[0] + ">"
    script = f"<script>{AXE.read_text(encoding='utf-8')}</script>"
    source = source.replace(policy, "").replace("</main>", f"{spoil}</main>").replace("</body>", f"{script}</body>")
    path = tmp_path / "report.html"
    path.write_text(source, encoding="utf-8")
    return path


def runs(folder):
    return {
        "diverged": (sample_run.diverged(blocks=3), None, "#square.float32.isolated/block.01.img.attn"),
        "incomplete": (sample_run.incomplete(blocks=3), None, "#square.float32.isolated/block.01.txt.q"),
        "nonfinite": (sample_run.nonfinite(blocks=3), None, "#square.bfloat16.accumulated/block.02.img.ffn"),
        "pictured": (sample_run.pictured(folder, dtypes=("float32",)), folder, ""),
        "quantized": (quantized(), None, ""),
        "several": (sample_run.several(), None, "#vae-one.float32.isolated"),
    }


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["diverged", "incomplete", "nonfinite", "pictured", "quantized", "several"])
def test_no_violation(tmp_path, kind, width):
    run, folder, address = runs(tmp_path)[kind]
    themes = "const button = $('#theme'); for (let n = 0; n < %d; n++) click(button); await sleep(100);"
    for clicks in (1, 2):
        found, _ = browser.look(
            page(tmp_path, run, folder), themes % clicks + FOUND, address=address, width=width
        )  # fmt: skip
        assert found == []


def test_the_check_itself_finds_a_violation(tmp_path):
    spoiled = page(tmp_path, sample_run.clean(blocks=2, dtypes=("float32",)), spoil='<img src="data:,">')
    found, _ = browser.look(spoiled, FOUND)
    assert [one[0] for one in found] == ["image-alt"]
