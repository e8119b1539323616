"""The pytest plugin as a user's project has it: tests that run tests."""

import json
import re
import subprocess
import sys

import pytest

from parity.pytest_plugin import DTYPES, Watch, folder_name

pytest_plugins = ["pytester"]

PORTS = """
import numpy as np
import pytest
from parity.testing import assert_parity

X = {"x": np.random.default_rng(0).standard_normal((4, 8))}

def right(s):
    hidden = np.tanh(s["x"] @ s["x"].T)
    return {"hidden": hidden, "out": hidden @ s["x"]}

def wrong(s):
    given = right(s)
    given["out"][2, 3] *= np.asarray(1.5, given["out"].dtype)
    return given

def partial(s):
    return {"hidden": right(s)["hidden"]}
"""


@pytest.fixture
def project(pytester):
    """A project with ports, in which warnings are errors."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(ports=PORTS)

    def make(**files):
        pytester.makepyfile(**{name: f"from ports import *\n{text}" for name, text in files.items()})
        return pytester

    return make


MIXED = """
def test_right(parity):
    assert parity(right, right, inputs=X)["verdict"] == "parity"

def test_wrong(parity):
    parity(wrong, right, inputs=X)

def test_partial():
    assert_parity(partial, right, inputs=X)

def test_caught(parity):
    with pytest.raises(AssertionError):
        parity(wrong, right, inputs=X)
"""


def test_a_divergence_and_an_incomplete_run_fail(project):
    result = project(test_it=MIXED).runpytest()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "E **ParityAssertionError: divergence at out (functions.float32.accumulated)",
            "E *checkpoint *verdict *floor *error *excess",
            "E *hidden *match * parent",
            "E *out *diverged *<- first divergence",
            "E *worst elements (index: candidate, truth)",
            "E *[[]2, 3[]]: *, truth *",
            "E **ParityAssertionError: incomplete: 1 missing",
            "E *out: missing, the candidate did not give it",
        ]
    )


def test_the_traceback_ends_in_the_test(project):
    result = project(test_it=MIXED).runpytest()
    shown = [line for line in result.outlines if re.match(r"\S+\.py:\d+: ", line)]
    assert len(shown) == 2
    assert all(line.startswith("test_it.py:") for line in shown)


def test_the_summary_names_what_failed_and_nothing_that_was_caught(project):
    result = project(test_it=MIXED).runpytest()
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if "= numerical parity =" in line)
    assert lines[start + 1 : start + 4] == [
        "test_it.py::test_wrong: divergence at out (functions.float32.accumulated)",
        "test_it.py::test_partial: incomplete: 1 missing",
        "4 assertions: 1 parity, 2 divergence, 1 incomplete",
    ]


def test_there_is_no_summary_where_all_is_well(project):
    result = project(test_it="def test_right(parity):\n    parity(right, right, inputs=X)").runpytest()
    result.stdout.no_fnmatch_line("*numerical parity*")


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_report_folder_has_a_run_for_each_assertion(project, workers):
    pytester = project(test_it=MIXED, test_more=MIXED)
    result = pytester.runpytest_subprocess("--parity-report", "out", *workers)
    result.assert_outcomes(passed=4, failed=4)
    folders = sorted(path.name for path in (pytester.path / "out").iterdir())
    tests = ("caught", "partial", "right", "wrong")
    assert folders == [f"test_{module}.py-test_{name}" for module in ("it", "more") for name in tests]
    for folder in (pytester.path / "out").iterdir():
        assert sorted(path.name for path in folder.iterdir()) == ["parity.json", "report.html"]
    run = json.loads((pytester.path / "out" / "test_it.py-test_wrong" / "parity.json").read_text())
    assert run["first_divergence"]["checkpoint"] == "out"
    page = pytester.path / "out" / "test_it.py-test_wrong" / "report.html"
    assert f"    {page}" in result.outlines
    assert f"8 assertions: 2 parity, 4 divergence, 2 incomplete; pages in {pytester.path / 'out'}" in result.outlines


def test_nothing_is_overwritten(project):
    twice = "def test_two(parity):\n    for _ in range(2):\n        parity(right, right, inputs=X)"
    pytester = project(test_it=twice)
    for _ in range(2):
        pytester.runpytest("--parity-report", "out").assert_outcomes(passed=1)
    names = sorted(path.name for path in (pytester.path / "out").iterdir())
    assert names == ["test_it.py-test_two", *(f"test_it.py-test_two.{i}" for i in (2, 3, 4))]


HOSTILE = """
@pytest.mark.parametrize("name", ["../../up", "a/b", "a:b", "A", "a", "\\x1b[31m", "n\\nl", "é" * 300, "..", "CON", ""])
def test_named(parity, name):
    parity(partial, right, inputs=X)
