"""Range tables: the guide's rows are all there, each verdict has a twin, TOML reads back exactly."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity import trace
from parity.commands import ranges
from parity.errors import EXIT_DIVERGENCE, EXIT_INCOMPLETE, EXIT_PARITY, OutputExistsError, UsageError
from parity.names import qwen_image_transformer
from parity.rangetable import MOD_CHUNKS, RangeRow, RangeTable
from parity.runfolder import write_json
from parity.stats import describe

# (checkpoint, low, high) of the guide: its table, then the comments in its code.
GUIDE_TABLE = [
    ("img_in", -15, 16), ("block.00.img.normed", -9, 9), ("block.00.img.mod", -30, 20),
    ("block.00.img.modulated", -70, 55), ("block.00.img.attn", -90, 120), ("block.00.img.ffn", -25000, 26000),
    ("block.00.img.out", -2e6, 2e6), ("block.59.img.out", -45e6, 46e6), ("norm_out", -21, 13), ("final", -4.5, 4.5),
]  # fmt: skip
GUIDE_COMMENTS = [
    ("time.proj", -1, 1), ("time.linear_1", -10, 14), ("time.silu", -0.3, 14), ("temb", -34, 63),
    ("block.00.img.mod", -132, 112), ("block.00.img.normed", -9, 9), ("block.00.img.modulated", -66, 54),
    ("block.00.img.attn", -88, 118), ("block.00.img.mid", -246, 443), ("block.00.img.ffn", -25500, 25600),
    ("block.00.img.out", -2e6, 2e6),
]  # fmt: skip


def table(**row):
    row = {"name": "r", "checkpoint": "img_in", "low": -10.0, "high": 20.0, "source": "test"} | row
    return RangeTable("t", (RangeRow(**row),))


def verdict(low, high, *, of=None, **more):
    of = of or table()
    return of.check(of.rows[0], {"min": low, "max": high} | more)


def test_the_guide_is_there_row_by_row():
    rows = RangeTable.load("qwen-image").rows
    assert [(r.checkpoint, r.low, r.high) for r in rows] == GUIDE_TABLE + GUIDE_COMMENTS
    assert [r.source.partition(",")[2].split()[0] for r in rows] == ["table"] * 10 + ["comment"] * 11
    assert {r.checkpoint for r in rows} <= set(qwen_image_transformer(60).expected)


def test_scale_and_shift_are_chunks_of_the_modulation():
    found = RangeTable.load("qwen-image").rows_for("block.00.img.mod")
    assert [(row.chunks, row.chunk_indices()) for row in found] == [(("shift1", "scale1"), (0, 1)), ((), ())]


@pytest.mark.parametrize(
    ("low", "high", "expected", "factor"),
    [
        (-10, 20, "inside", 1),
        (-5, 5, "inside", 0.5),
        (-15, 20, "inside", 1.5),
        (-15.1, 20, "outside", 1.51),
        (-10, 30, "inside", 1.5),
        (-10, 60, "outside", 3),
        (-1, 5, "inside", 0.25),
        (-1, 4.9, "absent", 0.245),
        (0, 0, "absent", 0),
    ],
)
def test_the_ends_with_slack(low, high, expected, factor):
    found = verdict(low, high)
    assert (found["verdict"], found["factor"]) == (expected, pytest.approx(factor))
    assert (found["row"], found["low"], found["high"]) == ("r", -10, 20)


@pytest.mark.parametrize("key", ["nan", "inf", "pos_inf", "neg_inf"])
def test_non_finite_values_are_outside_by_infinity(key):
    assert verdict(-5, 5, **{key: 0})["verdict"] == "inside"
    found = verdict(-5, 5, **{key: 1})
    assert (found["verdict"], found["factor"]) == ("outside", math.inf)


@pytest.mark.parametrize("ends", [(math.nan, 5), (-5, math.inf), (-math.inf, 5)])
def test_non_finite_ends_are_outside_by_infinity(ends):
    found = verdict(*ends)
    assert (found["verdict"], found["factor"]) == ("outside", math.inf)


def test_nothing_is_said_where_nothing_is_known():
    one = table()
    assert [one.check(one.rows[0], stats) for stats in (None, {}, {"min": None, "max": 1})] == [None] * 3


@pytest.mark.parametrize(
    ("span", "ends", "expected"),
    [
        ((5, 20), (6, 19), "inside"),
        ((5, 20), (-4.9, 20), "inside"),
        ((5, 20), (-5.1, 20), "outside"),
        ((0, 20), (-1, 20), "inside"),
        ((-1e-6, 50), (-0.1, 50), "inside"),
        ((-1e-6, 50), (-1, 50), "outside"),
        ((0, 0), (0, 0), "inside"),
        ((0, 0), (0, 1e-9), "outside"),
    ],
)
def test_ends_that_do_not_point_away_from_zero(span, ends, expected):
    of = table(low=float(span[0]), high=float(span[1]))
    assert verdict(*ends, of=of)["verdict"] == expected


def test_a_row_of_chunks_looks_at_its_chunks_only():
    of = table(checkpoint="block.00.img.mod", chunks=("shift1", "scale1"))
    chunks = [[-9, 8], [-4, 19], [-999, 999], [0, 0], [0, 0], [0, 0]]
    assert verdict(-999, 999, of=of, chunks=chunks)["verdict"] == "inside"
    chunks[1] = [-4, 31]
    assert verdict(-999, 999, of=of, chunks=chunks)["verdict"] == "outside"
    chunks[1] = [-4, math.nan]
    assert verdict(-999, 999, of=of, chunks=chunks)["factor"] == math.inf


@pytest.mark.parametrize("chunks", [None, [], [[-1, 1]]])
def test_a_row_of_chunks_says_nothing_without_them(chunks):
    of = table(checkpoint="block.00.img.mod", chunks=("shift1", "scale1"))
    assert verdict(-999, 999, of=of, chunks=chunks) is None


def test_the_final_modulation_has_its_own_chunks():
    of = table(checkpoint="norm_out.mod", chunks=("scale",))
    assert verdict(-99, 99, of=of, chunks=[[-9, 9], [-99, 99]])["verdict"] == "inside"


def test_the_last_block_has_an_alias():
    of = table(checkpoint="block.last.img.out")
    assert of.rows_for("block.29.img.out", last_block=29) == of.rows
    assert of.rows_for("block.28.img.out", last_block=29) == ()
    assert of.rows_for("block.29.img.out") == ()


def test_recorded_ranges_hold_the_run_they_come_from_and_not_ten_times_it():
    stats = {"img_in": {"min": -3.25, "max": 1 / 3, "nan": 0}, "final": {"min": 0.0, "max": 7.0}}
    of = RangeTable.record(stats, source="a run")
    assert [(row.name, row.source) for row in of.rows] == [("img_in", "a run"), ("final", "a run")]
    for row in of.rows:
        figures = stats[row.checkpoint]
        assert of.check(row, figures)["verdict"] == "inside"
        assert of.check(row, {k: 10 * v for k, v in figures.items()})["verdict"] == "outside"
        assert of.check(row, {k: v / 10 for k, v in figures.items()})["verdict"] == "absent"


@pytest.mark.parametrize("bad", [{"min": 0, "max": math.inf}, {"min": 0, "max": 1, "nan": 2}, {"min": None, "max": 1}])
def test_a_broken_run_is_not_recorded(bad):
    with pytest.raises(UsageError, match="img_in") as caught:
        RangeTable.record({"final": {"min": 0, "max": 1}, "img_in": bad}, source="a run")
    assert caught.value.details == ("img_in",)


def test_nothing_is_not_recorded():
    with pytest.raises(UsageError, match="no statistics"):
        RangeTable.record({}, source="a run")


def test_the_table_of_the_package_reads_back(tmp_path):
    of = RangeTable.load("qwen-image")
    (tmp_path / "copy.toml").write_text(of.dump())
    assert RangeTable.load(tmp_path / "copy.toml") == of


def printable(**size):
    return st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, **size)


finite = st.floats(allow_nan=False, allow_infinity=False)
drawn = st.builds(
    lambda name, checkpoint, ends, source, chunks, note: (
        RangeRow(name, f"{checkpoint}.mod", min(ends), max(ends), source, tuple(chunks), note)
    ),
    printable(), printable(), st.tuples(finite, finite), printable(), st.lists(st.sampled_from(MOD_CHUNKS)),
    st.text(st.characters(codec="utf-8")),
)  # fmt: skip


@given(
    rows=st.lists(drawn, min_size=1, max_size=4, unique_by=lambda row: row.name),
    slack=st.floats(1, 1e6),
    title=st.text(st.characters(codec="utf-8")),
)
def test_any_table_reads_back_exactly(tmp_path_factory, rows, slack, title):
    of = RangeTable("any", tuple(rows), title, slack=slack)
    path = tmp_path_factory.mktemp("table") / "any.toml"
    path.write_text(of.dump(), newline="", encoding="utf-8")
    assert RangeTable.load(path) == of


TOP = 'schema = 1\nname = "t"\n'
ROW = '[[row]]\nname = "r"\ncheckpoint = "img_in"\nlow = -1\nhigh = 2.5\nsource = "s"\n'


def load(tmp_path, text):
    (tmp_path / "t.toml").write_text(text)
    return RangeTable.load(tmp_path / "t.toml")


def test_a_written_table_gets_the_defaults(tmp_path):
    of = load(tmp_path, TOP + ROW)
    assert (of.slack, of.absent) == (1.5, 4.0)
    assert of.rows == (RangeRow("r", "img_in", -1.0, 2.5, "s"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOP + ROW + "hihg = 3\n", "r: unknown key 'hihg'"),
        (TOP + "slac = 2\n" + ROW, "unknown key 'slac'"),
        (TOP + "slack = 0.5\n" + ROW, "slack is 0.5"),
        (TOP + "absent = true\n" + ROW, "absent is True"),
        (TOP + "slack = nan\n" + ROW, "slack is nan"),
        (TOP, r"no \[\[row\]\] entries"),
        (TOP + "row = []\n", r"no \[\[row\]\] entries"),
        (ROW, "schema is None"),
        (TOP.replace("1", "2") + ROW, "schema is 2"),
        (TOP + ROW + ROW, "r: two rows have this name"),
        (TOP + ROW.replace("-1", "3"), "low 3 is above high 2.5"),
        (TOP + ROW.replace("-1", "-inf"), "low and high are not both finite"),
        (TOP + ROW.replace("-1", "1" + "0" * 400), "low and high are not both finite"),
        (TOP + ROW.replace("-1", '"-1"'), "low and high are not both finite"),
        (TOP + ROW.replace('source = "s"', ""), "source is missing"),
        (TOP + ROW.replace('"r"', r'"\u001b[31m"'), "row 1: name is missing"),
        (TOP + ROW.replace('"r"', '["r"]'), "row 1: name is missing"),
        (TOP + ROW + 'chunks = ["shift1"]\n', "need a checkpoint of modulation parameters"),
        (TOP + ROW.replace("img_in", "block.00.img.mod") + 'chunks = ["shift"]\n', "expected some of shift1"),
        (TOP + ROW.replace("img_in", "norm_out.mod") + 'chunks = ["shift1"]\n', "expected some of scale, shift"),
        ("name = ", "t.toml: "),
    ],
)
def test_a_wrong_table_is_named(tmp_path, text, expected):
    load(tmp_path, TOP + ROW)
    with pytest.raises(UsageError, match=expected):
        load(tmp_path, text)


def test_a_table_that_is_not_there():
    with pytest.raises(UsageError, match="known: qwen-image"):
        RangeTable.load("flux")


def run_of(reached, *, chunks=None, judged=None, layers=60):
    """`parity.json` with one case, in which every checkpoint reached (min, max)."""
    rows = []
    for name, (low, high) in reached.items():
        side = {"min": low, "max": high, "nan": 0, "inf": 0}
        row = {"name": name, "reference": side, "candidate": dict(side), "range": judged}
        if chunks is not None and name.endswith(".mod"):
            row["candidate"]["chunks"] = chunks
        rows.append(row)
    case = {"name": "square", "dtype": "float32", "mode": "isolated", "component": "transformer",
            "graph": {"name": "transformer", "num_layers": layers, "level": "kinds"}, "checkpoints": rows}  # fmt: skip
    return {"schema": 2, "weights": {}, "cases": [case]}


def documented():
    """Just what the guide documents; the wider of two rows of one checkpoint."""
    reached = {}
    for name, low, high in GUIDE_TABLE + GUIDE_COMMENTS:
        seen = reached.get(name, (0, 0))
        reached[name] = (min(low, seen[0]), max(high, seen[1]))
    return reached


CHUNKS = [[-30, 20], [-20, 19], [-132, 112], [0, 0], [0, 0], [0, 0]]


def checked(tmp_path, run, **options):
    write_json(tmp_path / "parity.json", run)
    return ranges.check(tmp_path, **options)


def test_check_passes_a_run_that_is_as_documented(tmp_path, capsys):
    assert checked(tmp_path, run_of(documented(), chunks=CHUNKS)) == EXIT_PARITY
    printed = capsys.readouterr().out
    assert "21 of 21 rows checked: 21 inside, 0 absent, 0 outside" in printed
    assert "never show parity" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("factor", [0.1, 10])
def test_check_names_the_row_that_is_not(tmp_path, capsys, factor):
    reached = documented()
    reached["final"] = (-4.5 * factor, 4.5 * factor)
    assert checked(tmp_path, run_of(reached, chunks=CHUNKS)) == EXIT_DIVERGENCE
    verdict = "outside" if factor > 1 else "absent"
    assert f"Final output: {verdict} in square float32 isolated" in capsys.readouterr().out


def test_check_sees_non_finite_values(tmp_path):
    run = run_of(documented(), chunks=CHUNKS)
    run["cases"][0]["checkpoints"][0]["candidate"]["nan"] = 1
    assert checked(tmp_path, run) == EXIT_DIVERGENCE
    assert checked(tmp_path, run, side="reference") == EXIT_PARITY


def test_check_says_when_nothing_could_be_checked(tmp_path, capsys):
    assert checked(tmp_path, run_of({"txt_in": (-1, 1)})) == EXIT_INCOMPLETE
    assert "0 of 21 rows checked" in capsys.readouterr().out


@pytest.mark.parametrize(("row", "code"), [("scale/shift", EXIT_DIVERGENCE), ("another", EXIT_INCOMPLETE)])
def test_check_takes_over_the_runs_own_verdict_on_chunks(tmp_path, row, code):
    judged = {"row": row, "low": -30, "high": 20, "verdict": "outside", "factor": 9.0}
    reached = {"block.00.img.mod": (-132, 112)}
    (tmp_path / "t.toml").write_text(
        'schema = 1\nname = "t"\n[[row]]\nname = "scale/shift"\ncheckpoint = "block.00.img.mod"\n'
        'chunks = ["shift1"]\nlow = -30\nhigh = 20\nsource = "s"\n'
    )
    assert checked(tmp_path, run_of(reached, judged=judged), table=str(tmp_path / "t.toml")) == code


def test_check_reads_a_trace(tmp_path):
    stats = {"img_in": asdict(describe(np.array([-15.0, 16.0])))}
    trace.write(tmp_path / "good", stats, {"configs": {"transformer": {"num_layers": 60}}})
    stats = {"img_in": asdict(describe(np.array([-150.0, 16.0])))}
    trace.write(tmp_path / "bad", stats, {"configs": {"transformer": {"num_layers": 60}}})
    assert ranges.check(tmp_path / "good") == EXIT_PARITY
    assert ranges.check(tmp_path / "bad") == EXIT_DIVERGENCE


def test_a_damaged_trace_is_a_usage_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"configs": {"transformer": {"num_layers": 60}}}')
    (tmp_path / "stats.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="not a trace this version reads"):
        ranges.check(tmp_path)


def test_record_writes_what_check_accepts_and_overwrites_nothing(tmp_path, capsys):
    run = run_of(documented(), chunks=CHUNKS)
    wider = run_of({"final": (-9, 2)})["cases"][0]
    run["cases"].append(wider)
    write_json(tmp_path / "parity.json", run)
    out = tmp_path / "own.toml"
    assert ranges.record(tmp_path, out=out) == EXIT_PARITY
    (final,) = RangeTable.load(out).rows_for("final")
    assert (final.low, final.high) == (-9, 4.5)
    assert ranges.check(tmp_path, table=str(out)) == EXIT_PARITY
    with pytest.raises(OutputExistsError, match="--force"):
        ranges.record(tmp_path, out=out)
    assert ranges.record(tmp_path, out=out, force=True) == EXIT_PARITY
    assert "own.toml: 15 ranges" in capsys.readouterr().out


def test_record_wants_a_toml_file(tmp_path):
    with pytest.raises(UsageError, match="ends in"):
        ranges.record(tmp_path, out=tmp_path / "table")


def test_names_from_a_run_do_not_reach_the_terminal_raw(tmp_path, capsys):
    run = run_of({"img_in": (-999, 999)})
    run["cases"][0]["name"] = "\x1b[31mred\u202e"
    assert checked(tmp_path, run) == EXIT_DIVERGENCE
    printed = capsys.readouterr().out
    assert "\\x1b[31mred\\u202e" in printed
    assert "\x1b" not in printed


def test_show_prints_every_row(capsys):
    assert ranges.show() == EXIT_PARITY
    printed = capsys.readouterr().out
    assert all(row.name in printed and row.source in printed for row in RangeTable.load("qwen-image").rows)
    assert "[-25k, 26k]" in printed
    assert "[-45M, 46M]" in printed
