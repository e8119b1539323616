"""A log alone: its lines are found among others, and its ranges suggest causes that are never called proven."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.diagnosis.clue import Clue
from parity.diagnosis.from_log import diagnose, from_log
from parity.errors import UsageError
from parity.imports import loglines
from parity.imports.loglines import parse, read_lines

GOOD = """\
loading weights [####    ]
[IMG_IN] [-14.20, 15.31]
[NORMED] [-8.91, 9.02]
[MOD] scale=[-12.00, 9.50]
[MODULATED] [-60.10, 50.33]
[ATTN] [-88.00, 118.00]
[FFN] [-25000.10, 25600.20]
[FINAL] [-4.20, 4.31]
"""


def found(text):
    return diagnose(parse(text.splitlines())).to_json()


def codes(text, confidence=None):
    return [one["code"] for one in found(text)["causes"] if confidence in (None, one["confidence"])]


def test_a_log_as_documented_gives_no_cause_and_no_parity_either():
    result = found(GOOD)
    assert (result["subject"], result["causes"], result["sources"], result["first_divergence"]) == ("log", [], [], None)
    assert "prove no parity" in result["notes"][0]
    assert "7 ranges of 7 checkpoints in one pass, 7 of them with a documented range" in result["notes"][0]
    assert {"norm_out", "block.00.img.out"} <= set(result["would_decide"])


@pytest.mark.parametrize(
    ("line", "name", "ends"),
    [
        ("[IMG_IN] [-14.20, 15.31]", "img_in", (-14.2, 15.31)),
        ("12:30:01 INFO [step 3] [BLOCK 07] [ATTN] [-1e3, 2.5E+3] ok", "block.07.img.attn", (-1000.0, 2500.0)),
        ("block 12 txt [FFN] [-.5, 3.]", "block.12.txt.ffn", (-0.5, 3.0)),
        ("[MOD] scale=[-1, 2]", "block.00.img.mod", (-1.0, 2.0)),
        ("[NORMED] [-inf, inf]", "block.00.img.normed", (-math.inf, math.inf)),
        ("[final] [ -4 ,4 ]", "final", (-4.0, 4.0)),
        ("block.07.img.attn [-88, 118]", "block.07.img.attn", (-88.0, 118.0)),
        ("step.03.cond.block.07.txt.ffn: [1, 2]", "block.07.txt.ffn", (1.0, 2.0)),
        ("norm_out = [-21, 13]", "norm_out", (-21.0, 13.0)),
        ("time.linear_1 [-10, 14]", "time.linear_1", (-10.0, 14.0)),
    ],
)
def test_a_line_is_read(line, name, ends):
    log = parse([line])
    assert log.readings == 1
    assert log.passes[0].ranges == {name: ends}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[INFO] [1, 2]",
        "loading norm_out.mod",
        "block.07.img.attention [1, 2]",
        "x.final [1, 2]",
        "final answer",
        "][",
    ],
)
def test_other_output_is_passed_over(line):
    log = parse([line])
    assert (log.readings, log.truncated) == (0, 0)


@pytest.mark.parametrize(
    "line", ["[ATTN] [-88.00, 1", "[ATTN]", "[MOD] scale=[-1", "block.07.img.attn [-88,", "norm_out ["]
)
def test_lines_that_were_cut_off_are_counted(line):
    log = parse([line, "[FINAL] [-1, 1]"])
    assert (log.readings, log.truncated) == (1, 1)
    assert "1 line was cut off and is not counted" in diagnose(log).notes


def test_nan_is_read():
    (one,) = parse(["[FINAL] [nan, NaN]"]).passes
    assert all(map(math.isnan, one.ranges["final"]))


def test_blocks_without_numbers_are_counted_and_passes_told_apart():
    one = "[IMG_IN] [-1, 1]\n" + "[NORMED] [-2, 2]\n[FFN] [-3, 3]\n" * 3 + "[FINAL] [-4, 4]\n"
    log = parse((one + one).splitlines())
    assert [list(p.ranges) for p in log.passes] == [
        ["img_in", *(f"block.0{i}.img.{kind}" for i in range(3) for kind in ("normed", "ffn")), "final"]
    ] * 2
    assert any("numbers no blocks" in note for note in diagnose(log).notes)
    headed = parse("step 4/20\n--- block 9 ---\n[ATTN] [-1, 1]\n--- block 10 ---\n[ATTN] [-1, 1]\n".splitlines())
    assert [(p.label, list(p.ranges)) for p in headed.passes] == [("4", ["block.09.img.attn", "block.10.img.attn"])]


@pytest.mark.parametrize(
    ("old", "new", "code", "confidence"),
    [
        ("[-60.10, 50.33]", "[-900.10, 850.33]", "modulation.order", "likely"),
        ("[-60.10, 50.33]", "[-130.10, 110.33]", "modulation.order", "possible"),
        ("[-60.10, 50.33]", "[-8.10, 9.33]", "modulation.one_plus_missing", "possible"),
        ("[-4.20, 4.31]", "[-13.20, 12.90]", "norm_out.order", "likely"),
        ("[-4.20, 4.31]", "[-400.20, 390.90]", "norm_out.order", "possible"),
        ("[-4.20, 4.31]", "[nan, nan]", "weights.missing", "possible"),
        ("[-14.20, 15.31]", "[0, 0]", "backend.kernel", "possible"),
        ("[-14.20, 15.31]", "[0.00, -0.00]", "weights.missing", "possible"),
        ("[-25000.10, 25600.20]", "[-inf, 30000]", "ffn.fp16_overflow", "likely"),
        ("[-25000.10, 25600.20]", "[-900.10, 860.20]", "ffn.clamped", "possible"),
        ("[-88.00, 118.00]", "[nan, nan]", "attention.row_all_masked", "possible"),
        ("[-88.00, 118.00]", "[-8800.00, 9000.00]", "attention.scale_missing", "possible"),
        ("[-8.91, 9.02]", "[-80.91, 90.02]", "norm.rms_for_layer", "possible"),
        ("[-12.00, 9.50]", "[-900.00, 800.50]", "modulation.silu_missing", "possible"),
    ],
)
def test_a_range_that_is_off_suggests(old, new, code, confidence):
    assert GOOD.count(old) == 1
    assert code not in codes(GOOD)
    assert code in codes(GOOD.replace(old, new), confidence)


def test_values_that_run_to_inf_after_block_0_suggest_the_attention_scale():
    later = GOOD.replace("[FINAL] [-4.20, 4.31]", "[NORMED] [nan, nan]\n[ATTN] [nan, nan]\n[FINAL] [nan, nan]")
    assert "attention.scale_missing" in codes(later, "possible")
    sure = later.replace("[-88.00, 118.00]", "[-8800.00, 9000.00]")
    assert "attention.scale_missing" in codes(sure, "likely")


def test_values_beyond_half_precision_rule_its_overflow_out():
    inf = GOOD.replace("[-25000.10, 25600.20]", "[-25000.10, inf]")
    assert "ffn.fp16_overflow" in codes(inf)
    assert "ffn.fp16_overflow" not in codes(inf + "block.00.txt.out [-2000000, 1999000]\n")


def test_the_first_checkpoint_that_is_off_is_the_one_that_speaks():
    text = GOOD.replace("[-60.10, 50.33]", "[-900.10, 850.33]").replace("[-88.00, 118.00]", "[nan, nan]")
    result = found(text)
    assert result["sources"] == ["block.00.img.modulated"]
    assert {one["where"][0] for one in result["causes"]} == {"block.00.img.modulated"}


def test_ends_that_are_shared_to_the_digit_were_clamped():
    text = "".join(f"[BLOCK {b:02}] [FFN] [-1000.00, 1000.00]\n" for b in (3, 4))
    assert codes(text) == ["ffn.clamped"]
    assert codes(text.replace("-1000.00", "-1000.01")) == []
    result = found(text)
    assert result["causes"][0]["evidence"] == {"bound": 1000.0, "readings": 2}
    assert result["sources"] == ["block.03.img.ffn"]


def test_nothing_is_ever_proven_or_explained():
    for old, new in (("[-60.10, 50.33]", "[-9e9, 8e9]"), ("[-4.20, 4.31]", "[-13.20, 12.90]")):
        result = found(GOOD.replace(old, new))
        assert {one["confidence"] for one in result["causes"]} <= {"likely", "possible"}
        assert result["explained"] is False
        assert result["would_decide"]
    with pytest.raises(ValueError, match="never proven"):
        Clue("a.b", "proven", (), "")


def test_the_later_passes_are_looked_at_as_well():
    result = found(GOOD + GOOD.replace("[-60.10, 50.33]", "[-900.10, 850.33]"))
    assert result["sources"] == ["block.00.img.modulated"]
    assert any("in pass 1" in note for note in result["notes"])


def test_a_file_is_diagnosed(tmp_path):
    path = tmp_path / "port.log"
    path.write_bytes(
        b"\xff\xfe\x00 not text\n" + GOOD.replace("[-60.10, 50.33]", "[-900, 850]").encode() + b"x" * 100_000
    )
    result = from_log(path)
    assert result["causes"][0]["code"] == "modulation.order"
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("content", ["", "nothing here\n", "[ATTN] [1,\n"])
def test_a_log_without_ranges_is_an_error_of_one_line(tmp_path, content):
    path = tmp_path / "a\x1b[31m.log"
    path.write_text(content)
    with pytest.raises(UsageError, match="no ranges found") as error:
        from_log(path)
    assert str(error.value).isprintable()


def test_a_log_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="Is a directory"):
        from_log(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        from_log(tmp_path / "none.log")


def test_a_line_without_end_and_a_log_without_end_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "long.log"
    path.write_text("x" * 100_000 + "[ATTN] [1, 2]\n[FFN] [1, 2]\n")
    lines = list(read_lines(path))
    assert [len(line) for line in lines] == [loglines.LINE_BYTES, len("[FFN] [1, 2]\n")]
    monkeypatch.setattr(loglines, "READINGS", 10)
    log = parse(f"block.{i:03}.img.ffn [1, 2]" for i in range(1000))
    assert (log.readings, log.cut) == (10, "reading stopped after 10 ranges")
    monkeypatch.setattr(loglines, "FILE_BYTES", 20)
    assert sum(map(len, read_lines(path))) <= 20 + loglines.LINE_BYTES


numbers = st.one_of(st.floats().map(str), st.sampled_from(["inf", "-inf", "nan", "1e999", "0", "-0.0", "65504"]))
tags = st.sampled_from([f"[{tag}]" for tag in ("IMG_IN", "NORMED", "MOD", "MODULATED", "ATTN", "FFN", "FINAL")])
names = st.sampled_from(["block.07.img.out", "norm_out", "temb", "step.999999999.cond.block.00099.txt.mid", "img_in"])
lines = st.one_of(
    st.text(max_size=60),
    st.builds(
        "{0}{1} [{2}, {3}]{4}".format,
        st.sampled_from(["", "[BLOCK 9999] ", "step 7 block 3 ", "txt ", "block 0099999 "]),
        st.one_of(tags, names),
        numbers,
        numbers,
        st.text(max_size=5),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines, max_size=30))
def test_whatever_a_log_holds_it_is_diagnosed(content):
    log = parse(content)
    result = diagnose(log).to_json()
    assert log.lines == len(content)
    assert {one["confidence"] for one in result["causes"]} <= {"likely", "possible"}
    assert bool(result["sources"]) == bool(result["first_divergence"])
