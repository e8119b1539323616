"""The charts in a browser: what is drawn, what the pointer and the keys do, colours by theme and in print."""

import hashlib
import itertools
import re
from importlib import resources

import browser
import pytest
import sample_run

from parity.report import SCRIPTS, STYLES, UPLOT, render_report, report_html

needs_chromium = [pytest.mark.slow, pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")]
BLOCKS = 12
LINES = [f"{side} stream, {what}" for side in ("image", "text") for what in ("floor", "relative RMSE")]
# Colour of a pixel of the canvas in a box, and how many of its pixels are not blank.
PIXELS = """const pixels = (box) => {
    const canvas = $(box + " canvas"), { width, height } = canvas, copy = new OffscreenCanvas(width, height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    return { canvas, ratio: width / canvas.getBoundingClientRect().width, width, data };
  };
  const inked = (box) => pixels(box).data.filter((value, i) => i % 4 === 3 && value > 0).length;
  const toned = (i, off = 3, down = 3) => {
    const { canvas, ratio, data, width } = pixels("#heatmap"), { left, top } = canvas.getBoundingClientRect();
    const [x, y] = cell(i), pixel = (v) => Math.round(v * ratio);
    const at = 4 * (pixel(y - top + down) * width + pixel(x - left + off));
    return [...data.slice(at, at + 3)];
  };
  // How many pixels of a box have a colour, between two shares of its height.
  const count = (box, colour, from = 0, to = 1) => {
    const { data, width } = pixels(box), rows = data.length / 4 / width;
    let n = 0;
    for (let i = 4 * width * Math.floor(rows * from); i < 4 * width * Math.floor(rows * to); i += 4) {
      n += data[i + 3] === 255 && colour.every((value, k) => Math.abs(data[i + k] - value) < 3);
    }
    return n;
  };
  const variable = (name) => {
    const probe = win.document.createElement("i");
    probe.style.color = `var(--${name})`;
    win.document.body.append(probe);
    const said = win.getComputedStyle(probe).color;
    probe.remove();
    return said.match(/\\d+/g).map(Number);
  };
  const theme = async (name) => {
    while (!$("#theme").textContent.endsWith(name)) click($("#theme"));
    await sleep(120);
  };
"""


@pytest.fixture(scope="module")
def run():
    return sample_run.diverged(blocks=BLOCKS, dtypes=("float32",))


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return render_report(run, tmp_path_factory.mktemp("charts") / "report.html", force=True)


def seen_of(page, script, **options):
    seen, console = browser.look(page, PIXELS + script, **options)
    assert console == []
    return seen


def index_of(run, name):
    return next(i for i, row in enumerate(run["cases"][0]["checkpoints"]) if row["name"] == name)


class TestDrawn:
    pytestmark = needs_chromium

    def test_every_chart_has_ink(self, page):
        seen = seen_of(page, "return ['#heatmap', '#range', '#growth', '#error', '#excess'].map(inked);")
        assert all(count > 2000 for count in seen)

    @pytest.mark.parametrize("name", ["light", "dark"])
    def test_a_cell_has_the_colour_of_its_excess(self, page, run, name):
        match, off = (index_of(run, one) for one in ("block.00.img.q", "block.06.img.mid"))
        script = f"""await theme('{name}');
          return {{ match: toned({match}), off: toned({off}), key: ['h1', 'h2', 'h6'].map(variable) }};"""
        seen = seen_of(page, script)
        # Of half-open steps of excess: 45 is in the sixth, what is near 1 in the first or second.
        assert seen["off"] == seen["key"][2]
        assert seen["match"] in seen["key"][:2]

    def test_the_printer_gets_light_colours_and_the_screen_its_own_back(self, page, run):
        at = index_of(run, "block.06.img.mid")
        script = f"""const now = () => [toned({at}), variable("h6")];
          await theme("dark"); const before = now();
          win.dispatchEvent(new win.Event("beforeprint")); const print = now();
          win.dispatchEvent(new win.Event("afterprint")); await sleep(100);
          return [before, print, now()];"""
        before, printed, after = seen_of(page, script)
        assert before == after
        assert printed != before
        assert all(drawn == variable for drawn, variable in (before, printed, after))

    def test_figures_behind_a_chart_are_those_of_the_run(self, page, run):
        script = """const behind = (box) => $(box).parentNode.querySelector(".behind");
          for (const box of ["#error", "#heatmap"]) behind(box).open = true; await sleep(100);
          const texts = (tr) => [...tr.cells].map((one) => one.textContent);
          const cells = (box) => [...behind(box).querySelectorAll("tr")].map(texts);
          return [cells("#error"), cells("#heatmap")];"""
        error, heat = seen_of(page, script, address="#block.03.img.attn")
        assert error[0] == ["block", *LINES]
        assert len(error) == len(heat) == BLOCKS + 1
        row = run["cases"][0]["checkpoints"][index_of(run, "block.03.img.attn")]
        assert float(error[4][1].replace("−", "-")) == pytest.approx(row["floor"], rel=1e-3)
        assert float(error[4][2].replace("−", "-")) == pytest.approx(row["rel_rmse"], rel=1e-3)
        column = heat[0].index("img.attn")
        assert heat[4][column] == f"{row['excess']:.2f}×"
        assert heat[9][column] == "240×"

    def test_the_cell_of_what_is_selected_has_a_frame(self, page):
        script = "return count('#heatmap', variable('focus'));"
        assert seen_of(page, script) == 0
        assert seen_of(page, script, address="#block.03.img.ffn") > 40

    def test_what_the_table_of_ranges_allows_is_a_band(self, page, run):
        # Of img.attn every block has a documented range, of img.q none.
        assert all(bool(row["range"]) == row["name"].endswith("attn") for row in run["cases"][0]["checkpoints"]
                   if re.match(r"block.\d\d.img.(attn|q)$", row["name"]))  # fmt: skip
        script = "return [count('#range', variable('doc')), inked('#range')];"
        (edges, ink), (none, less) = (seen_of(page, script, address=f"#block.01.img.{kind}") for kind in ("attn", "q"))
        assert edges > 300 > 10 > none
        assert ink > 3 * less

    def test_verdicts_without_an_excess_are_hatched(self, tmp_path):
        run = sample_run.incomplete(blocks=3, dtypes=("float32",))
        page = render_report(run, tmp_path / "report.html", force=True)
        at = {
            row["verdict"]: i for i, row in enumerate(run["cases"][0]["checkpoints"]) if row["name"].startswith("block")
        }
        script = f"""const row = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
          const tones = (i) => new Set(row.map((off) => toned(i, off).join())).size;
          return [{at["missing"]}, {at["uncertain"]}, {at["match"]}].map(tones);"""
        missing, uncertain, match = seen_of(page, script)
        assert min(missing, uncertain) > 1
        assert match == 1

    def test_what_is_not_finite_is_a_cross_on_the_upper_edge(self, tmp_path):
        counted = []
        for make in (sample_run.nonfinite, sample_run.clean):
            page = render_report(make(blocks=3, dtypes=("float32",)), tmp_path / "report.html", force=True)
            script = "return ['#error', '#excess', '#range'].map((box) => count(box, variable('bad'), 0, 0.15));"
            counted.append(seen_of(page, script, address="#block.02.img.ffn"))
        assert all(crosses > 0 for crosses in counted[0])
        assert counted[1] == [0, 0, 0]

    def test_limits_are_lines_and_sources_have_rings(self, tmp_path):
        ink = []
        for make in (sample_run.clean, sample_run.diverged):
            page = render_report(make(blocks=12, dtypes=("float32",)), tmp_path / "report.html", force=True)
            ink.append(seen_of(page, "return count('#excess', variable('ink'));"))
        clean, rings = ink[0], ink[1] - ink[0]
        # Two dashed lines across the chart; then rings around 14 sources, at one height two of them lie on each other.
        assert clean > 500
        assert rings > 60

    def test_an_error_of_zero_lies_on_the_lower_edge(self, tmp_path):
        run = sample_run.clean(blocks=12, dtypes=("float32",))
        for row in run["cases"][0]["checkpoints"]:
            if row["name"].endswith("img.q"):
                row.update(rel_rmse=0.0, excess=0.0)
        page = render_report(run, tmp_path / "report.html", force=True)
        script = "return [count('#error', variable('img'), 0.8, 0.9), count('#error', variable('img'), 0, 0.3)];"
        edge, above = seen_of(page, script, address="#block.05.img.q")
        assert edge > 300
        assert above == 0

    def test_a_match_is_shaded_over_the_steps(self, tmp_path):
        run = sample_run.clean(component="pipeline", blocks=3, dtypes=("float32",))
        page = render_report(run, tmp_path / "report.html", force=True)
        shaded, whole = seen_of(page, "return [inked('#steps'), pixels('#steps').data.length / 4];")
        assert shaded > 0.15 * whole

    def test_ticks_of_an_index_have_both_ends(self, page):
        script = """return [[0, 60, 20], [12, 48, 10], [4, 1, 10], [0, 0, 10]].map(([first, count, room]) =>
          win.indexTicks({ first, count }, room));"""
        blocks, late, one, none = seen_of(page, script)
        assert blocks == [*range(0, 60, 5), 59]
        assert late == [12, *range(15, 60, 5), 59]
        assert (one, none) == ([4], [])

    def test_charts_are_drawn_again_for_another_width(self, page):
        script = """const width = (box) => $(box + " canvas").getBoundingClientRect().width;
          const widths = () => ["#heatmap", "#error"].map(width);
          const before = widths();
          const frame = document.querySelector("iframe");
          frame.style.width = "600px";
          await until(() => widths()[0] < before[0]);
          return [before, widths(), $("#heatmap").clientWidth, $("#error").clientWidth];"""
        before, after, heat, error = seen_of(page, script)
        assert after == [heat, error]
        assert after[0] < before[0]


class TestPointerAndKeys:
    pytestmark = needs_chromium

    def test_the_pointer_says_a_cell_and_leaves_no_words_behind(self, page, run):
        at = index_of(run, "block.08.img.attn")
        script = f"""point("mousemove", $("#heatmap"), cell({at})); const said = $(".tip").textContent;
          point("mouseleave", $("#heatmap"), [0, 0]); return [said, $(".tip").hidden];"""
        assert seen_of(page, script) == ["block.08.img.attn: diverged, excess 240×, source", True]

    def test_arrows_move_over_the_heatmap_and_enter_opens(self, page):
        script = """const box = $("#heatmap"), said = []; box.focus();
          for (const key of ["ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"]) {
            press(key, box); said.push($("#heatmapcell").textContent.split(":")[0]);
          }
          press("Enter", box); await until(() => $(".detail"));
          return [said, win.location.hash];"""
        said, address = seen_of(page, script)
        # The first is where it starts.
        assert said == ["block.05.img.attn", "block.06.img.attn", "block.06.img.v", "block.05.img.v"]
        assert address == "#square.float32.isolated/block.05.img.v"

    def test_the_heatmap_can_be_left_by_tab(self, page):
        script = """$("#heatmap").focus();
          const tab = new win.KeyboardEvent("keydown", { key: "Tab", bubbles: true, cancelable: true });
          $("#heatmap").dispatchEvent(tab); return tab.defaultPrevented;"""
        assert seen_of(page, script) is False

    def test_a_point_of_a_chart_says_its_name_and_opens_its_row(self, page, run):
        # Points are looked for along a line, as a hand would do it.
        script = """const over = $("#excess .u-over"), frame = over.getBoundingClientRect(); let found = null;
          const across = [0.6, 0.63, 0.66, 0.69].map((share) => share * frame.width);
          for (let y = 4; y < frame.height && !found; y += 4) for (const x of across) if (!found) {
            point("mousemove", over, [frame.left + x, frame.top + y]);
            if ($(".tip") && !$(".tip").hidden) found = [frame.left + x, frame.top + y];
          }
          const said = $(".tip").textContent;
          for (const kind of ["mousedown", "mouseup", "click"]) point(kind, over, found);
          await until(() => $(".detail"));
          return [said, decodeURIComponent(win.location.hash.split("/")[1])];"""
        said, opened = seen_of(page, script)
        assert said.startswith(opened + ": ")
        assert opened in {row["name"] for row in run["cases"][0]["checkpoints"]}

    def test_the_nearest_point_is_the_one_that_is_said(self, page, run):
        # Down along block 6 each point that is said is no further off than the one above it.
        script = """const over = $("#excess .u-over"), { left, top, width, height } = over.getBoundingClientRect();
          const words = () => $(".tip:not([hidden])")?.textContent, said = [];
          for (let y = 4; y < height; y += 3) {
            point("mousemove", over, [left + (width * 7.5) / 14, top + y]);
            if (words() && said.at(-1) !== words()) said.push(words());
          }
          return said.map((one) => one.split(":")[0]);"""
        excess = {row["name"]: row["excess"] for row in run["cases"][0]["checkpoints"]}
        found = [excess[name] for name in seen_of(page, script)]
        assert len(found) > 4
        assert all(below <= above * 1.05 for above, below in itertools.pairwise(found))

    def test_a_line_chart_says_all_its_lines(self, page):
        script = """const over = $("#error .u-over"), frame = over.getBoundingClientRect();
          point("mousemove", over, [frame.left + 0.55 * frame.width, frame.top + 20]);
          return [...$(".tip").children].map((one) => one.textContent);"""
        head, *lines = seen_of(page, script)
        assert head == "block 6"
        assert [line.rpartition(" ")[0] for line in lines] == LINES

    def test_a_drag_zooms_and_a_double_click_shows_all(self, page):
        script = """const over = $("#error .u-over"), frame = over.getBoundingClientRect(), y = frame.top + 40;

          const right = () => ["#error", "#growth"].map((box) => {
            const place = $(box + " .u-over"), { right, top } = place.getBoundingClientRect();
            point("mousemove", place, [right - 3, top + 40]);
            return $(".tip").firstChild.textContent;
          });
          const seen = [right()];
          const at = (share) => [frame.left + share * frame.width, y];
          point("mousedown", over, at(0.2));
          for (const share of [0.3, 0.4, 0.52]) { point("mousemove", over, at(share)); await sleep(30); }
          point("mouseup", win.document, at(0.52)); await sleep(120); seen.push(right());
          point("dblclick", over, at(0.5)); await sleep(120); seen.push(right());
          return seen;"""
        whole, zoomed = [f"block {BLOCKS - 1}"] * 2, ["block 6"] * 2
        assert seen_of(page, script) == [whole, zoomed, whole]

    def test_a_line_of_what_does_not_repeat_opens_its_row(self, tmp_path):
        run = sample_run.diverged(component="vae", dtypes=("float32",))
        page = render_report(run, tmp_path / "report.html", force=True)
        script = """click($('#sequence .band[data-row="7"]')); await until(() => $(".detail"));
          const chosen = all("#sequence .chosen title").map((one) => one.textContent.split(":")[0]);
          return [chosen, win.location.hash.split("/")[1]];"""
        chosen, opened = seen_of(page, script)
        assert chosen == [opened] == [run["cases"][0]["checkpoints"][7]["name"]]

    def test_of_very_many_lines_those_that_matter_are_drawn(self, tmp_path):
        run = sample_run.diverged(component="vae", dtypes=("float32",))
        for case in run["cases"]:
            rows = case["checkpoints"]
            plain = [row for row in rows if row["verdict"] == "match"]
            case["checkpoints"] = [{**plain[0], "name": f"vae.more.{i:04}"} for i in range(2000)] + rows
            case["graph"] = None
            case["checkpoints"][2003].update(verdict="missing", excess=None)
        page = render_report(sample_run.settle(run), tmp_path / "report.html", force=True)
        script = """const titles = all("#sequence title").map((one) => one.textContent);
          const missing = titles.filter((words) => words.endsWith(": missing")).length;
          const sources = all("#sequence .source").length;
          return [all("#sequence .band").length, sources, missing, $("#cutwords").textContent];"""
        seen = seen_of(page, script)
        assert seen[:3] == [300, sum(row["source"] for row in run["cases"][0]["checkpoints"]), 1]
        assert seen[3].startswith("300 of 2,")


def test_sections_stand_in_the_order_in_which_one_asks():
    source = report_html(sample_run.clean(blocks=2, dtypes=("float32",)))
    order = [
        "verdict",
        "health",
        "heatmap",
        "range",
        "growth",
        "error",
        "excess",
        "steps",
        "checkpoints",
        "dataflow",
        "run",
        "help",
    ]
    places = [source.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    shown = [
        source.index(f'href="#{name}"', source.index("<nav"))
        for name in ("health", "charts", "checkpoints", "dataflow", "run", "help")
    ]
    assert shown == sorted(shown)


def test_uplot_is_the_published_one_and_its_licence_goes_with_it():
    templates = resources.files("parity") / "templates"
    published = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert hashlib.sha256((templates / f"{UPLOT}.iife.min.js").read_bytes()).hexdigest() == published
    source = report_html(sample_run.clean(blocks=2, dtypes=("float32",)))
    assert "Copyright (c) 2022 Leon Sorokin" in source
    assert (templates / f"{UPLOT}.LICENSE").read_text(encoding="utf-8").rstrip() in source


def test_every_script_and_style_of_the_page_is_used():
    folder = resources.files("parity") / "templates"
    own = {one.name for one in folder.iterdir() if one.name.endswith((".js", ".css"))}
    assert own - {f"{name}.js" for name in SCRIPTS} - set(STYLES) == {"pages.js", "pages.css"}
