"""The engine, on a toy model in numpy: what it compares with what, and what it does with faults."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy import GRAPH, ToyPort

from parity import verdict
from parity.components.transformer import TransformerCase
from parity.errors import PreconditionError, WeightsError
from parity.lockstep import Lockstep, Unit, iterate

CASE = TransformerCase(name="toy", seed=0, images=((64, 64),), text_tokens=(3,), timestep=0.5)
BOTH = ("isolated", "accumulated")


def run(candidate=None, modes=BOTH, reference=None):
    unit = Unit(CASE, "float32", modes, GRAPH, draws=2)
    lockstep = Lockstep(unit, reference or ToyPort(), candidate or ToyPort(), Path())
    chains = lockstep.start(CASE.inputs({"transformer": {"in_channels": 16, "joint_attention_dim": 4}}, "float32"))
    results = {}
    for stage, _, result in iterate(lockstep, chains, 0):
        results[stage] = result
    judged = {}
    for mode in modes:
        rows = [row for result in results.values() for row in result.rows[mode]]
        judged[mode] = {r["name"]: r for r in verdict.judge(rows, GRAPH, isolated=mode == "isolated")}
    return judged, results


def sources(rows):
    return [name for name, row in rows.items() if row["source"]]


def test_a_port_equal_to_the_reference_is_at_the_floor():
    judged, _ = run()
    for rows in judged.values():
        assert verdict.overall(verdict.count(rows.values())) == "parity"
        assert all(0 < row["excess"] <= 1 for row in rows.values())
        assert all(1e-8 < row["floor"] < 1e-6 for row in rows.values())
        assert all(row["rmse"] == 0 for row in rows.values())


def test_an_error_in_one_place_is_found_there_in_both_modes():
    judged, results = run(ToyPort({"mid": lambda x: x * np.float32(1.001)}))
    assert sources(judged["isolated"]) == ["mid"]
    assert sources(judged["accumulated"]) == ["mid"]
    # The head itself makes no error, but is handed one.
    assert judged["isolated"]["final"]["verdict"] == "match"
    assert judged["accumulated"]["final"]["propagated"]
    before, after = results["head"].growth
    assert before > 1e-5
    assert after == pytest.approx(before, rel=1)


def test_an_array_without_elements_is_of_another_shape_and_ends_nothing():
    judged, _ = run(ToyPort({"final": lambda x: x[:, :0]}))
    row = judged["isolated"]["final"]
    assert row["verdict"] == "diverged"
    assert row["reason"] == "shape (1, 0, 16), expected (1, 16, 16)"
    assert row["candidate"] is None
    assert sources(judged["accumulated"]) == ["final"]


def test_both_modes_measure_against_their_own_truth():
    judged, _ = run(ToyPort({"img_in": lambda x: x + np.float32(0.1)}))
    assert sources(judged["isolated"]) == sources(judged["accumulated"]) == ["img_in"]
    assert judged["isolated"]["out"]["verdict"] == "match"
    assert judged["accumulated"]["out"]["verdict"] == "diverged"


def test_what_the_candidate_does_not_produce_is_missing():
    judged, _ = run(ToyPort(silent=("mid",)))
    assert judged["isolated"]["mid"]["verdict"] == "missing"
    assert verdict.overall(verdict.count(judged["isolated"].values())) == "incomplete"


def test_a_wrong_shape_is_a_divergence_that_says_both():
    judged, _ = run(ToyPort({"final": lambda x: x[:, :-1]}))
    row = judged["accumulated"]["final"]
    assert (row["verdict"], row["reason"]) == ("diverged", "shape (1, 15, 16), expected (1, 16, 16)")


def test_a_nan_in_one_element_is_a_divergence():
    def spoil(x):
        x = x.copy()
        x[0, 3, 3] = np.nan
        return x

    judged, _ = run(ToyPort({"mid": spoil}))
    assert sources(judged["isolated"]) == ["mid"]
    assert "not finite" in judged["isolated"]["mid"]["reason"]


def test_a_reference_that_is_not_finite_says_nothing():
    overflow = {"mid": lambda x: x * np.float32(np.inf) if x.dtype == np.float32 else x}
    judged, _ = run(reference=ToyPort(overflow))
    assert judged["isolated"]["mid"]["verdict"] == "uncertain"
    assert verdict.overall(verdict.count(judged["isolated"].values())) == "incomplete"


def test_a_candidate_that_raises_ends_its_chain_and_not_the_run():
    def fail(x):
        raise RuntimeError("no kernel for this")

    judged, _ = run(ToyPort({"mid": fail}))
    assert judged["isolated"]["mid"]["reason"] == "the candidate raised RuntimeError: no kernel for this"
    assert [judged["isolated"][n]["verdict"] for n in GRAPH.expected] == ["match", "skipped", "skipped", "match"]
    assert [judged["accumulated"][n]["verdict"] for n in GRAPH.expected] == ["match", "skipped", "skipped", "skipped"]
    assert "ended in an earlier stage" in judged["accumulated"]["final"]["reason"]


def test_a_candidate_that_cannot_load_a_stage_is_skipped_there():
    class Broken(ToyPort):
        def open(self, *args, **options):
            session = super().open(*args, **options)
            load = session.load
            session.load = lambda stage: load(stage if stage != "block.00" else 1 / 0)
            return session

    judged, _ = run(Broken())
    assert judged["isolated"]["mid"]["reason"].startswith("loading the stage: the candidate raised ZeroDivisionError")
    assert [judged["isolated"][n]["verdict"] for n in GRAPH.expected] == ["match", "skipped", "skipped", "match"]


def test_a_candidate_that_cannot_open_the_checkpoint_is_one_line():
    class Closed(ToyPort):
        def open(self, *args, **options):
            raise KeyError("img_in.weight")

    with pytest.raises(
        PreconditionError, match=r"candidate toy does not open .* in float32: KeyError: 'img_in.weight'"
    ):
        run(Closed())


def test_an_error_of_the_checkpoint_is_not_the_candidates_fault():
    def fail(x):
        raise WeightsError("truncated")

    with pytest.raises(WeightsError):
        run(ToyPort({"mid": fail}))


@pytest.mark.parametrize("mode", BOTH)
def test_one_mode_alone_gives_the_same_verdicts(mode):
    faulty = {"mid": lambda x: x * np.float32(1.001)}
    alone, _ = run(ToyPort(faulty), modes=(mode,))
    together, _ = run(ToyPort(faulty))
    assert alone[mode] == together[mode]


def test_isolated_mode_alone_runs_no_chain_but_the_references():
    reference, candidate = ToyPort(), ToyPort()
    run(candidate, modes=("isolated",), reference=reference)
    assert [e for e in candidate.log if e[0] == "run"] == [("run", s, "float32") for s in GRAPH.stages]
    assert sum(e == ("run", "embed", "float64") for e in reference.log) == 1


def test_the_statistics_of_both_sides_are_kept_for_the_trace():
    _, results = run(ToyPort({"mid": lambda x: x * np.float32(2)}))
    stats = results["block.00"].stats
    assert stats["candidate"]["mid"].absmax == pytest.approx(2 * stats["reference"]["mid"].absmax)
    assert sum(stats["candidate"]["mid"].histogram) == stats["candidate"]["mid"].count


def test_what_must_be_equal_is_held_against_the_reference_and_not_the_truth():
    """GIVEN a port equal to the reference, whose float32 differs from the float64 truth, THEN nothing differs."""
    graph = replace(GRAPH, exact=frozenset({"img_in"}), pictures=("final",))

    def first(candidate):
        unit = Unit(CASE, "float32", BOTH, graph, draws=1)
        lockstep = Lockstep(unit, ToyPort(), candidate, Path())
        chains = lockstep.start(CASE.inputs({"transformer": {"in_channels": 16, "joint_attention_dim": 4}}, "float32"))
        results = [result for _, _, result in iterate(lockstep, chains, 0)]
        return results[0].rows["isolated"][0], results[-1].pictures

    row, pictures = first(ToyPort())
    assert (row["mismatches"], row["rel_rmse"], row["floor"], row["floor_by"]) == (0, 0.0, 0.0, "exact")
    np.testing.assert_array_equal(*pictures["final"])
    row, pictures = first(ToyPort({"img_in": lambda x: np.where(x == x.max(), np.nextafter(x, np.float32(99)), x)}))
    assert row["mismatches"] == 1
    assert not np.array_equal(*pictures["final"])
