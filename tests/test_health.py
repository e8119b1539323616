"""Health alerts: what raises each one, what does not, and that nothing a file holds breaks them."""

import copy
import math

import pytest
import sample_run

from parity import health
from parity.health_checks import number
from parity.runfolder import from_json, to_json

SMALL = {"blocks": 3, "level": "block", "dtypes": ("float32",)}
STATS = {"min": -3.0, "max": 4.0, "mean": 0.1, "std": 1.0, "rms": 1.0, "absmax": 4.0, "nan": 0, "inf": 0,
         "headroom": 3.4028235e38 / 4}  # fmt: skip
HALF = {"headroom": 65504.0 / 4}


def run_of(*rows, dtype="float32", **entry):
    return {"cases": [{"name": "square", "mode": "isolated", "dtype": dtype, "checkpoints": list(rows)} | entry]}


def row(name="block.01.img.attn", *, candidate=None, reference=None, dtype="float32", **more):
    ours, theirs = (STATS | (side or {}) for side in (candidate, reference))
    return {"name": name, "dtype": dtype, "reference": theirs, "candidate": ours, "range": None} | more


def codes(run):
    return [one["code"] for one in health.alerts(run)]


def documented(verdict, low=-4.0, high=5.0, factor=1.0):
    return {"row": "img_attn_out", "low": low, "high": high, "verdict": verdict, "factor": factor}


@pytest.mark.parametrize("component", list(sample_run.INPUTS))
def test_a_clean_run_raises_no_alert_and_says_what_passed(component):
    run = sample_run.clean(component=component, **SMALL)
    assert [one for one in health.alerts(run) if one["severity"] != "note"] == []
    titles = {one["code"]: one for one in health.passed(run)}
    assert titles["nonfinite"]["looked"] == sum(len(entry["checkpoints"]) for entry in run["cases"])
    assert "NaN" in titles["nonfinite"]["title"]


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("nonfinite", row(candidate={"nan": 3})),
        ("nonfinite", row(candidate={"inf": 1, "max": "inf"})),
        ("reference-nonfinite", row(candidate={"nan": 3}, reference={"nan": 3})),
        ("zeros", row(candidate={"min": 0.0, "max": 0.0, "rms": 0.0, "absmax": 0.0, "headroom": math.inf})),
        ("constant", row(candidate={"min": 2.0, "max": 2.0, "std": 0.0})),
        ("saturated", row(dtype="float16", candidate={"headroom": 1.0, "absmax": 65504.0}, reference=HALF)),
        ("headroom", row(dtype="float16", candidate={"headroom": 9.9}, reference=HALF)),
        ("headroom", row(dtype="float16", candidate=HALF, reference={"absmax": 6550.4 * 2, "headroom": 5.0})),
        ("denormal", row(dtype="float16", candidate=HALF | {"rms": 3e-5}, reference=HALF)),
        ("wider", row(dtype="float32", reference={"headroom": 3.3895314e38 / 4})),
        ("narrower", row(dtype="bfloat16", candidate={"headroom": 3.3895314e38 / 4})),
        ("outside", row(candidate={"max": 60.0}, range=documented("outside", factor=12.0))),
        ("absent", row(candidate={"min": -0.1, "max": 0.1}, range=documented("absent", factor=0.02))),
        ("outside-both", row(range=documented("outside", high=1.0, factor=4.0))),
        ("absent-both", row(range=documented("absent", -400.0, 500.0, 0.01))),
    ],
)
def test_each_alert_is_raised_by_what_it_is_about_and_by_nothing_else(code, bad):
    run = run_of(row("img_in"), bad)
    assert codes(run) == [code]
    [alert] = health.alerts(run)
    assert (alert["bad"], alert["severity"] in health.SEVERITIES) == (1, True)
    assert [(one["group"], one["where"], one["first"]) for one in alert["names"]] == [
        ("block.NN.img.attn", "block 1", "block.01.img.attn")
    ]
    assert "block.01.img.attn (square · float32 · isolated)" in alert["text"]
    assert code not in [one["code"] for one in health.passed(run)]
    # The same as it is in the file.
    assert codes(to_json(run)) == codes(from_json(to_json(run))) == [code]


def test_every_check_has_an_example():
    [examples] = test_each_alert_is_raised_by_what_it_is_about_and_by_nothing_else.pytestmark
    assert {code for code, _ in examples.args[1]} == {check.code for check in health.CHECKS}


