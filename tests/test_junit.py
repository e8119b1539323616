"""Runs as JUnit XML: read back as a CI server reads it."""

import re
from xml.etree import ElementTree as ET

import pytest
import sample_run

from parity.reporters import junit
from parity.runfolder import from_json

SMALL = {"blocks": 2, "dtypes": ("float32",)}
WORST = [[[0, 3, 2], "nan", 1.5], [[0, 0, 1], 2.0, 1.0]]
# Children in order, and attributes, of the schemas that Ant's and Jenkins' readers go by.
CHILDREN = {
    "testsuites": r"(testsuite )*",
    "testsuite": r"properties (testcase )*system-out system-err ",
    "properties": r"(property )*",
    "testcase": r"((error|failure) )?",
}
ATTRIBUTES = {
    "testsuites": set(),
    "testsuite": {"name", "id", "package", "hostname", "timestamp", "tests", "failures", "errors", "skipped", "time"},
    "property": {"name", "value"},
    "testcase": {"classname", "name", "time"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
}


def read(run):
    return ET.fromstring(junit.render(run))


def make(kind, **options):
    return from_json(getattr(sample_run, kind)(**SMALL | options))


def faults(root):
    """What breaks the schema."""
    for element in root.iter():
        order = "".join(f"{child.tag} " for child in element)
        if not re.fullmatch(CHILDREN.get(element.tag, ""), order):
            yield f"{element.tag}: {order}"
        if set(element.attrib) != ATTRIBUTES.get(element.tag, set()):
            yield f"{element.tag}: {sorted(element.attrib)}"
    for suite in root:
        tests = suite.findall("testcase")
        for key, found in (
            ("tests", tests),
            ("failures", suite.findall("*/failure")),
            ("errors", suite.findall("*/error")),
        ):
            if int(suite.get(key)) != len(found):
                yield f"{key} {suite.get(key)}"
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp")):
            yield f"timestamp {suite.get('timestamp')}"
        if len({(test.get("classname"), test.get("name")) for test in tests}) < len(tests):
            yield "a test twice"


@pytest.mark.parametrize("kind", ["clean", "diverged", "incomplete", "nonfinite", "hostile", "several"])
def test_what_is_written_keeps_to_the_schema(kind):
    run = from_json(sample_run.several()) if kind == "several" else make(kind)
    assert list(faults(read(run))) == []


def test_the_check_of_the_schema_finds_what_breaks_it():
    root = read(make("diverged"))
    root[0].set("failures", "0")
    root[0][1].append(ET.Element("system-out"))
    assert len(list(faults(root))) == 2


def test_a_suite_is_an_entry_and_a_test_is_a_stage():
    root = read(make("clean"))
    assert [suite.get("name") for suite in root] == ["square.float32.isolated", "square.float32.accumulated"]
    assert [test.get("name") for test in root[0].iter("testcase")] == ["embed", "block.00", "block.01", "head"]
    assert not list(root.iter("failure")) + list(root.iter("error"))


def test_a_divergence_is_a_failure_that_names_its_sources_first():
    run = make("diverged")
    [row] = [row for row in run["cases"][0]["checkpoints"] if row["name"] == "block.00.img.attn"]
    row["worst"] = from_json(WORST)
    failure = read(run)[0].find("testcase[@name='block.00']/failure")
    lines = failure.text.splitlines()
    assert failure.get("type") == "divergence"
    assert "block.00.img.attn: diverged, source; excess 240; error" in failure.get("message")
    assert lines[:3] == [
        lines[0],
        "    [0, 3, 2]: nan, truth 1.5",
        "    [0, 0, 1]: 2, truth 1",
    ]
    assert "shape 1×256×64" in lines[0]
    before = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == "block.00.img.mod")
    before.update(verdict="diverged", propagated=True)
    lines = read(run)[0].find("testcase[@name='block.00']/failure").text.splitlines()
    places = ["source" if ", source" in line else "propagated" for line in lines if "diverged" in line]
    assert places == sorted(places, reverse=True)


def test_what_was_not_compared_is_never_green():
    root = read(make("incomplete"))
    red = {test.get("name"): test[0] for test in root[0].iter("testcase") if len(test)}
    assert set(red) == {"block.00", "block.01", "head"}
    assert {(one.tag, one.get("type")) for one in red.values()} == {("failure", "incomplete")}
    assert "uncertain" in red["block.00"].get("message")
    assert "block.01.txt.mod: missing" in red["block.01"].text
    assert "norm_out: skipped" in red["head"].text


def test_a_stage_with_both_is_one_failure_that_lists_both():
    run = make("diverged")
    row = next(row for row in run["cases"][0]["checkpoints"] if row["name"] == "block.01.img.mod")
    row.update(verdict="missing", reason="the candidate did not produce it")
    [failure] = read(run)[0].find("testcase[@name='block.01']")
    assert failure.get("type") == "divergence"
    assert "block.01.img.mod: missing" in failure.text


@pytest.mark.parametrize("change", [{"cases": []}, {"checkpoints": []}])
def test_nothing_compared_is_a_failure(change):
    run = make("incomplete", cases=("square",)) | {key: value for key, value in change.items() if key == "cases"}
    for case in run["cases"]:
        case.update(change)
    root = read(run)
    assert list(faults(root)) == []
    assert len(root) > 0
    assert all(len(suite.findall("*/failure[@type='incomplete']")) == 1 for suite in root)


def test_a_suspect_is_green_and_told():
    run = make("incomplete")
    suite = read(run)[0]
    assert suite.find("testcase[@name='embed']").find("*") is None
    assert "temb: suspect; excess 4.2" in suite.find("system-out").text


def test_properties_say_where_it_was_run_and_on_what():
    found = {one.get("name"): one.get("value") for one in read(make("clean"))[0].find("properties")}
    assert found["weights"] == "synthetic weights (tiny): random numbers, calibrated"
    assert found["synthetic"] == "true"
    assert found["environment.reference.torch"] == "2.13.0"
    assert found["thresholds.match"] == "3.0"
    assert found["run.seconds"] == "81.4"


def test_modes_share_the_time_of_their_unit():
    run = make("clean")
    run["resources"]["stages"] = {"square.float32": {"embed": 1.0, "block.00": 4.0, "block.01": 4.0, "head": 1.0}}
    root = read(run)
    assert [suite.get("time") for suite in root] == ["5.000", "5.000"]
    assert root[0].find("testcase[@name='block.00']").get("time") == "2.000"


def test_characters_that_xml_forbids_are_removed_and_names_escaped():
    run = make("hostile")
    run["sentence"] += "\x00\x0b\ud800\ufffe ok\n"
    written = junit.render(run)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", written)
    assert "<img" not in written
    root = ET.fromstring(written)
    assert "<img src=x onerror=alert(1)>" in root[0].find("testcase").get("name")
    assert root[0].find("system-out").text.splitlines()[0].endswith(" ok")


def test_the_same_run_gives_the_same_bytes():
    assert junit.render(make("diverged")) == junit.render(make("diverged"))


def test_a_stage_of_very_many_is_cut():
    run = make("diverged")
    case = run["cases"][0]
    row = next(row for row in case["checkpoints"] if row["verdict"] == "diverged")
    case["checkpoints"] += [row | {"name": f"{row['name']}.{i}"} for i in range(1000)]
    text = read(run)[0].find("testcase[@name='block.00']/failure").text
    assert len(text.splitlines()) == junit.LINES_SHOWN + 1
    assert re.fullmatch(r"and \d{3} more", text.splitlines()[-1])
