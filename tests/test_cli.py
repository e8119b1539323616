"""What the command line prints: help, version, tables that fit, Markdown that holds, exit codes."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sample_run
from rich.cells import cell_len
from rich.console import Console

import parity
from parity import cli, errors
from parity.cli import call
from parity.errors import ParityError, WeightsError
from parity.reporters import formats, text
from parity.verdict import exit_code

WIDTH = 80
COMMANDS = (
    "bench", "case", "compare", "diagnose", "doctor", "generate", "plot", "ranges", "report", "run", "synth", "trace",
    "weights",
)  # fmt: skip
BELOW = {
    "case": ("export",),
    "trace": ("import", "record", "show"),
    "ranges": ("check", "record", "show"),
    "bench": (
        "capture", "clean", "faults", "forward", "golden", "instrument", "pictures", "report", "sensitivity", "stream",
    ),
    "weights": ("check", "convert", "quantize", "scan"),
}  # fmt: skip
# Commands of a group that have a file of their own.
OWN_FILE = {
    "bench_faults", "bench_golden", "bench_pictures", "bench_report", "bench_stream", "quantize", "scan",
    "trace_import", "trace_record", "trace_show",
}  # fmt: skip
# Parameters whose word is one of Python's own.
SPELLED = {"passage": "pass"}
PATHS = [(), *((c,) for c in COMMANDS), *((c, one) for c, ones in BELOW.items() for one in ones)]
KINDS = ("clean", "diverged", "incomplete")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A terminal of 80 columns without colours, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def said(capsys, *argv):
    assert call(list(argv)) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    return streams.out


def too_wide(printed):
    return [line for line in printed.splitlines() if cell_len(line) > WIDTH]


def listed(help_page):
    """Command -> help, from the panel of commands, continuation lines joined."""
    found = {}
    for line in help_page[help_page.index("Commands") :].splitlines():
        cells = re.match(r"│ (\S+|)\s+(.*?)\s*│$", line)
        if cells and cells[1].startswith("-"):
            break
        if cells and cells[1]:
            found[name := cells[1]] = cells[2]
        elif cells:
            found[name] += " " + cells[2].strip()
    return found


def test_help_lists_every_command_with_what_it_does_and_the_exit_codes(capsys):
    page = said(capsys, "--help")
    commands = listed(page)
    assert sorted(commands) == sorted(COMMANDS)
    assert all(len(line) > 20 and line.endswith(".") for line in commands.values())
    codes = " ".join(page[page.index("Exit codes:") :].split())
    assert codes == (
        "Exit codes: 0 parity, 1 divergence, 2 usage, 3 internal error, 4 a precondition is missing, 5 incomplete."
    )


@pytest.mark.parametrize("group", BELOW)
def test_help_of_a_group_lists_its_commands(capsys, group):
    commands = listed(said(capsys, group, "--help"))
    assert tuple(sorted(commands)) == BELOW[group]
    assert all(len(line) > 20 and line.endswith((".", "?")) for line in commands.values())


def test_every_command_file_is_on_the_command_line():
    folder = Path(cli.__file__).parent / "commands"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "weights_option"}
    assert files == set(COMMANDS) - {"trace"} | OWN_FILE


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_fits_and_is_the_same_each_time(capsys, path):
    page = said(capsys, *path, "--help")
    assert page.startswith("Usage: parity" + "".join(f" {word}" for word in path))
    assert too_wide(page) == []
    assert said(capsys, *path, "--help") == page


@pytest.mark.parametrize("path", [p for p in PATHS if p and p[-1] not in BELOW], ids=" ".join)
def test_help_has_a_word_for_every_parameter(capsys, path):
    page = said(capsys, *path, "--help")
    own = next((file for file in (path[-1], "_".join(path)) if file in OWN_FILE), path[0])
    module = __import__(f"parity.commands.{own}", fromlist=["x"])
    command = getattr(module, path[-1], None) or getattr(module, path[-1] + "_")
    for name in (SPELLED.get(name, name) for name in inspect.signature(command).parameters):
        shown = re.search(
            rf"^│ (?:\*\s+)?\s*(?:--{name.replace('_', '-')}|{name.upper()})\b(?: [A-Z]+(?:\.\.\.)?)?\s+(\S.*?)│$",
            page,
            re.M,
        )
        assert shown, name
        assert not shown[1].startswith("["), f"{name} has no help but its choices"


def test_commands_are_listed_in_alphabetical_order(capsys):
    for path in ((), *((group,) for group in BELOW)):
        names = list(listed(said(capsys, *path, "--help")))
        assert names == sorted(names)


MAIN = "from parity.cli import main; main()"


def test_version(capsys):
    assert said(capsys, "--version").strip() == parity.__version__


def test_the_process_prints_the_same_and_leaves_with_the_code():
    def process(seed, *argv):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", MAIN, *argv], env=environment, capture_output=True, timeout=60)
        return done.returncode, done.stdout

    assert process("1", "--help") == process("2", "--help")
    assert process("0", "--help")[0] == 0
    assert process("0", "frobnicate") == (2, b"")


# Tables.


def table(run, capsys):
    text.print_table(run)
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_fits_into_80_columns(capsys, kind):
    run = getattr(sample_run, kind)(blocks=20, cases=("square", "a-rather-long-name-of-a-case", "edit"))
    run["sentence"] += " " + "word " * 40
    printed = table(run, capsys)
    assert too_wide(printed) == []
    assert len(printed.splitlines()) > 12
    assert printed == table(run, capsys)


def test_the_check_itself_sees_what_is_too_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert too_wide(table(sample_run.diverged(blocks=20), capsys))
    assert too_wide("宽" * 41)
    assert not too_wide("宽" * 40)


def test_a_table_has_a_line_an_entry_with_its_figures(capsys):
    run = sample_run.clean(blocks=2)
    lines = [line.split() for line in table(run, capsys).splitlines()]
    for case in run["cases"]:
        worst = max(row["excess"] for row in case["checkpoints"])
        compared = f"{case['counts']['compared']}/{case['counts']['expected']}"
        [line] = [line for line in lines if line[:3] == ["square", case["dtype"], case["mode"]]]
        assert (line[3], line[6], line[7]) == (compared, f"{worst:.2f}", "parity")


@pytest.mark.parametrize(
    ("kind", "word"), [("clean", "parity"), ("diverged", "divergence"), ("incomplete", "incomplete")]
)
def test_a_table_ends_with_the_sentence_and_says_where_it_starts(capsys, kind, word):
    run = getattr(sample_run, kind)(blocks=4, dtypes=("float32",))
    printed = table(run, capsys)
    assert " ".join(printed.split()).endswith(run["sentence"])
    assert printed.count(word) >= len(run["cases"])
    assert ("starts at block." in printed) == (kind == "diverged")
    assert printed.startswith("Synthetic weights (tiny)")


def test_what_compared_nothing_has_dashes_for_figures(capsys):
    run = sample_run.clean(blocks=2, dtypes=("float32",))
    for row in run["cases"][0]["checkpoints"]:
        row["excess"] = None
    found = text.figures(run["cases"][0])
    assert [found[key] for key in ("floor", "median", "worst")] == ["–"] * 3
    assert table(run, capsys).count("–") == 3


def test_markup_in_names_is_text(capsys):
    run = sample_run.clean(blocks=2, dtypes=("float32",), cases=("[red]x[/red]",))
    assert "[red]x[/red]" in table(run, capsys)


def test_names_of_one_kind_are_gathered():
    names = [
        "img_in",
        *(f"block.{b:02d}.{s}.mod" for b in (3, 7, 12) for s in ("img", "txt")),
        "block.05.img.attn",
        "final",
    ]
    assert text.gather(names) == [
        "img_in", "block.03.img.mod (and in 2 more blocks)", "block.03.txt.mod (and in 2 more blocks)",
        "block.05.img.attn", "final",
    ]  # fmt: skip
    assert text.gather(["block.00.img.q", "block.01.img.q"]) == ["block.00.img.q (and in 1 more block)"]
    assert text.gather([]) == []


def test_more_sources_than_are_shown_are_counted():
    kinds = [f"block.00.img.{kind}" for kind in "abcdefghi"]
    case = {"name": "one", "dtype": "float32", "mode": "isolated", "sources": kinds}
    [line] = text.source_lines([case, case | {"sources": []}])
    assert line == f"one float32 isolated: starts at {', '.join(kinds[:6])} and 3 more"
    [line] = text.source_lines([case | {"sources": kinds[:6]}])
    assert line.endswith(kinds[5])


# Markdown.


def cells_of(line):
    """Cells of a row of a Markdown table, as a renderer splits them."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_is_a_table_of_the_figures(kind):
    run = getattr(sample_run, kind)(blocks=4)
    lines = text.markdown(run).splitlines()
    assert lines[0] == f"**{run['sentence']}**"
    rows = [cells_of(line) for line in lines if line.startswith("|")]
    assert rows[0] == list(text.figures(run["cases"][0]))
    assert rows[1] == ["---"] * 8
    assert rows[2:] == [list(text.figures(case).values()) for case in run["cases"]]
    assert sum(line.startswith("- `") for line in lines) == (len(run["cases"]) if kind == "diverged" else 0)