"""


def test_node_ids_become_file_names_below_the_folder(project):
    pytester = project(test_it=HOSTILE)
    result = pytester.runpytest("--parity-report", "deep/out")
    result.assert_outcomes(failed=11)
    names = [path.name for path in (pytester.path / "deep" / "out").iterdir()]
    assert len({name.lower() for name in names}) == 11
    assert all(re.fullmatch(r"[\w][\w.-]{0,110}", name, re.ASCII) for name in names)
    assert {path.name for path in pytester.path.iterdir()} >= {"deep"}
    assert not (pytester.path / "up").exists()
    assert not any("\x1b[31m]" in line for line in result.outlines if line.startswith("test_it.py::"))


@pytest.mark.parametrize("nodeid", ["", "::", "....", "/", "x" * 5000, "\ud800", "a\x00b"])
def test_any_text_gives_a_file_name(nodeid):
    assert re.fullmatch(r"\w[\w.-]{0,109}", folder_name(nodeid), re.ASCII)


def test_other_tests_have_other_names():
    ids = ["a/b.py::t", "a-b.py::t", "a/b.py-t", "a/B.py::t", "a/b.py::t[x]", "a/b.py::t-x", "a/b.py::t[x-]"]
    assert len({folder_name(one).lower() for one in ids}) == len(ids)


def test_workers_that_share_a_folder_get_one_each(tmp_path):
    watches = [Watch("test_it.py::test_a", tmp_path) for _ in range(3)]
    assert len({watch.folder() for watch in watches}) == 3


DTYPE = """
def test_default(parity):
    assert parity(right, right, inputs=X)["cases"][0]["dtype"] == "bfloat16"

def test_own(parity):
    assert parity(right, right, inputs=X, dtype="float16")["cases"][0]["dtype"] == "float16"

def test_direct():
    assert assert_parity(right, right, inputs=X)["cases"][0]["dtype"] == "float32"
"""


def test_the_dtype_of_the_command_line_is_the_fixtures_default(project):
    pytester = project(test_it=DTYPE)
    pytester.runpytest("--parity-dtype", "bfloat16").assert_outcomes(passed=3)
    result = pytester.runpytest("--parity-dtype", "float8")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_dtypes_are_those_of_runs():
    from parity.components.base import DTYPES as KNOWN

    assert tuple(KNOWN) == DTYPES


def test_an_assertion_in_a_fixture_is_told_too(project):
    text = (
        "@pytest.fixture\ndef checked(parity):\n    parity(wrong, right, inputs=X)\n\ndef test_it(checked):\n    pass"
    )
    result = project(test_it=text).runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*= numerical parity =*", "test_it.py::test_it: divergence at out *"])


def test_a_candidate_that_hangs_is_the_timeouts(project):
    text = "import time\n\ndef test_it(parity):\n    parity(lambda s: time.sleep(30), right, inputs=X)"
    result = project(test_it=text).runpytest_subprocess("--timeout", "1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Timeout*"])
    result.stdout.no_fnmatch_line("*incomplete*")


def test_a_skip_within_a_candidate_is_a_skip(project):
    text = "def test_it(parity):\n    parity(lambda s: pytest.skip('no device'), right, inputs=X)"
    project(test_it=text).runpytest().assert_outcomes(skipped=1)


def test_it_can_be_turned_off(project):
    pytester = project(test_it="def test_it():\n    assert_parity(partial, right, inputs=X)")
    result = pytester.runpytest_subprocess("-p", "no:parity")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E **ParityAssertionError: incomplete: 1 missing"])
    result.stdout.no_fnmatch_line("*numerical parity*")
    assert pytester.runpytest_subprocess("-p", "no:parity", "--parity-report", "x").ret == pytest.ExitCode.USAGE_ERROR


def test_a_folder_that_is_a_file_is_a_usage_error(project):
    pytester = project(test_it=MIXED)
    (pytester.path / "taken").write_text("mine")
    result = pytester.runpytest("--parity-report", "taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (pytester.path / "taken").read_text() == "mine"


def test_a_mistake_in_the_call_is_one_line(project):
    result = project(test_it="def test_it(parity):\n    parity(right, right)").runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E **UsageError: assert_parity of functions needs inputs*"])
    assert not [line for line in result.outlines if "testing.py" in line]


def test_loading_the_plugin_imports_nothing_but_itself():
    code = (
        "import sys, pytest; before = set(sys.modules); import parity.pytest_plugin, parity.testing;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["parity", "parity.errors", "parity.pytest_plugin", "parity.testing"]
