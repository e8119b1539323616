"""``parity trace import`` and ``show``: any dump becomes a trace that is judged like the dump itself."""

import json

import numpy as np
import pytest
from golden_unit import CASE, GRAPH, arrays, dump, log, printed, write_golden

from parity.cli import call
from parity.compare import compare
from parity.errors import EXIT_USAGE
from parity.golden import read_golden
from parity.imports import open_candidate
from parity.sketch import Spec, sketch
from parity.trace import write_sketches
from parity.tracefile import read_trace


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return write_golden(tmp_path_factory.mktemp("golden") / "g")


def noisy(seed=0, off=1e-7):
    rng = np.random.default_rng(seed)
    return {n: x + (off * x.std() * rng.standard_normal(x.shape)).astype(np.float32) for n, x in arrays().items()}


def imported(*arguments):
    return call(["trace", "import", *map(str, arguments)])


def rows_of(golden, candidate):
    return compare(read_golden(golden), open_candidate([candidate]))["cases"][0]["checkpoints"]


def test_a_trace_of_a_dump_is_judged_like_the_dump(golden, tmp_path, capsys):
    made = noisy() | {"block.01.img.attn": arrays(seed=9)["block.01.img.attn"]}
    path = dump(tmp_path / "d.safetensors", made)
    assert imported(path, "--golden", golden, "--out", tmp_path / "t") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "t")
    found = read_trace(tmp_path / "t")
    assert tuple(found.stats) == GRAPH.expected  # as they are made, not as the file has them
    assert found.about["case_hash"] == CASE
    assert found.about["imported"]["kind"] == "tensors"
    np.testing.assert_array_equal(found.sketches["temb"], sketch(made["temb"]))
    for one, other in zip(rows_of(golden, path), rows_of(golden, tmp_path / "t"), strict=True):
        for key in ("verdict", "rel_rmse", "excess", "uncertainty", "shape", "cosine"):
            assert one[key] == other[key], (one["name"], key)
    assert compare(read_golden(golden), open_candidate([tmp_path / "t"]))["verdict"] == "divergence"
    # It can be imported again, and shows the same.
    assert imported(tmp_path / "t", "--out", tmp_path / "u") == 0
    assert read_trace(tmp_path / "u").stats == found.stats
    assert read_trace(tmp_path / "u").about["imported"] == found.about["imported"]


def test_without_a_golden_trace_it_claims_nothing_but_its_case(golden, tmp_path):
    assert imported(dump(tmp_path / "d.safetensors", noisy()), "--out", tmp_path / "t") == 0
    about = read_trace(tmp_path / "t").about
    assert (about["dtype"], about["mode"], about["case_hash"]) == ("", "", CASE)
    assert compare(read_golden(golden), open_candidate([tmp_path / "t"]))["verdict"] == "parity"


def test_a_trace_of_a_log_keeps_ranges_and_resolutions(golden, tmp_path):
    path = log(tmp_path / "a.log", arrays(), **{"block.01.img.attn": (-999.0, 999.0), "block.02.img.ffn": (np.nan, 1)})
    path.write_text(path.read_text() + "[BLOCK 2] [MOD] scale=[-1.5, 2.5]\n")
    assert imported(path, "--out", tmp_path / "t") == 0
    one, other = open_candidate([path]), open_candidate([tmp_path / "t"])
    assert set(one.names) == set(other.names)
    for name in one.names:
        # NaN is equal to itself here.
        assert str(one.read(name)) == str(other.read(name)), name
    keys = [(row["name"], row["verdict"]) for row in rows_of(golden, path)]
    assert keys == [(row["name"], row["verdict"]) for row in rows_of(golden, tmp_path / "t")]


def test_a_trace_of_sketches_keeps_them_and_no_figures(golden, tmp_path):
    path = tmp_path / "s.safetensors"
    shapes = json.dumps({n: list(x.shape) for n, x in noisy().items()})
    write_sketches(path, {n: sketch(x) for n, x in noisy().items()}, Spec(), **{"parity.shapes": shapes})
    assert imported(path, "--golden", golden, "--out", tmp_path / "t") == 0
    reading = open_candidate([tmp_path / "t"]).read("img_in")
    assert (reading.stats, reading.shape) == (None, (1, 24, 32))
    assert compare(read_golden(golden), open_candidate([tmp_path / "t"]))["verdict"] == "parity"


@pytest.mark.parametrize(
    ("case", "more", "said"),
    [
        ("0" * 64, ["--golden", "GOLDEN"], "of case 000000000000…"),
        (CASE, ["--pass", "3"], "--pass 3 chooses a pass of a log"),
    ],
)
def test_what_does_not_belong_together_is_refused(golden, tmp_path, capsys, case, more, said):
    path = dump(tmp_path / "d.safetensors", arrays(), case)
    more = [str(golden) if one == "GOLDEN" else one for one in more]
    code = imported(path, *more, "--out", tmp_path / "t")
    assert (code, said in capsys.readouterr().err) == (EXIT_USAGE, True)
    assert not (tmp_path / "t").exists()


