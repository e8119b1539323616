"""What docs/ci.md and docs/pytest.md tell people to write is something that works."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from parity import errors
from parity.cli import app
from parity.commands.run import run
from parity.reporters import formats
from parity.testing import _TAKES, ParityAssertionError

DOCS = Path(__file__).resolve().parent.parent / "docs"
CI, PYTEST = ((DOCS / name).read_text() for name in ("ci.md", "pytest.md"))
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", CI, re.DOTALL | re.MULTILINE)


def commands(text):
    """Command lines of the toolkit in a piece of documentation."""
    for line in re.findall(r"(?:run: |- )?(parity (?:run|report|compare|doctor|trace) ?[^\n`|>]*)", text):
        yield line.strip()


@pytest.mark.parametrize("line", sorted({line for block in BLOCKS for line in commands(block)}))
def test_command_lines_are_taken(line):
    words = shlex.split(line)[1:]
    command, _, unused = app.parse_known_args(words)[:3]
    assert command is not None
    assert unused == []


def test_there_are_command_lines_to_check():
    assert len({line for block in BLOCKS for line in commands(block)}) >= 5


def test_workflows_are_yaml_with_the_steps_that_they_need():
    workflow, step, gitlab = map(yaml.safe_load, BLOCKS)
    steps = workflow["jobs"]["parity"]["steps"]
    assert [one["uses"].partition("@")[0] for one in steps if "uses" in one] == [
        "actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact",
    ]  # fmt: skip
    # What comes after the verdict runs in spite of it.
    names = [one.get("name", one.get("uses")) for one in steps]
    after = steps[names.index("parity") + 1 :]
    assert len(after) == 3
    assert all("cancelled" in one["if"] for one in after)
    assert step[0]["run"].startswith("parity compare")
    assert gitlab["parity"]["artifacts"]["reports"]["junit"] == "parity-junit.xml"


def test_exit_codes_are_those_of_the_toolkit():
    told = {int(code): text for code, text in re.findall(r"^\| (\d) \| (\w+)", CI, re.MULTILINE)}
    words = {
        errors.EXIT_PARITY: "parity", errors.EXIT_DIVERGENCE: "divergence", errors.EXIT_USAGE: "usage",
        errors.EXIT_INTERNAL: "internal", errors.EXIT_PRECONDITION: "a", errors.EXIT_INCOMPLETE: "incomplete",
    }  # fmt: skip
    assert told == words


def test_every_format_is_described():
    table = CI.partition("| `--format` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {*formats.WRITERS, "table"}
    assert run.__annotations__["format"] in ("Format", formats.Format)


def test_arguments_in_examples_are_arguments():
    known = {key for keys in _TAKES.values() for key in keys}
    for call in re.findall(r"assert_parity\(([^\n]*)\)", PYTEST):
        assert {key for key in re.findall(r"\b(\w+)=", call) if key != "layers"} <= known


def test_the_example_runs_and_goes_red_when_its_port_is_wrong():
    example = re.search(r"^```python\n(.*?)^```", PYTEST, re.DOTALL | re.MULTILINE)[1]
    right: dict = {}
    exec(compile(example, "pytest.md", "exec"), right)
    right["test_norm"]()
    wrong: dict = {}
    assert example.count('1e-6)\n    return {"rms": from_mlx') == 1
    broken = example.replace('1e-6)\n    return {"rms": from_mlx', '1e-2)\n    return {"rms": from_mlx')
    exec(compile(broken, "pytest.md", "exec"), wrong)
    with pytest.raises(ParityAssertionError, match="divergence at rms"):
        wrong["test_norm"]()
