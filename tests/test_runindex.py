"""The index over a folder of runs: what is read of each, and the trend of each case."""

import json
import os
import re
import time

import pytest
import sample_run
from rich.cells import cell_len
from sample_run import HOSTILE

from parity import runindex
from parity.errors import UsageError
from parity.indexpage import index_html
from parity.reporters import runindex as written
from parity.runfolder import write_json

SMALL = {"blocks": 2, "dtypes": ("float32",)}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns without colours, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def put(folder, run, day=1):
    folder.mkdir(parents=True)
    write_json(folder / "parity.json", run | {"started": f"2026-01-{day:02d}T03:04:05+00:00"})
    return folder


def one(kind="clean", **options):
    return getattr(sample_run, kind)(**SMALL | options)


def test_runs_stand_in_the_order_in_which_they_began(tmp_path):
    for name, day in (("a", 9), ("deep/er/b", 2), ("c", 5)):
        put(tmp_path / name, one(), day)
    found = runindex.index(tmp_path)
    assert [run["folder"] for run in found["runs"]] == ["deep/er/b", "c", "a"]
    assert found["sentence"] == "3 finished runs. Of 2 cases, the last time: 2 parity."
    assert {len(trend["points"]) for trend in found["trends"]} == {3}
    run = found["runs"][0]
    worst = max(row["excess"] for case in one()["cases"] for row in case["checkpoints"])
    assert run["worst"] == pytest.approx(worst, rel=1e-6)
    assert (run["verdict"], run["suite"], run["weights"]) == ("parity", "transformer", "synthetic:tiny")


def test_a_trend_says_what_became_of_a_case(tmp_path):
    kinds = ("clean", "diverged", "clean", "incomplete", "diverged", "diverged")
    for day, kind in enumerate(kinds, 1):
        put(tmp_path / f"r{day}", one(kind), day)
        expected = {1: "new", 2: "worse", 3: "better", 4: "worse", 5: "worse", 6: "same"}[day]
        found = runindex.index(tmp_path)
        assert {trend["change"] for trend in found["trends"]} == {expected}
    assert [found["runs"][trend["since"]]["folder"] for trend in found["trends"]] == ["r5", "r5"]
    assert [point["verdict"] for point in found["trends"][0]["points"]] == [
        "parity", "divergence", "parity", "incomplete", "divergence", "divergence",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"weights": {"path": "/models/q", "synthetic": False, "preset": None}},
        {"weights": {"path": "x", "repository": "org/name", "commit": "0123456789abcdef", "lora": []}},
        {"ports": {"candidate": "my_port"}},
        {"cases": one(cases=("tall",))["cases"]},
        {"cases": one(seed=3)["cases"]},
        {"cases": one(component="text")["cases"]},
    ],
)
def test_other_models_suites_and_inputs_are_trends_of_their_own(tmp_path, other):
    put(tmp_path / "a", one(), 1)
    put(tmp_path / "b", one() | other, 2)
    put(tmp_path / "c", one(), 3)
    found = runindex.index(tmp_path)
    assert sorted([point["run"] for point in trend["points"]] for trend in found["trends"]) == [[0, 2]] * 2 + [[1]] * 2


def test_what_is_unfinished_damaged_or_empty_is_listed_with_the_reason(tmp_path):
    put(tmp_path / "good", one())
    put(tmp_path / "empty", one() | {"cases": []})
    (tmp_path / "half" / "work").mkdir(parents=True)
    (tmp_path / "half" / "work" / "plan.json").write_text("{}")
    (tmp_path / "half" / "work" / "square.float32.done").touch()
    bad = {
        "cut": '{"schema":2,"verd', "list": "[]", "old": '{"schema":1}', "bare": '{"schema":2}', "deep": "[" * 100_000,
        "verdict": json.dumps({"schema": 2, "cases": [], "counts": dict.fromkeys(one()["counts"], 0), "weights": {},
                               "verdict": "fine", "sentence": ""}),
        "bytes": None, "rows": json.dumps(one() | {"cases": [one()["cases"][0] | {"checkpoints": [{"name": 3}]}]}),
        "figure": json.dumps(one() | {"seconds": "soon"}), "huge": json.dumps(one() | {"counts": {"expected": 1e400}}),
    }  # fmt: skip
    for name, text in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "parity.json").write_bytes(b"\xff\xfe" if text is None else text.encode())
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "parity.json").symlink_to(tmp_path / "good" / "parity.json")
    found = runindex.index(tmp_path)
    states = {run["folder"]: run["state"] for run in found["runs"]}
    assert states == dict.fromkeys((*bad, "link"), "unreadable") | {
        "good": "finished", "empty": "finished", "half": "unfinished",
    }  # fmt: skip
    reasons = {run["folder"]: run["reason"] for run in found["runs"]}
    assert reasons["half"].startswith("1 unit done; the same `parity run` resumes it")
    assert "schema 1, this version reads 2" in reasons["old"]
    assert "'fine'" not in reasons["good"]
    assert "verdict fine" in reasons["verdict"]
    assert "1 unfinished, 11 unreadable" in found["sentence"]
    assert all(reasons[name] for name in (*bad, "link"))
    assert {point["run"] for trend in found["trends"] for point in trend["points"]} == {
        [run["folder"] for run in found["runs"]].index("good")
    }
    page = index_html(found)
    assert all(name in page for name in states)


