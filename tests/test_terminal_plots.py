"""Plots in a terminal: 80 columns, readable without colour and in ASCII, and true to the verdicts."""

import io
import re

import pytest
import sample_run
from rich.console import Console

from parity.cli import call
from parity.plotstyle import DARK, LIGHT
from parity.reporters.sparks import BARS, axis, columns_of, plain, scale_of, spark, spark_line
from parity.reporters.terminal import lines_of
from parity.reporters.terminal_runs import lines_of_runs
from parity.runfolder import write_json

BLOCKS = {"blocks": 60, "dtypes": ("bfloat16",)}


def one(kind="clean", **options):
    run = getattr(sample_run, kind)(**BLOCKS | options)
    return run | {"cases": run["cases"][1:]}


def text(run, kinds=(), colours=LIGHT):
    return [line.plain for line in lines_of(run, kinds, colours)]


def cells(lines, name):
    """The letters of a kind in the first heatmap."""
    return next(line for line in lines if line.startswith(name + " "))[17:].rstrip()


@pytest.mark.parametrize("component", ["transformer", "text", "vision", "vae", "scheduler", "pipeline"])
@pytest.mark.parametrize("kind", ["clean", "diverged", "incomplete", "hostile"])
def test_no_line_is_longer_than_80(component, kind):
    blocks = {"blocks": 60} if component == "transformer" else {"blocks": 4}
    run = one(kind, component=component, **blocks)
    for kinds in ((), ("ranges", "errors")):
        lines = text(run, kinds)
        assert lines
        assert max(map(len, lines)) <= 80
        assert "\u202e" not in "".join(lines)
    assert max(len(line.plain) for line in lines_of_runs({"a" * 24: run, "b" * 24: run}, (), DARK)) <= 80


def test_letters_say_the_verdicts():
    """GIVEN a run that is clean, diverged, incomplete or overflows, WHEN shown, THEN its letters say so."""
    clean, wrong = text(one()), text(one("diverged"))
    assert set(cells(clean, "img.attn")) <= set("·:")
    assert cells(wrong, "img.attn")[7:] == "!" * 53
    assert set(cells(wrong, "img.out")) & set("dDsS")
    assert cells(text(one("incomplete")), "txt.attn")[1] == "/"
    assert cells(text(one("incomplete")), "img.ffn")[0] == "?"
    assert cells(text(one("nonfinite")), "img.out")[59] == "x"
    assert any(line.startswith("source: block.07.img.attn, 240 floors") for line in wrong)
    assert not any(line.startswith("source") for line in clean)


def test_more_blocks_than_columns_show_the_worst_of_each_column():
    run = one("clean", blocks=130, level="kinds")
    row = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == "block.101.img.attn")
    row.update(excess=40.0, verdict="diverged")
    lines = text(run)
    assert "3 a column" in " ".join(lines)
    letters = cells(lines, "img.attn")
    assert len(letters) == 44
    assert [i for i, letter in enumerate(letters) if letter == "D"] == [33]


def test_two_runs_show_what_got_better_and_worse():
    runs = {"old": one("diverged"), "new": one()}
    better = [line.plain for line in lines_of_runs(runs, (), LIGHT)]
    worse = [line.plain for line in lines_of_runs(dict(reversed(runs.items())), (), LIGHT)]
    assert cells(better, "img.attn")[7:] == "=" * 53
    assert cells(worse, "img.attn")[7:] == "!" * 53
    assert set(cells(better, "img.attn")[:7]) == {"·"}
    assert "“new” against “old”" in " ".join(better)
    assert [line.split()[0] for line in better if line.startswith("  ")][-4:] == ["old", "new"] * 2


def test_of_many_entries_those_without_news_have_a_line():
    clean = sample_run.clean(blocks=3, cases=("square", "wide", "tall"), dtypes=("float32",))
    wrong = sample_run.diverged(blocks=3, cases=("wide",), dtypes=("float32",))
    run = clean | {"cases": [*clean["cases"][:2], *wrong["cases"], *clean["cases"][4:]]}
    lines = [line.plain for line in lines_of(run, (), LIGHT, brief=True)]
    assert [line.split(" · ")[1] for line in lines if "parity, excess ≤" in line] == ["square"] * 2 + ["tall"] * 2
    assert sum(line.startswith("transformer · wide") and "parity" not in line for line in lines) == 2
    assert not any("parity, excess" in line.plain for line in lines_of(run, (), LIGHT))
    both = [line.plain for line in lines_of_runs({"old": clean, "new": run}, (), LIGHT, brief=True)]
    assert [line.split(" · ")[1] for line in both if line.endswith("no change")] == ["square"] * 2 + ["tall"] * 2
    assert max(map(len, lines + both)) <= 80


