"""Two runs held against each other: what got better, worse, new and gone."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import sample_run
from rich.cells import cell_len
from sample_run import HOSTILE, settle

from parity.reporters import rundiff as written
from parity.rundiff import BEYOND, change_of, diff, exit_code, gathered

SMALL = {"blocks": 3, "dtypes": ("float32",)}
NAMES = ("/runs/a", "/runs/b")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns without colours, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def changes(found):
    return {row["name"]: row["change"] for row in found["checkpoints"]}


def test_a_run_against_itself_has_not_changed():
    run = sample_run.diverged(**SMALL)
    found = diff(run, copy.deepcopy(run))
    assert (found["verdict"], found["checkpoints"], found["settings"], found["notes"]) == ("same", [], [], [])
    assert found["counts"]["same"] == sum(len(case["checkpoints"]) for case in run["cases"])
    assert found["sentence"].startswith("No change: all")
    assert exit_code(found) == 0
    assert {name for entry in found["entries"] for name in entry["sources"]["stayed"]}


def test_a_broken_port_got_worse_and_the_way_back_is_better():
    clean, broken = sample_run.clean(**SMALL), sample_run.diverged(**SMALL)
    worse, better = diff(clean, broken), diff(broken, clean)
    off = broken["counts"]["diverged"]
    assert (worse["verdict"], better["verdict"]) == ("worse", "better")
    assert worse["counts"]["worse"] >= off > 0
    assert better["counts"]["better"] == worse["counts"]["worse"]
    assert (exit_code(worse), exit_code(better)) == (1, 0)
    first = broken["cases"][0]["sources"][0]
    assert first in worse["sentence"]
    assert worse["entries"][0]["sources"] == {"went": [], "came": broken["cases"][0]["sources"], "stayed": []}
    assert better["entries"][0]["sources"]["went"] == broken["cases"][0]["sources"]


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (None, ""),
        (1, ""),
        (5.31, "×5.3"),
        (99.7, "×100"),
        (431.0, "×431"),
        (1 / 650, "÷650"),
        (999.9, "×1e3"),
        (0.0, "÷∞"),
    ],
)
def test_a_factor_is_said_in_a_few_letters(factor, said):
    assert written.times(factor) == said


def test_notes_say_what_the_figures_do_not():
    run = sample_run.clean(**SMALL) | {"started": "2026-01-02T00:00:00Z"}
    earlier = run | {"started": "2026-01-01T23:00:00+00:00"}
    assert diff(earlier, run)["notes"] == []
    assert "began before the first one" in diff(run, earlier)["notes"][0]
    assert diff(run, earlier | {"started": "soon"})["notes"] == []
    packed = run | {"weights": run["weights"] | {"bits": {"transformer": {"4-bit group 64": 9}}}}
    assert "the reference on its own weights" in diff(run, packed)["notes"][1]
    bare = run | {"weights": run["weights"] | {"bits": {}}}
    settings = {one["what"]: one["before"] for one in diff(bare, packed)["settings"]}
    assert settings == {"weights.bits": None}


def row(verdict="match", excess=0.9, **more):
    return {"verdict": verdict, "excess": excess, "rel_rmse": 1e-7 * (excess or 1), "floor": 1e-7, "floor_by": "jitter",
            "mismatches": None, "source": False, "reason": ""} | more  # fmt: skip


def exact(differ):
    return row("diverged" if differ else "match", math.inf if differ else 0.0, floor=0.0, floor_by="exact",
               mismatches=differ)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (row(), row(), "same"),
        (row(excess=2.9), row("suspect", 3.1), "worse"),
        (row("suspect", 3.1), row(excess=2.9), "better"),
        (row(excess=1.1), row(excess=1.1 * BEYOND * 0.99), "same"),
        (row(excess=1.1), row(excess=1.1 * BEYOND * 1.01), "worse"),
        (row(excess=0.01), row(excess=0.99), "same"),
        (row("diverged", 400.0), row("diverged", 20.0), "better"),
        (row("diverged", 400.0), row("diverged", None), "worse"),
        (row("diverged", None), row("diverged", None), "same"),
        (row("diverged", None), row("diverged", 90.0), "better"),
        (row(uncertainty=0.5, excess=1.1), row(uncertainty=0.5, excess=4.0, verdict="match"), "same"),
        (row("diverged", 2.0, peak_excess=90.0), row("diverged", 2.0, peak_excess=900.0), "worse"),
        (row("suspect", 2.0, peak_excess=39.0), row("suspect", 2.0, peak_excess=13.0), "better"),
        (row("suspect", 2.0, peak_excess=30.0), row("suspect", 2.0, peak_excess=15.0), "same"),
        (row(peak_excess=0.5), row(peak_excess=11.0), "same"),
        (exact(0), exact(0), "same"),
        (exact(0), exact(1), "worse"),
        (exact(900), exact(3), "better"),
        (row(), row("missing", None), "worse"),
        (row("missing", None), row(), "better"),
        (row("missing", None), row("diverged", 90.0), "other"),
        (row("diverged", 90.0), row("skipped", None), "other"),
        (row("missing", None), row("skipped", None), "other"),
        (row("missing", None), row("missing", None), "same"),
        (None, row(), "new"),
        (row(), None, "gone"),
    ],
)
def test_what_became_of_a_checkpoint(before, after, change):
    assert change_of(before, after)["change"] == change


def test_what_is_further_off_and_still_a_match_fails_nothing():
    before, after = sample_run.clean(**SMALL), sample_run.clean(**SMALL)
    for run, excess in ((before, 0.4), (after, 2.9)):
        for one in run["cases"][0]["checkpoints"][:2]:
            one.update(excess=excess)
    found = diff(before, after)
    assert [(one["change"], one["within"]) for one in found["checkpoints"]] == [("worse", True)] * 2
    assert "still a match" in found["sentence"]
    assert exit_code(found) == 0


def test_what_is_not_compared_any_more_is_said_by_the_exit_code():
    clean, holes = sample_run.clean(**SMALL), sample_run.clean(**SMALL)
    one = holes["cases"][0]["checkpoints"][3]
    one.update(verdict="missing", excess=None, rel_rmse=None)
    found = diff(clean, settle(holes))
    assert changes(found) == {one["name"]: "worse"}
    assert (found["failing"], exit_code(found)) == (0, 5)


def test_a_floor_that_moved_is_no_work_of_the_candidate():
    moved = change_of(row(excess=2.8), row(excess=0.28, floor=1e-6, rel_rmse=2.8e-7))
    real = change_of(row(excess=2.8), row(excess=0.28))
    assert (moved["change"], moved["by_floor"], real["by_floor"]) == ("better", True, False)


def test_cases_and_checkpoints_that_one_run_has_alone():
    before = sample_run.clean(cases=("square", "wide"), **SMALL)
    after = sample_run.clean(cases=("square", "tall"), **SMALL)
    dropped = after["cases"][0]["checkpoints"].pop(4)["name"]
    found = diff(before, after)
    rows = len(before["cases"][0]["checkpoints"])
    assert found["counts"]["gone"] == 2 * rows + 1
    assert found["counts"]["new"] == 2 * rows
    assert ("square", dropped, "gone") in {(one["case"], one["name"], one["change"]) for one in found["checkpoints"]}
    assert (found["verdict"], exit_code(found)) == ("other", 5)
    assert found["sentence"].startswith("No better and no worse: ")
    lines = {(line["entry"][0], line["change"]): written.place(line) for line in gathered(found["checkpoints"])}
    assert lines == {("square", "gone"): dropped}, "whole cases stand in the table of cases"


def test_the_sources_of_a_case_that_is_gone_are_not_mended():
    before, after = sample_run.diverged(cases=("square", "wide"), **SMALL), sample_run.diverged(**SMALL)
    sources = {entry["case"]: entry["sources"] for entry in diff(before, after)["entries"]}
    assert sources["wide"] == {"went": [], "came": [], "stayed": []}
    assert sources["square"]["stayed"]


def test_runs_of_other_suites_have_nothing_in_common():
    found = diff(sample_run.clean(**SMALL), sample_run.clean(component="vae", cases=("vae-one",), **SMALL))
    assert found["verdict"] == "incomparable"
    assert found["sentence"].startswith("Nothing to compare")
    assert exit_code(found) == 5


def test_another_model_or_other_inputs_are_said():
    before, after = sample_run.clean(**SMALL), sample_run.clean(**SMALL)
    after["weights"]["configs"] = {"transformer": {"num_layers": 4}}
    after["cases"][0]["inputs"] = after["cases"][0]["inputs"] | {"seed": 9}
    after["environment"]["candidate"]["mlx"] = "0.33.0"
    found = diff(before, after)
    assert found["notes"] == [
        "The two runs are of different models: a change may come from that.",
        "Case square: the same name, but other inputs.",
    ]  # fmt: skip
    assert {"what": "environment.candidate.mlx", "before": "0.32.4", "after": "0.33.0"} in found["settings"]


def test_empty_runs_are_compared_too():
    empty = sample_run.clean(**SMALL) | {"cases": []}
    assert diff(empty, empty)["verdict"] == "incomparable"
    assert diff(empty, sample_run.clean(**SMALL))["counts"]["new"] > 0


def test_lines_gather_what_recurs_and_the_worst_comes_first():
    clean, broken = sample_run.clean(**SMALL), sample_run.diverged(**SMALL)
    lines = gathered(diff(clean, broken)["checkpoints"])
    assert sum(line["count"] for line in lines) == diff(clean, broken)["counts"]["worse"]
    [attn] = [line for line in lines if line["group"] == "block.NN.img.attn" and line["entry"][2] == "isolated"]
    assert attn["indices"] == {"block": {1, 2}}
    assert written.place(attn) == "block.NN.img.attn (blocks 1–2)"
    assert attn["factor"] > 100


@pytest.mark.parametrize("name", ["square", "a-rather-long-name-of-a-case", "x" * 60])
def test_the_table_fits_a_terminal_and_says_all(capsys, name):
    before, after = (getattr(sample_run, kind)(cases=(name, "b"), **SMALL) for kind in ("clean", "diverged"))
    written.print_table(diff(before, after, NAMES))
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= 80
    assert "match → diverged" in " ".join(printed.split())
    assert "before: /runs/a" in printed
    assert " ".join(printed.split()).endswith(diff(before, after)["sentence"])


def test_nothing_in_a_name_reaches_a_terminal_or_opens_a_tag(capsys):
    found = diff(sample_run.clean(cases=(f"square{HOSTILE}",), **SMALL), sample_run.hostile(**SMALL), NAMES)
    written.print_table(found)
    for text in (capsys.readouterr().out, written.markdown(found)):
        assert not {"\u202e", "\u2066", "\x00", "\x1b"} & set(text)
    outside = re.sub(r"`[^`]*`", "", written.markdown(found))
    assert "<img" not in outside
    assert "&lt;img" in outside
    assert all(line.count("`") % 2 == 0 for line in written.markdown(found).splitlines())


def test_every_key_of_the_json_is_described():
    text = (Path(__file__).parent.parent / "docs" / "comparing.md").read_text()
    found = json.loads(written.as_json(diff(sample_run.clean(**SMALL), sample_run.diverged(**SMALL), NAMES)))
    described = set(re.findall(r"\w+", text[text.index("## The comparison as JSON") :]))
    rows = found["checkpoints"]
    keys = {*found, *found["before"], *found["entries"][0], *found["entries"][0]["after"], *rows[0], *rows[0]["after"]}
    assert keys <= described


def test_json_has_every_change_and_no_number_that_json_lacks():
    found = json.loads(written.as_json(diff(sample_run.clean(**SMALL), sample_run.nonfinite(**SMALL), NAMES)))
    assert found["schema"] == 1
    assert {one["after"]["excess"] for one in found["checkpoints"]} >= {"inf"}
    assert found["counts"]["worse"] + found["counts"]["other"] == len(found["checkpoints"])