def test_a_run_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    put(tmp_path / "a", one())
    monkeypatch.setattr(runindex, "MOST_BYTES", 100)
    assert "bytes, expected at most 100" in runindex.index(tmp_path)["runs"][0]["reason"]


@pytest.mark.parametrize("what", ["nothing", "empty", "file"])
def test_a_folder_without_a_run_is_one_line(tmp_path, what):
    root = tmp_path / "runs"
    if what == "empty":
        (root / "other").mkdir(parents=True)
    elif what == "file":
        root.write_text("x")
    with pytest.raises(UsageError, match="--index expects a folder of"):
        runindex.index(root)


def test_links_are_not_followed_and_what_is_left_out_is_said(tmp_path, monkeypatch):
    put(tmp_path / "elsewhere" / "x", one())
    root = tmp_path / "root"
    for day in (1, 2, 3):
        put(root / f"r{day}", one(), day)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    assert {run["folder"] for run in runindex.index(root)["runs"]} == {"r1", "r2", "r3"}
    monkeypatch.setattr(runindex, "MOST_RUNS", 2)
    found = runindex.index(root)
    assert len(found["runs"]) == 2
    assert found["notes"] == ["only the first 2 runs in 3 folders were read; there are more"]


def test_a_run_inside_a_run_is_none(tmp_path):
    put(tmp_path / "a" / "trace" / "b", one())
    put_into = tmp_path / "a"
    write_json(put_into / "parity.json", one())
    assert [run["folder"] for run in runindex.index(tmp_path)["runs"]] == ["a"]


@pytest.mark.parametrize("name", ["square", "a-rather-long-name-of-a-case", "x" * 70])
def test_the_table_fits_a_terminal(capsys, tmp_path, name):
    for day, kind in enumerate(("clean", "diverged", "nonfinite"), 1):
        put(tmp_path / f"a-rather-long-name-of-a-folder-with-a-run-{day}", one(kind, cases=(name,)), day)
    put(tmp_path / "other", one() | {"weights": {"path": "/m" * 90, "synthetic": False}}, 4)
    found = runindex.index(tmp_path)
    written.print_table(found)
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= 80
    assert "▃██" in printed
    assert " ".join(printed.split()).endswith(found["sentence"])


def test_text_from_elsewhere_is_text(capsys, tmp_path):
    name = HOSTILE.replace("/", "").replace("\x00", "")
    put(tmp_path / name, one("hostile"))
    raw = os.path.join(os.fsencode(tmp_path), b"\xff\xfe raw")
    os.mkdir(raw)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "parity.json").write_text(json.dumps({"schema": HOSTILE}))
    os.rename(tmp_path / "x" / "parity.json", os.path.join(raw, b"parity.json"))
    (tmp_path / name / "report.html").write_text("x")
    found = runindex.index(tmp_path)
    written.print_table(found)
    page = index_html(found)
    for text in (capsys.readouterr().out, written.markdown(found), page, written.as_json(found)):
        assert not {"\u202e", "\u2066", "\x00", "\x1b"} & set(text)
        text.encode()
    assert "<img" not in page
    assert "<img" not in written.markdown(found)
    links = {part.partition('"')[0].partition("#")[0] for part in page.split('href="')[1:] if part.startswith("./")}
    [link] = links
    assert set(link) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%._-/")
    assert page.count("<script>") == 1


def test_two_hundred_runs(tmp_path):
    texts = [json.dumps(one(kind, cases=("square", "wide")) | {"started": "?"}).replace("NaN", '"nan"')
             for kind in ("clean", "diverged")]  # fmt: skip
    for number in range(200):
        folder = tmp_path / f"run-{number:03d}"
        folder.mkdir()
        started = f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T00:00:00Z"
        (folder / "parity.json").write_text(texts[number % 20 == 7].replace('"?"', f'"{started}"'))
    start = time.perf_counter()
    found = runindex.index(tmp_path)
    page = index_html(found)
    took = time.perf_counter() - start
    assert [run["folder"] for run in found["runs"]] == [f"run-{number:03d}" for number in range(200)]
    assert {len(trend["points"]) for trend in found["trends"]} == {200}
    assert found["trends"][0]["points"][27]["verdict"] == "divergence"
    assert len(re.findall(r'<tr id="run-\d+" data-verdict="divergence">', page)) == 10
    assert len(page) < 1_000_000
    assert took < 30