def test_nothing_is_overwritten_and_a_golden_trace_is_no_candidate(golden, tmp_path, capsys):
    path = dump(tmp_path / "d.safetensors", arrays())
    assert imported(path, "--out", tmp_path / "t") == 0
    assert imported(path, "--out", tmp_path / "t") == EXIT_USAGE
    assert imported(path, "--out", tmp_path / "t", "--force") == 0
    (tmp_path / "t" / "mine.txt").write_text("x")
    assert imported(path, "--out", tmp_path / "t", "--force") == EXIT_USAGE
    assert imported(golden, "--out", tmp_path / "v") == EXIT_USAGE
    assert "a golden trace, the reference's own" in capsys.readouterr().err


def test_show_says_what_a_trace_is(golden, tmp_path, capsys):
    assert call(["trace", "show", str(golden)]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    flat = " ".join(out.split())
    assert "g: golden trace of the reference case square, float32, accumulated, transformer, synthetic weights" in flat
    assert "84 checkpoints" in flat
    assert "noise floor: median 1e-06, largest 1e-06" in flat
    assert "image stream, smallest and largest value" in flat
    made = arrays()["block.02.img.attn"]
    assert call(["trace", "show", str(golden), "--name", "block.02.img.attn", "--format", "json"]) == 0
    found = printed(capsys)
    assert (found["side"], found["dtype"], len(found["checkpoints"])) == ("golden", "float32", 1)
    row = found["checkpoints"][0]
    assert (row["max"], row["floor"]) == pytest.approx((float(made.max()), 1e-6))
    assert row["shape"] == [1, 24, 32]


def test_show_chooses_names_and_suggests_some(golden, capsys):
    assert call(["trace", "show", str(golden), "--name", "block.01.txt.*", "--name", "temb"]) == 0
    out = capsys.readouterr().out
    assert out.count("block.01.txt.") == 12
    assert call(["trace", "show", str(golden), "--name", "block.1.txt.attn"]) == EXIT_USAGE
    assert "nearest: block.01.txt.attn" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["golden", "tensors", "log"])
@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_trace_is_drawn(golden, tmp_path, capsys, kind, ending):
    if kind == "log":
        assert imported(log(tmp_path / "a.log", arrays()), "--out", tmp_path / "t") == 0
    elif kind == "tensors":
        assert imported(dump(tmp_path / "d.safetensors", arrays()), "--out", tmp_path / "t") == 0
    trace, path = golden if kind == "golden" else tmp_path / "t", tmp_path / f"p{ending}"
    assert call(["trace", "show", str(trace), "--plot", str(path)]) == 0
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")
    if ending == ".svg":
        assert (b"Golden trace" if kind == "golden" else b"Activation ranges") in raw
    assert call(["trace", "show", str(trace), "--plot", str(path)]) == EXIT_USAGE
    assert call(["trace", "show", str(trace), "--plot", str(path), "--force"]) == 0
    assert path.read_bytes() == raw


@pytest.mark.parametrize("where", ["nowhere", "empty", "plot"])
def test_show_refuses_in_one_line(golden, tmp_path, capsys, where):
    (tmp_path / "empty").mkdir()
    options = [str(golden), "--plot", str(tmp_path / "x.pdf")] if where == "plot" else [str(tmp_path / where)]
    assert call(["trace", "show", *options]) == EXIT_USAGE
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_names_from_files_obey_no_terminal(tmp_path, capsys):
    made = {"block.00.img.\x1b[31mred": np.ones((2, 2)), "img_in": np.full((1, 2), np.nan), "plain": np.ones(3)}
    assert imported(dump(tmp_path / "d.safetensors", made), "--out", tmp_path / "t") == 0
    assert call(["trace", "show", str(tmp_path / "t")]) == 0
    assert call(["trace", "show", str(tmp_path / "t"), "--name", "*"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "not finite: 1 of them, img_in first" in out


def test_diagnose_takes_no_missing_figure_for_a_value(golden, tmp_path, capsys):
    path = tmp_path / "s.safetensors"
    write_sketches(path, {n: sketch(x) for n, x in arrays().items()}, Spec())
    assert imported(path, "--out", tmp_path / "s") == 0
    assert imported(log(tmp_path / "a.log", arrays()), "--out", tmp_path / "l") == 0
    assert call(["diagnose", str(tmp_path / "s")]) == EXIT_USAGE
    assert "sketches have no ranges" in capsys.readouterr().err
    assert call(["diagnose", str(tmp_path / "l"), "--reference", str(golden)]) == EXIT_USAGE
    assert "read from ranges, which are no statistics to compare" in capsys.readouterr().err
    assert call(["diagnose", str(tmp_path / "l")]) in (0, 1)
