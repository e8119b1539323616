"""Logs as candidates and against range tables: resolution, passes, lines that were cut off, nan and inf."""

import math
import time

import numpy as np
import pytest
from golden_unit import LAYERS, arrays, dump, log, write_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.cli import call
from parity.compare import compare
from parity.errors import EXIT_DIVERGENCE, EXIT_INCOMPLETE, EXIT_PARITY, EXIT_USAGE, UsageError
from parity.golden import read_golden
from parity.imports import open_candidate
from parity.imports.loglines import parse, resolution
from parity.imports.units import last_of
from parity.rangetable import RangeTable

FORMS = """\
INFO loading weights [0, 1]
[IMG_IN] [-14.20, 15.31]
12:01:03 [STEP 0] [BLOCK 0] [NORMED] [-8.1, 8.5]
[BLOCK 0] [MOD] scale=[-12.00, 9.50]
[BLOCK 0] [MODULATED] [-66, 54]
[BLOCK 0] [ATTN] [-88.00, 118.00]
  50%|#####     | 1/2 [00:01<00:01]
[BLOCK 0] [FFN] [-2.55e4, 2.56e4]
[FINAL] [-4.10, 4.20]
"""


def written(tmp_path, text, name="port.log"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("number", "half"),
    [("-14.20", 0.005), ("15.31", 0.005), ("15", 0.5), ("15.", 0.5), (".5", 0.05), ("1.2e3", 50), ("1.25E-3", 5e-6),
     ("2e4", 5e3), ("-2.5e+06", 5e4), ("nan", 0), ("-inf", 0), ("Infinity", 0), ("1e99999", math.inf)],
)  # fmt: skip
def test_half_a_unit_of_the_last_digit(number, half):
    assert resolution(number) == pytest.approx(half)


def test_the_seven_forms_among_other_output_are_one_candidate(tmp_path):
    found = open_candidate([written(tmp_path, FORMS)])
    assert (found.kind, found.about["lines"], found.about["passes"]) == ("ranges", 9, 1)
    assert len(found.names) == 7
    ends = {"min": -88.0, "max": 118.0, "nan": 0, "inf": 0}
    reading = found.read("block.00.img.attn")
    assert (reading.stats, reading.resolution) == (ends, pytest.approx(0.005))
    assert (reading.shape, reading.sketch, reading.array) == (None, None, None)
    assert found.read("block.00.img.ffn").resolution == pytest.approx(50)
    scales = found.read("block.00.img.mod").stats
    assert (scales["low"], scales["high"], scales["only"]) == (-12.0, 9.5, ["scale1", "scale2"])
    assert "min" not in scales
    assert any("scales alone" in note for note in found.notes)


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("block.07.img.attn [NaN, NaN]", (math.nan, math.nan)),
        ("block.07.img.attn: [-inf, Infinity]", (-math.inf, math.inf)),
        ("step.03.cond.block.07.img.attn = [-8.8E1, +1.18e2]", (-88.0, 118.0)),
        ("[BLK 7] [ATTN] [array(-88, dtype=float32), array(118.5, dtype=bfloat16)]", (-88.0, 118.5)),
        ("layer=7 [attn] [ -88 , 118 ]", (-88.0, 118.0)),
    ],
)
def test_numbers_as_languages_print_them(line, ends):
    log_ = parse([line + "\n"])
    assert (log_.readings, log_.truncated) == (1, 0)
    np.testing.assert_array_equal(log_.passes[0].ranges["block.07.img.attn"], ends)


def test_what_is_not_finite_or_was_cut_off_is_counted_and_told(tmp_path, capsys):
    text = FORMS + "[IMG_IN] [-14.20, 15\n[BLOCK 1] [ATTN] [NaN, NaN]\n[BLOCK 1] [FFN] [-25\n"
    found = open_candidate([written(tmp_path, text)], passage="1")
    assert found.read("block.01.img.attn").stats["nan"] == 2
    assert found.read("block.01.img.attn").resolution == 0
    assert "2 lines were cut off and are not counted" in found.notes
    assert call(["ranges", "check", str(tmp_path / "port.log")]) == EXIT_DIVERGENCE
    out = " ".join(capsys.readouterr().out.split())
    assert "port.log: values that are not finite at block.01.img.attn" in out
    assert "2 lines were cut off and are not counted" in out