@pytest.mark.parametrize(
    "fine",
    [
        row(dtype="bool", candidate={"headroom": 1.0}, reference={"headroom": 1.0, "absmax": 1.0}),
        row(dtype="int64", candidate={"headroom": 9.2e18 / 4}, reference={"headroom": 9.2e18 / 4}),
        row(candidate={"min": 0, "max": 0, "rms": 0.0}, reference={"min": 0, "max": 0, "rms": 0.0}),
        row(candidate={"min": 1, "max": 1}, reference={"min": 1, "max": 1}),
        row(dtype="float16", candidate={"headroom": 10.0}, reference=HALF),
        row(dtype="float32", reference={"headroom": 3.3895314e38 / 4}, evidence="values"),
        row(range=documented("inside")),
    ],
)
def test_what_is_no_fault_is_no_alert(fine):
    assert health.alerts(run_of(fine)) == []


def test_names_are_gathered_over_blocks_and_entries_and_the_worst_is_told():
    wrong = [row(f"block.{i:02d}.img.ffn", candidate={"nan": 1 + (i == 2)}) for i in (0, 1, 2, 5)]
    run = run_of(*wrong, row("final", candidate={"nan": 1}))
    run["cases"] += run_of(*wrong[:2], mode="accumulated")["cases"]
    [alert] = health.alerts(run)
    assert (alert["bad"], alert["looked"], alert["more"]) == (7, 7, 0)
    gathered, final = alert["names"]
    assert gathered == {
        "group": "block.NN.img.ffn", "where": "blocks 0–2, 5", "first": "block.00.img.ffn", "entry": 0, "count": 4,
        "entries": ["square · float32 · isolated", "square · float32 · accumulated"],
    }  # fmt: skip
    assert (final["group"], final["where"], final["count"]) == ("final", "", 1)
    assert alert["text"].startswith("7 of 7 checkpoints; worst at block.02.img.ffn (square")
    assert "2 NaN and 0 infinite values" in alert["text"]


def test_a_reference_that_is_not_finite_has_no_range_to_keep():
    gone = {"nan": 9, "min": "nan", "max": "nan"}
    for side in (gone, {"nan": 9}, {"min": "nan", "max": "nan"}):
        run = run_of(row(candidate=side, reference=side, range=documented("outside", factor="inf")))
        assert "outside" not in codes(run)
        assert "outside" not in [one["code"] for one in health.passed(run)]
    run = run_of(row(candidate=gone, range=documented("outside", factor="inf")))
    assert codes(run) == ["nonfinite", "outside"]
    assert "not finite, the reference -3 … 4, documented -4 … 5" in health.alerts(run)[1]["text"]


def test_a_documented_range_is_named_and_how_far_it_is_left():
    wrong = row(candidate={"max": 60.0}, range=documented("outside", factor=12.0))
    small = row(candidate={"min": -0.1, "max": 0.1}, range=documented("absent", factor=0.02))
    texts = [alert["text"] for alert in health.alerts(run_of(wrong, small))]
    assert "-3 … 60, the reference -3 … 4, documented -4 … 5 as “img_attn_out”, 12 times that. " in texts[0]
    assert "-0.1 … 0.1, the reference -3 … 4, documented -4 … 5 as “img_attn_out”, 0.02 of that. " in texts[1]
    large = row(range={**documented("absent", -2e6, 2e6, 2e-6), "row": "After block 0"})
    [alert] = health.alerts(run_of(large))
    assert "-3 … 4, documented -2M … 2M as “After block 0”, 2e-06 of that. " in alert["text"]
    for name, factor in ((3, "nan"), (None, None), ("x" * 9_000, "inf")):
        odd = documented("outside", factor=factor) | {"row": name}
        [alert] = health.alerts(run_of(row(candidate={"max": 60.0}, range=odd)))
        assert " of that" not in alert["text"]
        assert " times that" not in alert["text"]
        assert len(alert["text"]) < 500


