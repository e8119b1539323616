"""Single checkpoints on the page: what there is of them, of which of many, and what of files from elsewhere is not."""

import re
import shutil

import browser
import numpy as np
import pytest
import sample_run

from parity import histograms, panelpage, profiles, trace
from parity.report import render_report, report_html
from parity.stats import BINADES, describe

SMALL = {"blocks": 2, "dtypes": ("float32",)}
NAME = "block.00.img.attn"


def broken(folder, mode="accumulated"):
    """A run with a folder: of one checkpoint, channels 3 and 4 are wrong."""
    run = sample_run.diverged(**SMALL)
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(1, 40, 100)).astype(np.float32)
    value = truth.copy()
    value[..., 3:5] += 8
    rows = [row for case in run["cases"] for row in case["checkpoints"] if row["name"] == NAME]
    for row in rows:
        sample_run._judge(row, 0.9, source=True)
        row["worst"] = [[[0, 7, 3], 4.5, -1.5], [[0, 8, 4], "nan", 2.0]]
    for case in run["cases"]:
        case["sources"] = [row["name"] for row in case["checkpoints"] if row["source"]]
    run = sample_run.settle(run)
    place = folder / "trace" / "square.float32"
    profiles.write(place, [{mode: {NAME: [axis.packed() for axis in profiles.measure(value, truth)]}}])
    for side, array in (("reference", truth), ("candidate", value)):
        stats = {NAME: vars(describe(array, distribution=True))}
        about = {"side": side, "case": {"name": "square"}, "dtype": "float32", "mode": mode, "component": "transformer",
                 "configs": {}, "environment": {}}  # fmt: skip
        trace.write(place / side, stats, about)
    return run


def at(run, mode):
    rows = [(case["mode"], row["name"]) for case in run["cases"] for row in case["checkpoints"]]
    return rows.index((mode, NAME))


def test_what_the_folder_has_of_a_checkpoint(tmp_path):
    run = broken(tmp_path)
    found, unread = panelpage.panels(run, tmp_path)
    assert unread == []
    panel = found[at(run, "accumulated")]
    assert panel["worst"] == [[[0, 7, 3], 4.5, -1.5], [[0, 8, 4], "nan", 2.0]]
    assert [(axis["title"], axis["length"]) for axis in panel["axes"]] == [("row", 40), ("channel", 100)]
    assert panel["axes"][1]["worst"] in (3, 4)
    first, *sides = panel["histogram"]
    assert [sum(side) for side in sides] == [4000, 4000]
    assert len(sides[0]) == len(sides[1]) < BINADES
    assert first < 0
    # The other mode has no values of its own in the folder, and nothing is shown of this one's.
    assert set(found[at(run, "isolated")]) == {"worst"}


def test_without_a_folder_there_are_the_elements(tmp_path):
    run = broken(tmp_path)
    assert {key for panel in panelpage.panels(run, None)[0].values() for key in panel} == {"worst"}
    clean, unread = panelpage.panels(sample_run.clean(**SMALL), tmp_path)
    assert (clean, unread) == ({}, [])


def test_of_many_the_sources_and_the_first(monkeypatch):
    run = sample_run.diverged(blocks=6, dtypes=("float32",))
    rows = [row for case in run["cases"] for row in case["checkpoints"]]
    for row in rows:
        row["worst"] = [[[0], 1.0, 2.0]]
    off = {i for i, row in enumerate(rows) if row["verdict"] == "diverged"}
    sources = {i for i in off if rows[i]["source"]}
    assert set(panelpage.panels(run, None)[0]) == off
    monkeypatch.setattr(panelpage, "MOST", len(sources) + 4)
    kept = set(panelpage.panels(run, None)[0])
    half = len(run["cases"][0]["checkpoints"])
    assert sources < kept < off
    assert {i % half for i in kept - sources} <= set(sorted({i % half for i in off - sources})[:4])


@pytest.mark.parametrize(
    "worst",
    [
        3, "x", [[]], [[[0], 1.0]], [[["<b>"], 1.0, 2.0]], [[[0], "<b>", 1.0]], [[[0] * 99, 1.0, 1.0]],
        [[[True], 1.0, 1.0]],
    ],
)  # fmt: skip
def test_elements_that_are_none_are_left_out(worst):
    run = sample_run.diverged(**SMALL)
    run["cases"][0]["checkpoints"][20]["worst"] = worst
    run["cases"][0]["checkpoints"][20]["verdict"] = "diverged"
    assert panelpage.panels(run, None) == ({}, [])