def test_a_bar_in_a_name_does_not_open_a_cell():
    run = sample_run.clean(blocks=2, dtypes=("float32",), cases=("a|b | c",))
    rows = [cells_of(line) for line in text.markdown(run).splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {8}
    assert rows[2][0] == "a|b | c"


# Exit codes.


@pytest.mark.parametrize(("verdict", "code"), [("parity", 0), ("divergence", 1), ("incomplete", 5)])
def test_each_verdict_has_its_exit_code(verdict, code):
    assert exit_code(verdict) == code


def test_a_verdict_that_is_not_known_has_no_exit_code():
    with pytest.raises(KeyError):
        exit_code("fine")


def every_error(kind=ParityError):
    return [kind, *(error for below in kind.__subclasses__() for error in every_error(below))]


def test_the_exit_codes_are_those_of_the_drawn_tree():
    drawn = dict(re.findall(r"(\w+Error) +(\d)", errors.__doc__))
    found = {error.__name__: str(error.exit_code) for error in every_error() if error.__module__ == "parity.errors"}
    assert found == drawn
    assert len({errors.EXIT_PARITY, errors.EXIT_DIVERGENCE, errors.EXIT_USAGE, errors.EXIT_INTERNAL,
                errors.EXIT_PRECONDITION, errors.EXIT_INCOMPLETE}) == 6  # fmt: skip


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
def test_every_error_of_the_toolkit_becomes_its_exit_code(capsys, monkeypatch, error):
    def fail(*_):
        raise error("what [bold]is[/] wrong", ["missing: [red]a[/]"])

    monkeypatch.setattr(cli, "app", fail)
    assert call(["run"]) == error.exit_code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "error: what [bold]is[/] wrong\n  missing: [red]a[/]\n"


@pytest.mark.parametrize(
    ("details", "printed"),
    [((), 0), (("a: what is wrong",), 0), (("something else",), 1), (("a: what is wrong", "b: as well"), 2)],
)
def test_one_detail_that_the_message_has_is_not_read_twice(capsys, monkeypatch, details, printed):
    def fail(*_):
        raise WeightsError("x: a: what is wrong", details)

    monkeypatch.setattr(cli, "app", fail)
    assert call(["run"]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 1 + printed


def test_what_was_interrupted_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert call(["run"]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert call(["weights", "convert"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_the_toolkit_itself_is_not_taken_for_a_divergence(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda _: {}["no such key"])
    assert call(["run"]) == errors.EXIT_INTERNAL


@pytest.mark.parametrize(
    ("format", "first"),
    [("table", "Synthetic"), ("md", "**"), ("json", '{"schema"'), ("junit", "<?xml"), ("github", "::notice")],
)
def test_each_format_is_what_stdout_carries(capsys, format, first):
    formats.show(sample_run.clean(blocks=2, dtypes=("float32",)), format, Path("report.html"))
    printed = capsys.readouterr().out
    assert printed.startswith(first)
    assert ("report.html" in printed.splitlines()[-1]) == (format == "table")


def test_progress_goes_to_its_console_and_is_gone_afterwards(capsys):
    with text.progress(Console(stderr=True)) as tell:
        tell("square.float32", "block.00", 1, 4)
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "square.float32" not in streams.err