def test_parts_that_are_exchanged_are_the_ports_own_fault():
    """GIVEN shift and scale in the wrong order, of one range as a whole, THEN the alert is the port's."""
    parts = [[-30.0, 20.0], [-130.0, 110.0]]
    whole = {"min": -130.0, "max": 110.0, "absmax": 130.0}
    left = {"row": "scale/shift", "low": -30.0, "high": 20.0, "verdict": "outside", "factor": 5.5}

    def found(ours):
        made = row(candidate=whole | {"chunks": ours}, reference=whole | {"chunks": parts}, range=left)
        return health.alerts(run_of(made))

    [alert] = found(parts[::-1])
    assert alert["code"] == "outside"
    assert (
        "-130 … 110 in all its parts, the reference -130 … 110, documented -30 … 20 as “scale/shift”" in alert["text"]
    )
    assert [one["code"] for one in found(parts)] == ["outside-both"]
    for odd in (None, [], [3], [[1]], [[None, 1.0]] * 2, [["nan", 1.0]] * 2, parts[:1], "ab"):
        assert [one["code"] for one in found(odd)] in (["outside"], ["outside-both"])


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        (46e6, "the largest value, 46M at block.59.img.out, is 7.37e+30 times below bfloat16's largest number, "
               "702 times beyond float16's"),
        (4000.0, "16.4 times below float16's largest number"),
        ("inf", "the largest value, 4 at img_in"),
    ],
)  # fmt: skip
def test_how_far_the_largest_value_is_from_overflow_is_said_whatever_the_dtype(largest, said):
    whole = {"absmax": 1e9, "headroom": 9.2e9}
    numbers = row("ids", dtype="int64", candidate=whole, reference=whole)
    run = run_of(row("img_in"), row("block.59.img.out", reference={"absmax": largest}), numbers)
    [title] = [one["title"] for one in health.passed(run) if one["code"] == "headroom"]
    assert title.startswith("At least 10 times to overflow everywhere: ")
    assert said in title


def test_the_severe_come_first():
    run = run_of(
        row(range=documented("outside", high=1.0)), row(dtype="float16", candidate={"headroom": 2.0}, reference=HALF),
        row(candidate={"nan": 1}),
    )  # fmt: skip
    assert [one["severity"] for one in health.alerts(run)] == ["error", "warning", "note"]


def test_the_checks_are_in_the_order_of_their_severity():
    order = [health.SEVERITIES.index(check.severity) for check in health.CHECKS]
    assert order == sorted(order)


def test_a_truth_value_is_no_figure():
    assert health.alerts(run_of(row(candidate={"nan": True}))) == []
    assert [number(x) for x in (True, "1", None, 10**400, -3)] == [None, None, None, math.inf, -3.0]


def test_many_groups_are_counted_not_listed():
    [alert] = health.alerts(run_of(*(row(f"part{i}", candidate={"nan": 1}) for i in range(40))))
    assert (len(alert["names"]), alert["more"]) == (health.MOST_NAMES, 40 - health.MOST_NAMES)


@pytest.mark.parametrize("kind", ["clean", "diverged", "incomplete", "nonfinite", "hostile"])
def test_runs_of_every_kind(kind):
    run = getattr(sample_run, kind)(**SMALL)
    before = copy.deepcopy(run)
    found = health.alerts(run)
    assert run == before
    assert ("nonfinite" in [one["code"] for one in found]) == (kind == "nonfinite")


JUNK = (
    None,
    True,
    "",
    "nan",
    "-inf",
    "1e5",
    [],
    {},
    [[1]],
    {"verdict": 3},
    -1,
    0,
    10**400,
    -(10**400),
    math.nan,
    5e-324,
)


@pytest.mark.parametrize("junk", JUNK, ids=lambda x: str(x)[:12])
def test_anything_in_place_of_a_figure_is_lived_with(junk):
    for key in STATS:
        health.alerts(run_of(row(candidate={key: junk}), row(reference={key: junk})))
    for key in ("dtype", "reference", "candidate", "range", "evidence", "name"):
        health.alerts(run_of(row(**{key: junk}) if key not in ("reference", "candidate") else row() | {key: junk}))
    for key in ("low", "high", "verdict", "factor"):
        health.alerts(run_of(row(range=documented("outside") | {key: junk})))
    for run in (junk, {}, {"cases": junk}, {"cases": [junk]}, run_of(junk), run_of(checkpoints=junk)):
        assert health.alerts(run) == []
        assert health.passed(run) == []


@pytest.mark.parametrize("gone", list(STATS))
def test_old_rows_without_a_figure_are_looked_at_as_far_as_they_go(gone):
    bad = row(candidate={"nan": 2})
    for side in ("reference", "candidate"):
        del bad[side][gone]
    assert codes(run_of(bad)) == ([] if gone == "nan" else ["nonfinite"])


def test_checks_that_looked_at_nothing_have_not_passed():
    assert [one["code"] for one in health.passed(run_of({"name": "img_in"}))] == []
    bare = row()
    del bare["reference"]["headroom"], bare["candidate"]["headroom"]
    assert "headroom" not in [one["code"] for one in health.passed(run_of(bare))]


def test_names_that_are_no_names(tmp_path):
    names = ["block." + "9" * 9000 + ".img.x", "step.00." * 1300 + "x", sample_run.HOSTILE, ""]
    [alert] = health.alerts(run_of(*(row(name, candidate={"nan": 1}) for name in names)))
    assert [one["first"] for one in alert["names"]] == names
