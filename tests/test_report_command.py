"""``parity report`` of two runs and of a folder of runs, from the command line."""

import json
import re
from urllib.parse import unquote

import pytest
import sample_run
from rich.cells import cell_len

from parity.cli import call
from parity.runfolder import read_run, write_json


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns without colours, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def put(folder, kind="clean", **options):
    """A run folder that can be judged again."""
    run = getattr(sample_run, kind)(**{"blocks": 2, "level": "block", "dtypes": ("float32",)} | options)
    for case in run["cases"]:
        case["graph"] = {"name": "transformer", "num_layers": 2, "level": "block"}
        for row in case["checkpoints"]:
            measured = row["verdict"] not in ("missing", "skipped")
            row["status"] = "measured" if measured else row["verdict"]
            row |= {"expected_shape": row["shape"], "peak": row["rel_rmse"], "peak_floor": row["floor"]}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "parity.json", run)
    return folder


@pytest.fixture
def two(tmp_path):
    return str(put(tmp_path / "a")), str(put(tmp_path / "b", "diverged"))


def go(capsys, *argv):
    code = call(["report", *argv])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_two_runs_give_a_table_a_page_and_a_code(capsys, two, tmp_path):
    before = [(tmp_path / name / "parity.json").read_bytes() for name in "ab"]
    code, out, err = go(capsys, *two)
    assert (code, err) == (1, "")
    assert max(map(cell_len, out.splitlines())) <= 80 + len(str(tmp_path))
    page = tmp_path / "b" / "comparison.html"
    assert out.splitlines()[-1] == str(page)
    first = page.read_bytes()
    assert go(capsys, *two)[0] == 1, "its own page is renewed without --force"
    assert page.read_bytes() == first
    assert [(tmp_path / name / "parity.json").read_bytes() for name in "ab"] == before
    assert go(capsys, *reversed(two))[0] == 0
    again = str(put(tmp_path / "c", "diverged"))
    code, out, _ = go(capsys, two[1], again)
    assert code == 0, "still diverged, and no worse"
    assert "one is a copy of the other" in " ".join(out.split())


@pytest.mark.parametrize("format", ["md", "json"])
def test_stdout_carries_the_form_alone(capsys, two, format):
    _, out, _ = go(capsys, *two, "--format", format)
    assert "comparison.html" not in out
    if format == "json":
        found = json.loads(out)
        assert found["verdict"] == "worse"
        assert found["before"]["folder"] == two[0]
        assert found["counts"]["worse"] == len(found["checkpoints"])
    else:
        assert out.startswith("**Worse: ")


def test_links_lead_from_where_the_page_lies(capsys, two, tmp_path):
    for path in two:
        assert go(capsys, path)[0] in (0, 1)
    elsewhere = tmp_path / "x & y" / "z"
    go(capsys, *two, "--out", str(elsewhere / "c.html"))
    go(capsys, "--index", str(tmp_path), "--out", str(elsewhere / "i.html"))
    go(capsys, *two)
    go(capsys, "--index", str(tmp_path), "--out", str(elsewhere / "j.html"))
    for name, more in (("c", set()), ("i", set()), ("j", {"./../../b/comparison.html"})):
        found = set(re.findall(r'href="(\.[^"#]*)', (elsewhere / f"{name}.html").read_text()))
        assert found == {f"./../../{folder}/report.html" for folder in "ab"} | more
        assert all((elsewhere / unquote(one)).is_file() for one in found)


def test_an_index_is_written_beside_the_runs(capsys, two, tmp_path):
    code, out, err = go(capsys, "--index", str(tmp_path))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "index.html")
    assert go(capsys, str(tmp_path), "--index", "--format", "json")[0] == 0, "its own page is renewed"
    code, out, _ = go(capsys, str(tmp_path), "--index", "--format", "md", "--out", str(tmp_path / "x" / "y.html"))
    assert (code, (tmp_path / "x" / "y.html").is_file()) == (0, True)
    assert "2 finished runs" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("A", "B", "--format", "junit"), "have table, md and json"),
        (("A", "B", "--index"), "--index takes one folder"),
        (("A", "nowhere"), "no parity.json here; expected a run folder"),
        (("A", "half"), "the run is not finished"),
        (("nowhere", "--index"), "no such folder"),
        (("none", "--index"), "no run in it"),
        (("A", "B", "--out", "own.html"), "no page of this command: choose another --out or --force"),
        (("A", "--out", "own.html"), "already there"),
        (("A", "B", "--out", "link.html"), "choose another --out or --force"),
        (("A", "B", "C"), "See parity --help"),
        (("A", "A"), "is given twice; expected two runs"),
        (("A", "b/../a"), "is given twice; expected two runs"),
        (("A", "B", "--out", "none"), "is a folder: --out takes the name of the page"),
        (("A", "B", "--out", "own.html/x.html"), "choose another --out"),
        (("A", "own.html"), "expected a run folder or its parity.json"),
        (("A/parity.json", "--index"), "a file; --index expects a folder of runs"),
    ],
)
def test_a_mistake_is_one_line(capsys, two, tmp_path, argv, said):
    (tmp_path / "own.html").write_text("<!doctype html>mine")
    (tmp_path / "link.html").symlink_to(tmp_path / "own.html")
    (tmp_path / "none").mkdir()
    (tmp_path / "half" / "work").mkdir(parents=True)
    (tmp_path / "half" / "work" / "plan.json").write_text("{}")
    named = {"A": two[0], "B": two[1]}
    named["A/parity.json"] = f"{two[0]}/parity.json"
    made = [named.get(word, word if word.startswith("-") or word == "junit" else str(tmp_path / word)) for word in argv]
    code, out, err = go(capsys, *made)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert (tmp_path / "own.html").read_text() == "<!doctype html>mine"


def test_force_overwrites_what_is_there(capsys, two, tmp_path):
    (tmp_path / "own.html").write_text("mine")
    assert go(capsys, *two, "--out", str(tmp_path / "own.html"), "--force")[0] == 1
    assert "What changed" in (tmp_path / "own.html").read_text()


def test_runs_of_other_rules_are_judged_by_these(capsys, two, tmp_path):
    run = read_run(tmp_path / "a")
    for case in run["cases"]:
        for row in case["checkpoints"]:
            row.update(verdict="diverged", excess=1e6, source=True)
    write_json(tmp_path / "a" / "parity.json", run)
    put(tmp_path / "c")
    code, out, _ = go(capsys, two[0], str(tmp_path / "c"))
    assert code == 0
    assert "No change" in out
