"""Verdicts, sources and counts. Every green case has a twin that must be red."""

import math
from dataclasses import replace

import pytest

from parity import verdict
from parity.names import Graph, qwen_image_transformer

CHAIN = Graph(
    {"a": (), "b": ("a",), "c": ("b",), "side": (), "d": ("c", "side")},
    {"a": "one", "b": "one", "c": "two", "side": "two", "d": "two"},
    ("a", "b", "c", "side", "d"),
)


def row(name, **changes):
    figures = {"min": -1.0, "max": 1.0, "nan": 0, "inf": 0}
    measured = {
        "name": name, "status": "measured", "reason": "", "shape": [2, 3], "expected_shape": [2, 3],
        "rel_rmse": 1e-7, "floor": 1e-7, "peak": 1e-6, "peak_floor": 1e-6,
        "reference": dict(figures), "candidate": dict(figures),
    }  # fmt: skip
    return measured | changes


def judge(isolated=False, **changes):
    rows = [row(name, **changes.get(name, {})) for name in CHAIN.expected]
    return {r["name"]: r for r in verdict.judge(rows, CHAIN, isolated=isolated)}


OFF = {"rel_rmse": 1e-5}


def test_a_clean_run_is_parity():
    judged = judge()
    assert {r["verdict"] for r in judged.values()} == {"match"}
    counts = verdict.count(judged.values())
    assert (counts["expected"], counts["compared"], counts["match"]) == (5, 5, 5)
    assert verdict.overall(counts) == "parity"


@pytest.mark.parametrize(
    ("excess", "expected"), [(0.5, "match"), (3.0, "match"), (3.01, "suspect"), (10.0, "suspect"), (10.1, "diverged")]
)
def test_excess_decides(excess, expected):
    judged = judge(b={"rel_rmse": excess * 1e-7})["b"]
    assert judged["verdict"] == expected
    assert judged["excess"] == pytest.approx(excess)


def test_a_few_wrong_elements_are_seen_though_the_mean_is_good():
    judged = judge(b={"peak": 1e-4})["b"]
    assert judged["verdict"] == "diverged"
    assert "a few elements are off by 100 times" in judged["reason"]
    assert judge(b={"peak": 1.1e-5})["b"]["verdict"] == "match"


@pytest.mark.parametrize(
    ("change", "expected", "reason"),
    [
        ({"shape": [3, 2], "rel_rmse": None}, "diverged", "shape (3, 2), expected (2, 3)"),
        ({"candidate": {"nan": 1, "inf": 2}, "rel_rmse": math.nan}, "diverged", "3 values are not finite"),
        ({"reference": {"nan": 1, "inf": 0}}, "uncertain", "reference itself is not finite"),
        ({"floor": math.nan}, "uncertain", "reference itself is not finite"),
        ({"floor": 0.31}, "uncertain", "floor is 0.31"),
        ({"status": "missing", "shape": None}, "missing", ""),
        ({"status": "skipped", "reason": "it raised"}, "skipped", "it raised"),
    ],
)
def test_what_is_not_decided_by_the_excess(change, expected, reason):
    judged = judge(b=change)["b"]
    assert judged["verdict"] == expected
    assert reason in judged["reason"]
    assert judged["excess"] is None