def test_a_pass_is_chosen_by_its_label(tmp_path):
    lines = [f"[STEP {step}] [IMG_IN] [-{step}, {step}]" for step in (5, 6, 7)]
    path = written(tmp_path, "\n".join(lines))
    assert open_candidate([path]).read("img_in").stats["max"] == 5
    assert open_candidate([path], passage="7").read("img_in").stats["max"] == 7
    assert "3 passes" in open_candidate([path]).notes[0]
    with pytest.raises(UsageError, match="no pass 8; there are 5, 6, 7"):
        open_candidate([path], passage="8")


@pytest.mark.parametrize(
    "line",
    ["[ATTN] [" + "1" * 8000, "[ATTN] [1.1e" + "1" * 8000 + ", 2]", "[ATTN] [1" + " " * 8000, "block" + "-" * 8000],
)
def test_a_long_line_costs_no_more_than_its_length(line):
    clock = time.process_time()
    for _ in range(20):
        parse([line])
    assert time.process_time() - clock < 1.0


@pytest.mark.parametrize("text", ["", "hello\n", "[ATTN] [-1, \n", "[IMG_IN]\n"])
def test_a_log_without_a_range_is_an_error_that_shows_the_forms(tmp_path, text, capsys):
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=r"port\.log: no ranges found in .*\[BLOCK 07\] \[ATTN\]"):
        open_candidate([path])
    assert call(["ranges", "check", str(path)]) == EXIT_USAGE


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=60), st.sampled_from([
    "[IMG_IN] [-1, 2]", "[ATTN] [nan, inf]", "[BLOCK 99999] [FFN] [-1e999, 1e-999]", "step 7/20", "--- block 3 ---",
    "block.00.img.mod [1, 0]", "[MOD] scale=[-1, 1]", "[FINAL] [0, 0]", "[FFN] [-1", "\x1b[31m[ATTN] [1,2]\x1b[0m",
])), max_size=12))  # fmt: skip
def test_any_text_is_a_candidate_or_an_error_of_one_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("fuzz") / "x.log"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    said = ""
    try:
        found = open_candidate([path])
        for name in found.names:
            assert found.read(name).resolution >= 0
    except UsageError as error:
        said = error.message
    assert said == "" or said.isprintable()


GOOD = {row.resolved(59): (row.low, row.high) for row in RangeTable.load("qwen-image").rows if not row.chunks}


def lines_of(ranges):
    return "".join(f"{name} [{low}, {high}]\n" for name, (low, high) in ranges.items())


def checked(capsys, path, *options):
    code = call(["ranges", "check", str(path), *options])
    return code, " ".join(capsys.readouterr().out.split())


def test_a_log_is_judged_row_by_row_with_what_stays_open(tmp_path, capsys):
    between = {f"block.{i:02d}.img.out": (-2e6, 2e6) for i in range(1, 59)}
    whole = dict(sorted((GOOD | between).items(), key=lambda item: item[0] == "final"))
    code, out = checked(capsys, written(tmp_path, lines_of(whole)))
    assert (code, "19 of 21 rows" in out or "20 of 21 rows" in out) == (EXIT_PARITY, True), out
    assert "0 absent, 0 outside" in out
    code, out = checked(capsys, written(tmp_path, lines_of(whole | {"img_in": (-15.0, 60.0)})))
    assert (code, "After img_in: outside in pass 0" in out) == (EXIT_DIVERGENCE, True)
    code, out = checked(capsys, written(tmp_path, lines_of(whole | {"block.00.img.ffn": (-65.0, 66.0)})))
    assert (code, "img_mlp_out: absent in pass 0" in out) == (EXIT_DIVERGENCE, True)


