"""Suites are read strictly: whatever is wrong in one is said, with what is known."""

import pytest

from parity import suite
from parity.errors import UsageError

GOOD = """
title = "t"
weights = "synthetic:tiny"
detail = "block"
draws = 2
[[case]]
name = "one"
images = [[64, 64]]
text_tokens = [3]
timestep = 0.5
seed = 0
dtypes = ["float32", "bfloat16"]
modes = ["isolated"]
"""


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return suite.load(str(path))


def test_a_suite_is_read(tmp_path):
    found = read(tmp_path, GOOD)
    assert (found.name, found.cases[0].detail, found.cases[0].draws) == ("mine", "block", 2)
    assert found.cases[0].case.shapes == [(1, 4, 4)]
    assert found.cases[0].modes == ("isolated",)


def test_the_default_suite_covers_what_it_promises():
    found = suite.load("default")
    assert {d for p in found.cases for d in p.dtypes} == {"float32", "bfloat16"}
    assert all(p.modes == suite.MODES for p in found.cases)
    shapes = [p.case.shapes[0] for p in found.cases]
    assert any(h == w for _, h, w in shapes)
    assert any(h != w for _, h, w in shapes)
    assert any(len(set(p.case.text_tokens)) > 1 for p in found.cases)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "t"', 'titel = "t"', "unknown key 'titel', missing key 'title'"),
        ("draws = 2", "draws = 0", "a floor needs at least one"),
        ("draws = 2", 'draws = "two"', "draws is 'two', expected int"),
        ('detail = "block"', 'detail = "all"', "no detail all; known: kinds, block, full"),
        ('"float32", "bfloat16"', '"fp8"', "case 'one': no dtype fp8; known: float32, bfloat16, float16"),
        ('["isolated"]', '["alone"]', "no mode alone"),
        ("[[64, 64]]", "[[64, 60]]", "not a multiple of 16"),
        ("[[64, 64]]", "[64, 64]", r"images is \[64, 64\], expected a list of \[int, int\]"),
        ("seed = 0", "", "missing key 'seed'"),
        ('name = "one"', 'name = "../one"', "a name is of letters, digits"),
        ("seed = 0", "seed = -1", "seed is -1, expected 0 or more"),
        ('["float32", "bfloat16"]', "[]", "dtypes must be there and differ: none"),
        ('["isolated"]', '["isolated", "isolated"]', "modes must be there and differ: isolated, isolated"),
        ("title", "= title", "not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_two_cases_of_one_name(tmp_path):
    with pytest.raises(UsageError, match="must be there and differ: one, one"):
        read(tmp_path, GOOD + GOOD[GOOD.index("[[case]]") :])


def test_an_unknown_suite_lists_the_known_ones():
    with pytest.raises(UsageError, match="no suite 'defualt'; known: all, default, edit"):
        suite.load("defualt")


def test_narrowing():
    whole = suite.load("default")
    one = whole.narrowed(["square"], ["bfloat16"], "kinds")
    assert [(p.case.name, p.dtypes) for p in one.cases] == [("square", ("bfloat16",))]
    assert {p.detail for p in one.cases} == {"kinds"}
    assert whole.narrowed() == whole
    with pytest.raises(UsageError, match="no case sqare; known: square, landscape, batch"):
        whole.narrowed(["sqare"])


def test_a_suite_includes_others_at_their_own_detail(tmp_path):
    (tmp_path / "one.toml").write_text(GOOD)
    both = f"""
title = "both"
weights = "synthetic:tiny"
detail = "full"
draws = 3
include = ["{tmp_path / "one.toml"}"]
[[case]]
component = "transformer"
name = "two"
images = [[32, 32]]
text_tokens = [3]
timestep = 1
seed = 1
dtypes = ["float32"]
modes = ["accumulated"]
"""
    found = read(tmp_path, both)
    assert [(p.case.name, p.detail, p.draws) for p in found.cases] == [("one", "block", 2), ("two", "full", 3)]
    assert found.cases[1].case.timestep == 1.0
    assert found.folders == ("transformer",)
    with pytest.raises(UsageError, match="includes itself"):
        read(tmp_path, both.replace("one.toml", "mine.toml"))
    with pytest.raises(UsageError, match="no suite 'nothing'"):
        read(tmp_path, both.replace(str(tmp_path / "one.toml"), "nothing"))
    with pytest.raises(UsageError, match="no component brain; known: transformer, text"):
        read(tmp_path, both.replace('"transformer"\nname', '"brain"\nname'))
    with pytest.raises(UsageError, match="case is no list"):
        read(tmp_path, both.replace("[[case]]", "[case]"))


def test_chosen_steps_of_pipelines_are_looked_into():
    whole = suite.load("pipeline")
    chosen = whole.narrowed(["unguided"], inside=[-1, 0, 0]).cases
    assert [planned.case.inside for planned in chosen] == [(0, 1)]
    assert whole.narrowed(["unguided"]).cases[0].case.inside == ()
    with pytest.raises(UsageError, match=r"inside \(9,\) is not within the 2 steps"):
        whole.narrowed(["unguided"], inside=[9])
    with pytest.raises(UsageError, match="suite 'text' has no pipeline here to look inside of"):
        suite.load("text").narrowed(inside=[0])
