"""Measuring the page: seeded runs of any size, the same page each time, what it takes, what is beyond a limit."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from parity import bench_report, bench_rows, chromium
from parity.bench_report import SIZES, Made, Size
from parity.cli import call
from parity.commands import bench_report as command
from parity.errors import EXIT_DIVERGENCE, PreconditionError
from parity.report import report_html
from parity.result import rejudge
from parity.runfolder import read_run

SMALL = {"name": "transformer", "num_layers": 4, "level": "full"}
TINY = Size("4 blocks", lambda folder: bench_rows.write_run(folder, SMALL), most_bytes=10**9, most_seconds=1e3)
needs_chromium = pytest.mark.skipif(chromium.installed() is None, reason="needs Chromium")
REPORT = "from parity.cli import main; main()"


@pytest.fixture
def small(tmp_path):
    bench_rows.write_run(tmp_path / "run", SMALL)
    return tmp_path / "run"


def test_runs_are_the_same_each_time_and_judged_as_they_are_written(tmp_path, small):
    bench_rows.write_run(tmp_path / "again", SMALL)
    files = sorted(path.relative_to(small) for path in small.rglob("*") if path.is_file())
    assert len(files) == 6
    assert all((small / one).read_bytes() == (tmp_path / "again" / one).read_bytes() for one in files)
    run = read_run(small)
    assert [(case["mode"], case["verdict"]) for case in run["cases"]] == [
        ("isolated", "divergence"), ("accumulated", "divergence"),
    ]  # fmt: skip
    assert rejudge(run) == run


def test_the_page_has_all_there_is_to_see_of_single_checkpoints(small):
    from test_report import unpack

    panels = unpack(report_html(read_run(small), small))["panels"]
    assert {key for panel in panels.values() for key in panel} == {"worst", "axes", "histogram"}


def report(folder, seed):
    """The page and ``parity.json`` as a process of its own leaves them."""
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", REPORT, "report", str(folder)], env=environment, capture_output=True)
    assert done.returncode == EXIT_DIVERGENCE
    return [(folder / name).read_bytes() for name in ("report.html", "parity.json")]


def test_the_command_makes_the_same_bytes_each_time(small):
    first = report(small, "1")
    assert report(small, "2") == first
    (small / "report.html").unlink()
    assert report(small, "3") == first
    assert hashlib.sha256(first[1]).hexdigest().encode() in first[0]
    run = json.loads(first[1])
    run["cases"][0]["checkpoints"][0]["rel_rmse"] *= 1.001
    (small / "parity.json").write_text(json.dumps(run))
    assert report(small, "1")[0] != first[0]


def test_verdicts_are_renewed_and_what_has_not_changed_is_not_written(small):
    file = small / "parity.json"
    measured = file.read_bytes()
    before = file.stat().st_mtime_ns
    assert call(["report", str(small)]) == EXIT_DIVERGENCE
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (measured, before)
    run = json.loads(measured)
    run["cases"][0]["checkpoints"][3]["verdict"] = "suspect"
    file.write_text(json.dumps(run))
    assert call(["report", str(file)]) == EXIT_DIVERGENCE, "the file itself is a run as well"
    assert file.read_bytes() == measured


def test_names_from_elsewhere_are_a_page_as_well(tmp_path):
    bench_rows.write_hostile(tmp_path / "run", 300)
    page = report_html(read_run(tmp_path / "run"), tmp_path / "run")
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    assert "\u202e" not in page


def test_what_is_beyond_a_limit_is_told_by_its_ratio():
    size = Size("x", print, most_bytes=100, most_seconds=2.0, most_ready=1000.0)
    assert Made(1, 150, 1.0, 0, 500.0, 600.0).over(size) == {"nbytes": 1.5, "seconds": 0.5, "ready": 0.5}
    assert Made(1, 150, 1.0, 0, None, None).over(Size("x", print, most_ready=1.0)) == {}


@pytest.mark.parametrize(("seconds", "code"), [(1e3, 0), (1e-9, 1)])
def test_the_command_prints_a_line_a_run_and_says_where_chromium_is_not_there(
    monkeypatch, capsys, tmp_path, seconds, code
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(chromium, "installed", lambda: None)
    monkeypatch.setitem(command.SIZES, "blocks", Size("4 blocks", TINY.write, most_bytes=10**6, most_seconds=seconds))
    out = tmp_path / "figures.json"
    assert call(["bench", "report", "--size", "blocks", "--out", str(out)]) == code
    printed = capsys.readouterr().out
    assert re.search(r"^4 blocks +216 +0\.\d\d +1 +\d+\.\d +\S+ +– +–$", printed, re.MULTILINE)
    assert "Chromium is not installed" in printed
    assert max(map(len, printed.splitlines())) <= 80
    figures = json.loads(out.read_text())
    assert (figures["sizes"]["blocks"]["of_limit"]["seconds"] > 1) == bool(code)
    assert figures["sizes"]["blocks"]["ready"] is None


def test_a_page_that_is_not_made_is_said(tmp_path):
    broken = Size("broken", lambda folder: (folder.mkdir(), (folder / "parity.json").write_text("{"))[0])
    with pytest.raises(PreconditionError, match="did not finish"):
        bench_report.made(broken, repeats=1, told=lambda _: None)


def test_without_chromium_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(chromium.shutil, "which", lambda _: None)
    with pytest.raises(PreconditionError, match="install one"):
        chromium.show(tmp_path / "report.html")


@needs_chromium
@pytest.mark.slow
def test_a_page_is_opened_until_its_charts_are_there():
    found = bench_report.made(TINY, repeats=1, told=lambda _: None)
    assert (found.rows, 0 < found.ready < found.opened) == (216, True)


@needs_chromium
@pytest.mark.slow
def test_a_page_that_never_draws_is_not_waited_for_long(tmp_path):
    (tmp_path / "report.html").write_text("<p id='message'>nothing comes</p>")
    with pytest.raises(PreconditionError, match="did not draw"):
        chromium.show(tmp_path / "report.html", limit=5)


@pytest.mark.slow
def test_sixty_blocks_in_both_modes_are_well_within_their_limits(tmp_path):
    size = SIZES["blocks"]
    size.write(tmp_path / "run")
    assert sum(len(case["checkpoints"]) for case in read_run(tmp_path / "run")["cases"]) == 2 * 1452
    took = bench_report._report(tmp_path / "run", "judged")
    assert took["seconds"] < size.most_seconds
    assert (tmp_path / "run" / "report.html").stat().st_size < size.most_bytes