def test_kinds_without_an_error_have_no_sparkline():
    run = one("diverged", blocks=4)
    for row in run["cases"][0]["checkpoints"]:
        if row["name"].endswith("img.attn"):
            row["rel_rmse"] = None
    assert len([line for line in text(run, ("errors",)) if line.startswith("img.attn ")]) == 0
    assert len([line for line in text(one("diverged", blocks=4), ("errors",)) if line.startswith("img.attn ")]) == 1


def test_a_sparkline_rises_with_its_values():
    letters = spark([1e-6, 1e-4, 1e-2, None, float("inf"), 0.0], 1e-6, 1e-2)
    assert letters == f"{BARS[0]}{BARS[4]}{BARS[7]} x{BARS[0]}"
    low, high = scale_of([{0: 1.0, 1: 1.1}])
    assert high / low == pytest.approx(10)
    assert len(set(spark([1.0, 1.1], low, high))) == 1
    assert "none" in spark_line("x", {}, range(3), (0.1, 1.0)).plain


def test_columns_hold_every_index_once():
    bins = columns_of(range(5, 135), 60)
    assert [index for column in bins for index in column] == list(range(5, 135))
    assert len(bins) <= 60


def test_numbers_on_an_axis_are_whole():
    for count in (3, 8, 60, 4160):
        bins = columns_of(range(count), 63)
        firsts = {column[0] for column in bins}
        assert {int(number) for number in axis(bins).plain.split()} <= firsts
        assert len(axis(bins).plain) <= 80


def test_in_ascii_nothing_is_lost_but_the_looks():
    for line in lines_of(one("diverged", blocks=4), ("errors", "heatmap"), LIGHT):
        told = plain(line).plain
        assert told.isascii()
        assert "?" not in told.replace("? uncertain", "")
    assert plain(spark_line("x", {0: 1e-5, 1: 2.1e-3}, range(2), (1e-5, 1.0))).plain.endswith("_= 1e-5 ~ 2.1e-3")


def shown(run, monkeypatch, **environment):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    for line in lines_of(run, ("heatmap",), LIGHT):
        console.print(line, soft_wrap=True)
    return out.getvalue()


def test_no_color_is_respected(monkeypatch):
    run = one("diverged", blocks=4, level="kinds")
    coloured = shown(run, monkeypatch, TERM="xterm-256color")
    without = shown(run, monkeypatch, TERM="xterm-256color", NO_COLOR="1")
    colour = r"\x1b\[[\d;]*(?:3|4)8;"
    assert re.search(colour, coloured)
    assert not re.search(colour, without)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == re.sub(r"\x1b\[[\d;]*m", "", without)


@pytest.mark.parametrize("component", ["transformer", "pipeline", "vae"])
def test_rows_that_were_never_made_need_only_a_name_and_a_verdict(component):
    run = one(blocks=3, component=component)
    rows = run["cases"][0]["checkpoints"]
    bare = [{"name": row["name"], "verdict": "missing"} for row in rows]
    run["cases"][0]["checkpoints"] = rows[:5] + bare[5:]
    assert "missing" in " ".join(text(run)) or "/" in " ".join(text(run))
    both = list(lines_of_runs({"old": one(blocks=3, component=component), "new": run}, (), LIGHT))
    assert max(len(line.plain) for line in both) <= 80


def test_an_empty_run_has_nothing_to_show(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "parity.json", one(blocks=3) | {"cases": []})
    assert call(["plot", str(folder), "--terminal"]) == 2
    assert "this run: there is nothing of it to show" in capsys.readouterr().err


def test_the_command_prints_and_writes_nothing(tmp_path, capsys):
    run = sample_run.diverged(blocks=3, dtypes=("float32",), cases=("square", "wide"))
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "parity.json", run)
    assert call(["plot", str(folder), "--terminal", "--case", "wide", "--kind", "growth"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Synthetic weights")
    assert "transformer · wide · float32 · accumulated" in out
    assert "square" not in out
    assert "excess" not in out
    assert [path.name for path in folder.iterdir()] == ["parity.json"]
