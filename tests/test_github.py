"""Runs for GitHub Actions: the annotation as the runner reads it, and the step summary."""

import re

import pytest
import sample_run

from parity.reporters import formats, github
from parity.runfolder import from_json

SMALL = {"blocks": 2, "dtypes": ("float32",)}


def make(kind, **options):
    return from_json(getattr(sample_run, kind)(**SMALL | options))


def parse(line):
    """What the runner makes of a workflow command; None for any other line."""
    found = re.fullmatch(r"::(\w+)(?: ([^:]*))?::(.*)", line)
    if found is None:
        return None
    properties = dict(pair.split("=", 1) for pair in (found[2] or "").split(",") if pair)

    def decode(value, codes):
        for written, meant in codes:
            value = value.replace(written, meant)
        return value

    data = (("%0D", "\r"), ("%0A", "\n"), ("%25", "%"))
    named = {key: decode(value, (("%3A", ":"), ("%2C", ","), *data)) for key, value in properties.items()}
    return found[1], named, decode(found[3], data)


@pytest.mark.parametrize("kind", ["diverged", "hostile", "nonfinite", "incomplete"])
def test_a_run_that_is_not_at_parity_is_one_error(kind):
    lines = github.annotation(make(kind)).splitlines()
    assert len(lines) == 1
    level, properties, message = parse(lines[0])
    assert level == "error"
    assert set(properties) == {"title"}
    assert message


def test_the_error_is_at_the_first_divergence():
    run = make("diverged")
    row = next(row for row in run["cases"][0]["checkpoints"] if row["source"])
    row["worst"] = [[[0, 3, 2], 2.5, 1.5]]
    _, properties, message = parse(github.annotation(run))
    assert properties["title"] == "parity: diverges at block.00.img.attn (square.float32.isolated)"
    said = message.splitlines()
    assert said[0] == run["sentence"]
    assert said[1].startswith("First: block.00.img.attn: diverged, source; excess 240; error ")
    assert said[2] == "[0, 3, 2]: 2.5, truth 1.5"


def test_an_incomplete_run_says_what_is_missing():
    _, properties, message = parse(github.annotation(make("incomplete")))
    assert properties["title"] == "parity: incomplete"
    assert "square.float32.isolated: block.01.txt.mod: missing; the candidate did not produce it" in message
    assert message.splitlines()[-1] == "and 18 more"


def test_parity_is_a_notice():
    assert parse(github.annotation(make("clean")))[0] == "notice"


def test_a_command_stays_one_line_and_comes_back_as_it_was():
    title, message = "50 % off, at a:b", "100 %\nsecond, line: x"
    written = github.command("error", title, message)
    assert written == "::error title=50 %25 off%2C at a%3Ab::100 %25%0Asecond, line: x"
    assert parse(written) == ("error", {"title": title}, message)
    assert github.command("error", "a\r", "b\x1bc\r") == "::error title=a%0D::b\\x1bc\\r"


@pytest.mark.parametrize("planted", ["\n::error::forged", "\r\n::set-output name=x::y", "\u2028::error::z", "\x1b[31m"])
def test_text_from_elsewhere_makes_no_command_and_no_line(planted, monkeypatch, capsys):
    monkeypatch.delenv(github.SUMMARY_VARIABLE, raising=False)
    run = make("diverged")
    run["sentence"] += planted
    for case in run["cases"]:
        case["name"] += planted
        case["sources"] = [name + planted for name in case["sources"]]
        for row in case["checkpoints"]:
            row["name"] += planted
    formats.show(run, "github")
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if parse(line)]) == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028]", out)


def test_the_summary_goes_to_the_runners_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv(github.SUMMARY_VARIABLE, str(path))
    run = make("diverged")
    formats.show(run, "github")
    printed = capsys.readouterr()
    assert path.read_text() == "before\n" + github.summary(run)
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""


def test_the_summary_says_where_it_starts_and_what_was_not_compared():
    told = github.summary(make("diverged"))
    assert told.startswith("### Numerical parity: divergence\n")
    assert "First divergence, `square.float32.isolated`:" in told
    assert "`block.00.img.attn: diverged, source; excess 240;" in told
    assert "28 checkpoints could not be compared:" in github.summary(make("incomplete"))


def test_the_summary_opens_no_tag_and_no_code_span():
    told = github.summary(make("hostile"))
    outside = re.sub(r"`[^`\n]*`", "", told)
    assert "<" not in outside
    assert "`" not in outside


def test_without_a_runner_the_summary_is_on_stdout(monkeypatch, capsys):
    monkeypatch.delenv(github.SUMMARY_VARIABLE, raising=False)
    run = make("incomplete")
    formats.show(run, "github")
    printed = capsys.readouterr()
    assert printed.out == github.annotation(run) + "\n" + github.summary(run)
    assert printed.err == "no step summary: GITHUB_STEP_SUMMARY is not set; it is on stdout\n"


def test_a_summary_that_cannot_be_written_changes_no_verdict(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(github.SUMMARY_VARIABLE, str(tmp_path / "no" / "where.md"))
    formats.show(make("clean"), "github")
    printed = capsys.readouterr()
    assert "### Numerical parity: parity" in printed.out
    assert "No such file or directory; it is on stdout" in printed.err


def test_a_summary_stays_within_a_mebibyte(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    monkeypatch.setenv(github.SUMMARY_VARIABLE, str(path))
    run = make("diverged", cases=("square",))
    run["cases"] = [case | {"name": f"ä{i:04}"} for i in range(8000) for case in run["cases"][:1]]
    assert len(github.summary(run).encode()) > github.SUMMARY_BYTES
    assert github.append_summary(run) is None
    written = path.read_bytes()
    assert github.SUMMARY_BYTES - 500 < len(written) <= github.SUMMARY_BYTES
    assert written.decode().endswith("The run folder has all of it._\n")
    path.write_bytes(b"x" * (github.SUMMARY_BYTES - 20))
    assert "has 1,048,556 bytes already" in github.append_summary(run)
    assert path.stat().st_size == github.SUMMARY_BYTES - 20


def test_lines_are_left_out_whole():
    markdown = "äöü\n" * 100
    cut = github.fit(markdown, 350)
    assert len(cut.encode()) <= 350
    assert set(cut.splitlines()) - {"äöü", ""} == {github._CUT.strip()}
    assert github.fit(markdown, 20) is None


def test_every_format_but_the_table_is_a_function_of_the_run(capsys, monkeypatch):
    monkeypatch.delenv(github.SUMMARY_VARIABLE, raising=False)
    run = make("clean")
    for name in formats.WRITERS:
        formats.show(run, name)
        assert capsys.readouterr().out.startswith(formats.WRITERS[name](run).rstrip("\n"))
