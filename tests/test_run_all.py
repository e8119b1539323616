"""Suite ``all``: every component on one small model, as somebody runs it, and what the run leaves behind."""

import pytest
from pipeline_folder import write_pipeline

from parity import suite
from parity.cli import call
from parity.components import COMPONENTS
from parity.pictures import read_settings
from parity.runfolder import read_run


def test_all_covers_every_component():
    assert {planned.case.component for planned in suite.load("all").cases} == set(COMPONENTS)
    # The suite for models of many gigabytes compares what others compare.
    included = [name for name in suite.available() if name not in ("all", "full")]
    assert set(suite.load("all").cases) == {planned for name in included for planned in suite.load(name).cases}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_port_is_at_parity_in_every_component(tmp_path, capsys):
    out = tmp_path / "run"
    assert call(["run", "all", "--weights", str(write_pipeline()), "--dtype", "float32", "--out", str(out)]) == 0
    run = read_run(out)
    assert {case["component"] for case in run["cases"]} == set(COMPONENTS)
    assert {case["mode"] for case in run["cases"]} == set(suite.MODES)
    assert run["counts"]["compared"] == run["counts"]["expected"] > 3000
    assert max(row["excess"] for case in run["cases"] for row in case["checkpoints"]) <= 3
    pictures = [one for case in run["cases"] for one in case["pictures"]]
    assert len(pictures) >= 8
    assert all(one["metrics"]["max_abs"] <= 1 for one in pictures)
    assert read_settings(out / pictures[0]["candidate"])["side"] == "candidate"
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2 * len(pictures)
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