def test_the_source_is_where_all_parents_match():
    judged = judge(b=OFF, c=OFF, d=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["b"]
    assert [n for n, r in judged.items() if r["propagated"]] == ["c", "d"]


def test_all_sources_are_found():
    judged = judge(b=OFF, c=OFF, side=OFF, d=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["b", "side"]


@pytest.mark.parametrize("gap", [{"status": "missing"}, {"floor": 0.5}])
def test_the_source_rule_looks_through_what_says_nothing(gap):
    judged = judge(a=OFF, b=gap, c=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["a"]
    assert judged["c"]["propagated"]
    assert judge(b=gap, c=OFF)["c"]["source"]


def test_isolated_divergence_does_not_cross_stages():
    judged = judge(isolated=True, b=OFF, c=OFF, d=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["b", "c"]


def test_a_trail_goes_on_through_a_suspect():
    """An error that is small in between (a residual hides it) and shows again is still the same error."""
    judged = judge(a=OFF, b={"rel_rmse": 5e-7}, c=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["a"]
    assert judged["c"]["propagated"]
    assert judge(a=OFF, c=OFF)["c"]["source"], "without the suspect in between it is an error of its own"


def test_whatever_diverges_there_is_a_source():
    judged = judge(a={"rel_rmse": 5e-7}, b={"rel_rmse": 2e-6}, c=OFF)
    assert [n for n, r in judged.items() if r["source"]] == ["b"]


@pytest.mark.parametrize("change", [{"status": "missing"}, {"status": "skipped"}, {"floor": 0.5}])
def test_anything_uncompared_makes_a_run_incomplete(change):
    assert verdict.overall(verdict.count(judge(d=change).values())) == "incomplete"


def test_a_divergence_is_not_hidden_by_what_is_missing():
    assert verdict.overall(verdict.count(judge(a=OFF, d={"status": "missing"}).values())) == "divergence"


def test_nothing_compared_is_not_parity():
    assert verdict.overall(verdict.count([])) == "incomplete"
    assert verdict.overall(verdict.add([])) == "incomplete"


def test_rows_that_do_not_cover_the_graph_are_refused():
    rows = [row(name) for name in CHAIN.expected]
    with pytest.raises(ValueError, match="do not cover"):
        verdict.judge(rows[:-1], CHAIN, isolated=False)
    with pytest.raises(ValueError, match="do not cover"):
        verdict.judge(rows[::-1], CHAIN, isolated=False)


def test_exit_codes():
    assert [verdict.exit_code(v) for v in ("parity", "divergence", "incomplete")] == [0, 1, 5]


def test_exchanged_shift_and_scale_start_at_modulated():
    """GIVEN every `modulated` off and all that follows, THEN both streams of block 0 are the sources."""
    graph = qwen_image_transformer(2)
    first = graph.expected.index("block.00.img.modulated")
    rows = [
        row(name, **(OFF if (i >= first and not name.endswith(("mod", ".normed"))) or "01" in name else {}))
        for i, name in enumerate(graph.expected)
    ]
    judged = verdict.judge(rows, graph, isolated=False)
    found = [r["name"] for r in judged if r["source"]]
    assert found[:2] == ["block.00.img.modulated", "block.00.txt.modulated"]


EXACT = {"floor": 0.0, "peak_floor": 0.0, "rel_rmse": 0.0, "peak": 0.0, "mismatches": 0}


def exactly(**changes):
    """The verdict on the first checkpoint, which must equal the reference bit for bit."""
    first = CHAIN.expected[0]
    graph = replace(CHAIN, exact=frozenset({first}))
    rows = [row(name, **(EXACT | changes if name == first else {})) for name in CHAIN.expected]
    return verdict.judge(rows, graph, isolated=False)[0]


def test_values_that_must_be_equal_match_only_where_none_differs():
    assert (exactly()["verdict"], exactly()["excess"]) == ("match", 0.0)
    off = exactly(mismatches=1, rel_rmse=1e-12)
    assert (off["verdict"], off["source"], off["excess"]) == ("diverged", True, math.inf)
    assert off["reason"] == "1 of 6 values differ; all must be equal"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mismatches": None}, "uncertain"),
        ({"reference": {"nan": 1, "inf": 0}}, "uncertain"),
        ({"shape": [3, 2], "mismatches": None}, "diverged"),
        ({"status": "missing", "candidate": None, "mismatches": None}, "missing"),
    ],
)
def test_equality_that_was_not_seen_is_no_match(change, expected):
    assert exactly(**change)["verdict"] == expected


def test_a_graph_does_not_promise_equality_of_what_it_does_not_know():
    with pytest.raises(ValueError, match="outside the graph"):
        replace(CHAIN, exact=frozenset({"stranger"}))
    with pytest.raises(ValueError, match="outside the graph"):
        replace(CHAIN, pictures=("stranger",))
