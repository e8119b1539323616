"""``parity.json`` from measured rows: range verdicts, sentences, the first divergence."""

import json
import math

import pytest

from parity import result
from parity.names import qwen_image_transformer
from parity.rangetable import RangeRow, RangeTable
from parity.runfolder import from_json, to_json
from parity.verdict import exit_code

ABOUT = {
    "weights": {"synthetic": True}, "environment": {}, "suite": "s", "command": "parity run", "started": "now",
    "seconds": 1.0,
}  # fmt: skip
GRAPH = qwen_image_transformer(2, "kinds")
ATTN = "block.01.img.attn"


def row(name, **changes):
    figures = {"min": -1.0, "max": 1.0, "nan": 0, "inf": 0}
    return {
        "name": name, "stage": GRAPH.stage[name], "status": "measured", "reason": "", "shape": [2, 3],
        "expected_shape": [2, 3], "rel_rmse": 1e-7, "floor": 1e-7, "peak": 1e-6, "peak_floor": 1e-6,
        "reference": dict(figures), "candidate": dict(figures),
    } | changes  # fmt: skip


def case(name="one", mode="isolated", dtype="float32", **changed):
    """A case with all its rows; keyword arguments are changes by name, dots written as two underscores."""
    changes = {key.replace("__", "."): change for key, change in changed.items()}
    return {
        "name": name, "mode": mode, "dtype": dtype, "graph": {"name": "transformer", "num_layers": 2, "level": "kinds"},
        "checkpoints": [row(n, **changes.get(n, {})) for n in GRAPH.expected],
    }  # fmt: skip


OFF = {"rel_rmse": 1e-4}
GONE = {"status": "missing", "candidate": None}


def assemble(*cases, table=None):
    return result.assemble(cases, ABOUT, table)


def test_parity_says_how_many_and_how_near():
    run = assemble(case(img_in={"rel_rmse": 2e-7}), case("two"))
    assert (run["verdict"], run["first_divergence"]) == ("parity", None)
    n = 2 * len(GRAPH.expected)
    assert run["sentence"] == (
        f"Parity: all {n} checkpoints are within the reference's own rounding noise; the worst is at 2 times the floor."
    )


def test_parity_with_suspects_says_so():
    run = assemble(case(img_in={"rel_rmse": 5e-7}))
    assert run["verdict"] == "parity"
    assert "rounding noise, 1 of them suspect; the worst is at 5 times" in run["sentence"]


def test_divergence_says_where_it_starts_in_the_first_case_that_has_one():
    run = assemble(case(), case("two", "accumulated", "bfloat16", block__01__img__attn=OFF))
    assert run["verdict"] == "divergence"
    assert run["first_divergence"] == {"case": "two", "mode": "accumulated", "dtype": "bfloat16", "checkpoint": ATTN}
    n = 2 * len(GRAPH.expected)
    assert run["sentence"] == (
        f"Divergence: 1 of {n} compared checkpoints are off; it starts at {ATTN} (case two, bfloat16, accumulated)."
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [(("img_in",), "1 more checkpoint"), (("img_in", "block.00.txt.mod"), "2 more checkpoints")],
)
def test_divergence_counts_the_other_places_once(more, said):
    off = {name.replace(".", "__"): OFF for name in (*more, ATTN)}
    run = assemble(case(**off), case("again", **off))
    assert run["first_divergence"]["checkpoint"] == "img_in"
    assert f"it starts at img_in and at {said} (case one, float32, isolated)." in run["sentence"]


def test_a_divergence_weighs_more_than_what_is_missing():
    run = assemble(case(img_in=GONE), case("two", img_in=OFF))
    assert run["verdict"] == "divergence"
    assert [one["verdict"] for one in run["cases"]] == ["incomplete", "divergence"]
    assert run["first_divergence"]["case"] == "two"


def test_incomplete_says_what_was_not_compared():
    run = assemble(
        case(img_in=GONE, final={"status": "skipped", "candidate": None}, block__00__img__ffn={"floor": 0.5})
    )
    assert run["verdict"] == "incomplete"
    n = len(GRAPH.expected)
    assert run["sentence"] == (
        f"Incomplete: {n - 3} of {n} checkpoints could be compared (1 uncertain, 1 missing, 1 skipped); "
        "none of those diverged."
    )


def test_a_run_that_compared_nothing_is_not_parity():
    run = assemble()
    assert run["verdict"] == "incomplete"
    assert run["sentence"] == (
        "Incomplete: 0 of 0 checkpoints could be compared (nothing was expected); none of those diverged."
    )
    all_gone = case(**{name.replace(".", "__"): GONE for name in GRAPH.expected})
    run = assemble(all_gone)
    assert run["verdict"] == "incomplete"
    assert (
        f"0 of {len(GRAPH.expected)} checkpoints could be compared ({len(GRAPH.expected)} missing)" in run["sentence"]
    )


