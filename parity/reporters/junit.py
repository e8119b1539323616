"""A run as JUnit XML, for Jenkins, GitLab and whatever else reads it.

A test suite is an entry of the run (case, dtype, mode), a test case is a stage of it. A stage in
which something diverged is a ``failure`` of type ``divergence``; one in which nothing did, but
something could not be compared, is a ``failure`` of type ``incomplete``, not an ``error``, which some
readers do not count: what was not compared is never green. The elements, their order and their
attributes are what both usual schemas (Ant's and Jenkins') take.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree as ET

from parity.reporters import rows
from parity.reporters.rows import Case, Row, Run

# All that XML 1.0 has no way to write, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
LINES_SHOWN = 200
LONGEST = 1000


def render(run: Run) -> str:
    """The contents of ``parity.json`` as JUnit XML; the same text for the same run."""
    root = ET.Element("testsuites")
    took = _seconds(run)
    for number, case in enumerate(run["cases"]):
        root.append(_suite(run, case, number, took.get(number, {})))
    if not run["cases"]:
        root.append(_suite(run, _NOTHING, 0, {}))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


_NOTHING: Case = {"name": "run", "dtype": "none", "mode": "none", "verdict": "incomplete", "checkpoints": []}


def clean(text: object) -> str:
    """Text without the characters that XML 1.0 forbids."""
    return _FORBIDDEN.sub("", str(text))


def _suite(run: Run, case: Case, number: int, took: Mapping[str, float]) -> ET.Element:
    stages: dict[str, list[Row]] = {}
    for row in case["checkpoints"]:
        stages.setdefault(row["stage"], []).append(row)
    tests = [_stage(case, name, found, took.get(name, 0.0)) for name, found in stages.items()]
    if case["verdict"] != "parity" and not any(len(test) for test in tests):
        tests.append(_test(case, "verdict", 0.0))
        _say(tests[-1], case["verdict"], "nothing was compared", run["sentence"])
    red = sum(len(test) for test in tests)
    time = _TIME.match(str(run.get("started")))
    suite = ET.Element("testsuite")
    for key, value in {
        "name": rows.title(case), "id": number, "package": "parity", "hostname": "localhost",
        "timestamp": time[0] if time else "1970-01-01T00:00:00", "tests": len(tests),
        "failures": red, "errors": 0, "skipped": 0, "time": f"{sum(took.values()):.3f}",
    }.items():  # fmt: skip
        suite.set(key, clean(value))
    _properties(suite, run, case)
    suite.extend(tests)
    suspect = [row for row in case["checkpoints"] if row["verdict"] == "suspect"]
    ET.SubElement(suite, "system-out").text = clean("\n".join([run["sentence"], *map(rows.line, suspect)]))
    ET.SubElement(suite, "system-err")
    return suite


def _stage(case: Case, name: str, of_stage: list[Row], took: float) -> ET.Element:
    """One test: red where a checkpoint of the stage diverged or could not be compared."""
    test = _test(case, name, took)
    narrowed = {"checkpoints": of_stage}
    wrong, absent = rows.diverged(narrowed), rows.not_compared(narrowed)
    if wrong:
        said = f"{len(wrong)} of {len(of_stage)} checkpoints diverged: {rows.line(wrong[0])}"
        _say(test, "divergence", said, "\n".join(_details([*wrong, *absent])))
    elif absent:
        said = f"{len(absent)} of {len(of_stage)} checkpoints could not be compared: {rows.line(absent[0])}"
        _say(test, "incomplete", said, "\n".join(_details(absent)))
    return test


def _details(found: list[Row]) -> Iterator[str]:
    for row in found[:LINES_SHOWN]:
        yield rows.line(row)
        yield from (f"    {line}" for line in rows.worst_lines(row))
    if len(found) > LINES_SHOWN:
        yield f"and {len(found) - LINES_SHOWN} more"


def _test(case: Case, name: str, took: float) -> ET.Element:
    about = {"classname": rows.title(case), "name": rows.shown(name) or "-", "time": f"{took:.3f}"}
    return ET.Element("testcase", {key: clean(value) for key, value in about.items()})


def _say(test: ET.Element, what: str, message: str, text: str) -> None:
    ET.SubElement(test, "failure", {"type": what, "message": clean(message)}).text = clean(text)


def _properties(suite: ET.Element, run: Run, case: Case) -> None:
    about = {
        "verdict": case["verdict"],
        "component": case.get("component"),
        "weights": rows.weights_line(run),
        "weights.commit": (run.get("weights") or {}).get("commit"),
        "synthetic": str(bool((run.get("weights") or {}).get("synthetic"))).lower(),
        "command": run.get("command"),
        "suite": run.get("suite"),
        "run.seconds": run.get("seconds"),
        **_flat("environment", run.get("environment") or {}),
        **_flat("thresholds", run.get("thresholds") or {}),
    }
    holder = ET.SubElement(suite, "properties")
    for key, value in about.items():
        if value is not None:
            text = clean(value)
            pair = {"name": clean(rows.shown(key)), "value": text[:LONGEST]}
            ET.SubElement(holder, "property", pair)


def _flat(prefix: str, value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}"
        found |= _flat(name, item) if isinstance(item, Mapping) else {name: item}
    return found


def _seconds(run: Run) -> dict[int, dict[str, float]]:
    """Entry -> stage -> seconds. The modes of a unit run in one pass, whose time they share."""
    units = Counter((case["name"], case["dtype"]) for case in run["cases"])
    took = (run.get("resources") or {}).get("stages") or {}
    return {
        number: {stage: seconds / units[case["name"], case["dtype"]] for stage, seconds in found.items()}
        for number, case in enumerate(run["cases"])
        if (found := took.get(f"{case['name']}.{case['dtype']}"))
    }