def test_garbled_files_are_said_and_the_page_is_made(tmp_path):
    run = broken(tmp_path)
    (tmp_path / "trace/square.float32/candidate/stats.parquet").write_bytes(b"PAR1 nothing PAR1")
    found, unread = panelpage.panels(run, tmp_path)
    assert set(found[at(run, "accumulated")]) == {"worst", "axes"}, "what can be read is there"
    assert len(unread) == 1
    assert "candidate" in unread[0]
    assert "could not be read" in report_html(run, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
def test_figures_of_a_profile_and_a_histogram_are_behind_them(tmp_path):
    run = broken(tmp_path)
    page = render_report(run, tmp_path / "report.html", force=True)
    script = """const tables = []; for (const one of all(".panels .behind")) {
        one.open = true; await until(() => one.querySelector("td"));
        tables.push([...one.querySelectorAll("tr")].map((tr) => [...tr.cells].map((cell) => cell.textContent)));
      } return tables;"""
    seen, console = browser.look(page, script, address=f"#square.float32.accumulated/{NAME}")
    assert console == []
    panel = panelpage.panels(run, tmp_path)[0][at(run, "accumulated")]
    for (head, *rows), axis in zip(seen[:2], panel["axes"], strict=True):
        assert head[1:3] == ["truth, rms", "error, rms"]
        for key, column in (("truth", 1), ("error", 2)):
            figures = [float(row[column].replace("−", "-")) for row in rows]
            assert figures == pytest.approx([float(f"{value:.4g}") for value in axis[key]], rel=1e-3)
    head, *rows = seen[2]
    assert head[1:] == ["reference", "candidate"]
    shares = [sum(float(row[column].replace("−", "-")) for row in rows) for column in (1, 2)]
    assert shares == pytest.approx([1, 1], rel=1e-3)


def test_a_folder_elsewhere_is_not_read(tmp_path):
    run = broken(tmp_path / "other")
    (tmp_path / "run" / "trace").mkdir(parents=True)
    (tmp_path / "run/trace/square.float32").symlink_to(tmp_path / "other/trace/square.float32")
    found, unread = panelpage.panels(run, tmp_path / "run")
    assert "histogram" not in found[at(run, "accumulated")]
    where = ("trace/square.float32/profiles.safetensors", "trace/square.float32")
    assert unread == [f"{one}: leads out of the run folder" for one in where]


def test_the_other_mode_has_histograms_of_its_own(tmp_path):
    run = broken(tmp_path)
    counts = [0] * BINADES
    counts[40] = 4000
    histograms.write(tmp_path / "trace/square.float32", [{"isolated": {NAME: counts}}, {}])
    found, unread = panelpage.panels(run, tmp_path)
    assert unread == []
    of_mode = {mode: found[at(run, mode)]["histogram"] for mode in ("isolated", "accumulated")}
    assert max(of_mode["isolated"][2]) == 4000
    assert sum(of_mode["isolated"][1]) == 4000
    assert of_mode["accumulated"][2] != of_mode["isolated"][2]


def test_what_is_not_there_is_said(tmp_path):
    run = broken(tmp_path)
    (tmp_path / "trace/square.float32/profiles.safetensors").unlink()
    found, unread = panelpage.panels(run, tmp_path)
    assert set(found[at(run, "accumulated")]) == {"worst", "histogram"}
    assert unread == [
        "trace/square.float32/profiles.safetensors: not there, and with it where in the arrays the errors lie"
    ]
    shutil.rmtree(tmp_path / "trace")
    found, unread = panelpage.panels(run, tmp_path)
    assert set(found[at(run, "accumulated")]) == {"worst"}
    assert unread == [
        "trace/square.float32: not there, and with it the histograms and where in the arrays the errors lie"
    ]
    for case in run["cases"]:
        for row in case["checkpoints"]:
            row["evidence"] = "sketch"
    assert panelpage.panels(run, tmp_path)[1] == [], "a comparison need not have written any"


@pytest.mark.slow
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium")
def test_a_panel_is_drawn_and_says_where_the_error_is(tmp_path):
    page = render_report(broken(tmp_path), tmp_path / "report.html", force=True)
    script = """return { figures: all(".panels figure").map((one) => one.textContent),
      drawn: all(".panels canvas").length,
      wide: all(".panels .uplot").map((one) => one.getBoundingClientRect().width / one.parentNode.clientWidth) };"""
    for width in (1280, 390):
        seen, console = browser.look(page, script, address=f"#square.float32.accumulated/{NAME}", width=width)
        assert console == []
        worst, row, channel, histogram = seen["figures"]
        assert "[0, 7, 3]4.5−1.56" in worst
        assert "NaN" in worst
        assert "evenly spread" in row
        assert re.search(r"50 % of the squared error is at (3|4–5)\b", channel)
        assert histogram.startswith("Histogram")
        assert seen["drawn"] == 3
        # Drawn for its place, so that letters keep their size.
        assert all(0.9 < scale < 1.15 for scale in seen["wide"])