def test_the_last_block_is_the_models_only_where_the_pass_is_whole(tmp_path, capsys):
    stats = {"block.last.img.out": {"min": -2e6, "max": 2e6}}
    (tmp_path / "t.toml").write_text(RangeTable.record(stats, source="here").dump())
    table = ("--table", str(tmp_path / "t.toml"))
    lines = "block.00.img.out [-1, 1]\nblock.01.img.out [-2e6, 2e6]\n"
    code, out = checked(capsys, written(tmp_path, lines), *table)
    assert code == EXIT_INCOMPLETE
    assert "which block is the last is not known" in out
    assert "block.last.img.out" in out.partition("not checked:")[2]
    code, out = checked(capsys, written(tmp_path, lines + "final [-1, 1]\n"), *table)
    assert (code, "is not known" in out) == (EXIT_PARITY, False)
    made = {"block.00.img.out": np.ones((1, 2)), "block.01.img.out": np.full((1, 2), 2e6), "final": np.ones((1, 2))}
    assert checked(capsys, dump(tmp_path / "d.safetensors", made), *table)[0] == EXIT_PARITY
    assert last_of(["block.00.img.out", "block.01.img.out", "final"]) == 1
    assert last_of(["block.00.img.out", "block.02.img.out", "final"]) is None
    assert last_of(["final"]) is None


def test_scales_alone_are_outside_or_inside_and_never_absent(tmp_path, capsys):
    row = "scale/shift block.00.img.mod [-30, 20]"
    for text, verdict in (("[-12, 9.5]", "inside"), ("[-120, 9.5]", "outside"), ("[-0.1, 0.1]", "not checked")):
        _, out = checked(capsys, written(tmp_path, f"[IMG_IN] [-15, 16]\n[BLOCK 0] [MOD] scale={text}\n"))
        assert f"{row} {verdict}" in out
        assert "img_mod_params (code) block.00.img.mod [-132, 112] not checked" in out


def test_all_passes_are_checked_or_the_one_that_is_chosen(tmp_path, capsys):
    path = written(tmp_path, "[STEP 0] [IMG_IN] [-15, 16]\n[STEP 1] [IMG_IN] [-15, 99]\n")
    assert checked(capsys, path)[0] == EXIT_DIVERGENCE
    assert checked(capsys, path, "--pass", "0")[0] == EXIT_PARITY
    assert checked(capsys, path, "--pass", "1")[0] == EXIT_DIVERGENCE
    assert checked(capsys, path, "--pass", "2")[0] == EXIT_USAGE
    nothing = written(tmp_path, "block.07.img.q [-1, 1]\n")
    assert checked(capsys, nothing)[0] == EXIT_INCOMPLETE


@pytest.mark.parametrize("kind", ["safetensors", "npz", "folder"])
def test_dumps_are_judged_by_a_table_as_well(tmp_path, capsys, kind):
    rng = np.random.default_rng(0)
    made = {"img_in": (rng.uniform(-15, 16, (1, 64, 32))).astype(np.float32)}
    made["img_in"].reshape(-1)[:2] = -15, 16
    made["block.03.img.attn"] = rng.standard_normal((1, 4, 4)).astype(np.float32)
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / ("d.npz" if kind == "npz" else "d.safetensors")
    np.savez(path, **made) if kind == "npz" else dump(path, made)
    path = path.parent if kind == "folder" else path
    code, out = checked(capsys, path)
    assert (code, "1 of 21 rows checked: 1 inside" in out) == (EXIT_PARITY, True)
    assert "1 of 2 checkpoints have a documented range" in out
    assert checked(capsys, path, "--pass", "3")[0] == EXIT_USAGE
    # What no range is documented for must be finite all the same.
    made["block.03.img.attn"][0, 0, 0] = np.inf
    np.savez(path, **made) if kind == "npz" else dump(tmp_path / "f" / "d.safetensors", made)
    code, out = checked(capsys, path)
    assert (code, "not finite at block.03.img.attn" in out) == (EXIT_DIVERGENCE, True)


def test_a_log_against_a_golden_trace_diverges_or_says_nothing(tmp_path):
    golden, made = read_golden(write_golden(tmp_path / "g")), arrays()
    run = compare(golden, open_candidate([log(tmp_path / "a.log", made)]))
    assert run["verdict"] == "incomplete"
    assert run["counts"]["diverged"] == 0
    assert run["counts"]["uncertain"] == 2 + 3 * LAYERS
    wrong = log(tmp_path / "b.log", made, **{"block.01.img.attn": (-999.0, 999.0)})
    run = compare(golden, open_candidate([wrong]))
    assert run["verdict"] == "divergence"
    assert run["counts"]["diverged"] == 1
