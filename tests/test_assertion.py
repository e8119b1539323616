"""The message of a failed assertion: what it shows, and that it stays on one screen."""

from pathlib import Path

import pytest
import sample_run

from parity.names import qwen_image_transformer
from parity.reporters import assertion
from parity.runfolder import from_json

SMALL = {"blocks": 2, "dtypes": ("float32",)}
LISTED = {"name": "transformer", "num_layers": 2, "level": "full"}


def make(kind, **options):
    run = from_json(getattr(sample_run, kind)(**SMALL | options))
    for case in run["cases"]:
        case["graph"] = LISTED
    return run


def first_row(run):
    return next(row for row in run["cases"][0]["checkpoints"] if row["source"])


def test_it_begins_with_verdict_and_place():
    lines = assertion.message(make("diverged")).splitlines()
    assert lines[0] == "divergence at block.00.img.attn (square.float32.isolated)"
    assert lines[1] == "The port first departs from the reference at block.00.img.attn."


def test_the_first_divergence_stands_below_its_parents():
    lines = assertion.message(make("diverged")).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("checkpoint"))
    marks = [line.split()[0] for line in lines[head + 1 :] if line.endswith("  parent")]
    parents = qwen_image_transformer(2).parents["block.00.img.attn"]
    assert marks == list(parents)[-4:]
    first = next(line for line in lines if line.endswith("<- first divergence"))
    assert first.split()[:5] == ["block.00.img.attn", "diverged", "6.4e-08", "1.5e-05", "2.4e+02"]
    assert lines.index(first) == head + 5
    assert any(line.split()[0] == "block.00.txt.attn" and line.endswith("  source") for line in lines[head:])
    assert any(line.endswith("  propagated") for line in lines)


def test_what_is_not_in_the_table_is_counted():
    run = make("diverged")
    lines = assertion.message(run).splitlines()
    shown = sum(" diverged " in line and ("  " in line) for line in lines)
    diverged = run["cases"][0]["counts"]["diverged"]
    assert f"and {diverged - shown} more diverged" in lines


def test_worst_elements_have_both_values():
    run = make("diverged")
    first_row(run)["worst"] = [[[0, 3, 2], 2.5, 1.5], [[0, 0, 1], float("nan"), 1.0]]
    told = assertion.message(run)
    assert "  [0, 3, 2]: 2.5, truth 1.5\n  [0, 0, 1]: nan, truth 1" in told


def test_the_reason_and_the_shape_are_told():
    run = make("nonfinite")
    told = assertion.message(run)
    assert "reason: 12 values are not finite where the reference's are" in told
    assert "shape 1×256×64, float32" in told


def test_what_was_not_compared_is_counted_and_named():
    told = assertion.message(make("incomplete"))
    lines = told.splitlines()
    assert lines[0] == "incomplete: 24 missing, 2 skipped, 2 uncertain"
    assert "not compared: 2 uncertain, 24 missing, 2 skipped" in lines
    assert "  square.float32.isolated: block.01.txt.mod: missing, the candidate did not produce it" in lines
    assert "  and 22 more" in lines


def test_a_divergence_that_is_incomplete_too_says_both():
    run = make("diverged")
    row = run["cases"][0]["checkpoints"][-1]
    row.update(verdict="missing", source=False, propagated=False)
    told = assertion.message(run)
    assert told.startswith("divergence at")
    assert "not compared: 1 missing" in told


def test_other_entries_are_named():
    assert "also square.float32.accumulated: divergence, starts at block.00.img.attn" in assertion.message(
        make("diverged")
    )


def test_synthetic_weights_and_the_page_are_told():
    lines = assertion.message(make("diverged"), Path("/a/report.html")).splitlines()
    assert lines[-2:] == ["weights: synthetic weights (tiny): random numbers, calibrated", "page: /a/report.html"]


@pytest.mark.parametrize("kind", ["diverged", "incomplete", "nonfinite", "hostile"])
def test_it_fits_on_one_screen(kind):
    run = make(kind, cases=("one", "two", "three"), dtypes=("float32", "bfloat16"))
    run["sentence"] += " and so on" * 200
    run["notes"] = ["n" * 500] * 9
    for case in run["cases"]:
        for row in case["checkpoints"]:
            row["worst"] = [[[0] * 60, 1.0, 2.0]] * 5
            row["reason"] = "why " * 100
        for row in case["checkpoints"][-9:]:
            row.update(verdict="missing", source=False)
    page = Path("/" + "p" * 300 + "/report.html")
    lines = assertion.message(run, page).split("\n")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert lines[-1].startswith("page: /ppp")
    assert lines[-1].endswith("/report.html")


def test_a_run_whose_graph_is_none_is_still_told():
    run = make("diverged")
    for case in run["cases"]:
        case["graph"] = {"name": "no such"}
    assert "<- first divergence" in assertion.message(run)


def test_nothing_compared_is_said():
    run = make("incomplete")
    run["cases"] = []
    run["counts"] = dict.fromkeys(run["counts"], 0)
    assert assertion.message(run).startswith("incomplete: nothing was compared\n")