@pytest.mark.parametrize(("cases", "code"), [([case()], 0), ([case(img_in=OFF)], 1), ([case(img_in=GONE)], 5), ([], 5)])
def test_each_verdict_has_its_exit_code(cases, code):
    assert exit_code(assemble(*cases)["verdict"]) == code


def test_counts_of_a_run_are_those_of_its_cases():
    run = assemble(case(img_in=OFF), case("two", final=GONE))
    for key, total in run["counts"].items():
        assert total == sum(one["counts"][key] for one in run["cases"])
    assert (run["counts"]["diverged"], run["counts"]["missing"]) == (1, 1)


def test_what_is_returned_is_what_will_be_read_back():
    run = assemble(case(img_in={"rel_rmse": math.inf, "floor": 1 / 3e7}))
    assert run["cases"][0]["checkpoints"][0]["rel_rmse"] == math.inf
    assert from_json(json.loads(json.dumps(to_json(run)))) == run


def test_judging_again_forgets_the_old_verdicts():
    run = assemble(case(img_in=OFF))
    run["cases"][0]["checkpoints"][0]["rel_rmse"] = 1e-7
    again = result.rejudge(run)
    assert again["verdict"] == "parity"
    assert again["first_divergence"] is None
    assert {one["verdict"] for one in again["cases"][0]["checkpoints"]} == {"match"}
    assert {key: again[key] for key in ABOUT} == ABOUT


def ranges(*rows):
    return RangeTable("t", tuple(RangeRow(name, cp, low, high, "s", chunks) for name, cp, low, high, chunks in rows))


INSIDE, OUTSIDE, ABSENT = (-1.2, 1.2), (-0.2, 0.2), (-100.0, 100.0)


def range_of(*rows, checkpoint="img_in", candidate=None):
    stats = candidate or {"min": -1.0, "max": 1.0, "nan": 0, "inf": 0, "chunks": [[-1.0, 1.0]] * 6}
    found = result.range_of({"name": checkpoint, "candidate": stats}, ranges(*rows), 59)
    return found and (found["row"], found["verdict"])


def test_the_range_checked_is_the_one_of_the_checkpoint():
    assert range_of(("a", "txt_in", *OUTSIDE, ()), ("b", "img_in", *INSIDE, ())) == ("b", "inside")
    assert range_of(("a", "txt_in", *OUTSIDE, ())) is None
    assert range_of(("a", "block.last.img.out", *OUTSIDE, ()), checkpoint="block.59.img.out") == ("a", "outside")
    assert range_of(("a", "block.last.img.out", *OUTSIDE, ()), checkpoint="block.58.img.out") is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("ends", "worst"),
    [((INSIDE, ABSENT), "absent"), ((INSIDE, OUTSIDE), "outside"), ((ABSENT, OUTSIDE), "outside")],
)
def test_the_worst_range_is_shown(ends, worst, reverse):
    rows = [(verdict, "img_in", *pair, ()) for verdict, pair in zip(("mild", "worst"), ends, strict=True)]
    assert range_of(*(rows[::-1] if reverse else rows)) == ("worst", worst)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ends", [INSIDE, OUTSIDE, ABSENT])
def test_among_equals_the_range_of_the_whole_checkpoint_is_shown(ends, reverse):
    mod = "block.00.img.mod"
    rows = [("part", mod, *ends, ("shift1",)), ("whole", mod, *ends, ())]
    found = range_of(*(rows[::-1] if reverse else rows), checkpoint=mod)
    assert found[0] == "whole"


def test_a_worse_range_of_a_part_comes_before_a_milder_one_of_the_whole():
    mod = "block.00.img.mod"
    rows = [("whole", mod, *INSIDE, ()), ("part", mod, *OUTSIDE, ("shift1",))]
    assert range_of(*rows, checkpoint=mod) == ("part", "outside")


def test_a_range_of_chunks_says_nothing_where_they_are_not_known():
    mod = "block.00.img.mod"
    known = {"min": -1.0, "max": 1.0, "nan": 0, "inf": 0}
    assert range_of(("part", mod, *OUTSIDE, ("shift1",)), checkpoint=mod, candidate=known) is None


def test_rows_carry_the_range_verdict_of_the_candidate():
    table = ranges(("r", "img_in", *INSIDE, ()))
    wide = {"min": -9.0, "max": 1.0, "nan": 0, "inf": 0}
    found = assemble(case(img_in={"candidate": wide}, final=GONE), table=table)["cases"][0]["checkpoints"]
    assert found[0]["range"] == {"row": "r", "low": -1.2, "high": 1.2, "verdict": "outside", "factor": 7.5}
    assert found[-1]["range"] is None
    assert all(one["range"] is None for one in assemble(case(img_in={"candidate": wide}))["cases"][0]["checkpoints"])


def test_a_run_whose_values_all_equal_the_reference_says_so():
    equal = {name: {"rel_rmse": 0.0, "peak": 0.0} for name in GRAPH.expected}
    run = assemble(case(**{name.replace(".", "__"): change for name, change in equal.items()}))
    assert run["sentence"] == f"Parity: all {len(GRAPH.expected)} checkpoints equal the reference's, bit for bit."
