"""What an author gets wrong, and what a hostile run folder says: one line each, no traceback, nothing imported."""

import json
import sys

import family_toy
import pytest

from parity import plain_weights
from parity.cli import call
from parity.errors import UsageError, WeightsError
from parity.listed import MOST_CHECKPOINTS, Listing, build, listed
from parity.names import qwen_image_transformer
from parity.runfolder import read_run

CASE, PORT, SUITE = family_toy.CASE, family_toy.PORT, family_toy.SUITE
ENTRY = '"toy_case:ToyCase"'


@pytest.fixture
def say(tmp_path, capsys, monkeypatch):
    """Exit code and the lines on stderr of a run of the author's folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*more, weights="weights", **texts):
        family_toy.forget()
        suite = family_toy.write(tmp_path / "author", **texts)
        given = ["--weights", str(tmp_path / "author" / weights)] if weights else []
        argv = ["run", str(suite), *family_toy.OPTIONS, *given, "--jobs", "1", "--out", str(tmp_path / "run"), *more]
        code = call(argv)
        return code, capsys.readouterr().err.strip().splitlines()

    yield command
    family_toy.forget()


def changed(text, old, new):
    assert text.count(old) >= 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"suite": changed(SUITE, ENTRY, '"toy_nowhere:ToyCase"')}, "importing toy_nowhere raised ModuleNotFoundError"),
        ({"suite": changed(SUITE, ENTRY, '"toy_case:Other"')}, "module toy_case has no Other"),
        ({"suite": changed(SUITE, ENTRY, '"toy_case:np"')}, "'toy_case:np' is no subclass of parity.components.base"),
        ({"suite": changed(SUITE, ENTRY, '"toy_case:Listing"')}, "is no subclass of"),
        ({"suite": changed(SUITE, ENTRY, '"../toy_case:ToyCase"')}, "expected package.module:attribute"),
        ({"suite": changed(SUITE, ENTRY, '"toy"')}, "no component toy; known: transformer"),
        ({"suite": changed(SUITE, "rows = 12", "")}, "missing key 'rows'"),
        ({"suite": changed(SUITE, 'title = "toy"', 'title = "toy"\nranges = "none.toml"')}, "no range table"),
        ({"case": changed(CASE, 'str] = "toy"', 'str] = "vae"')}, "calls itself 'vae'; expected a word of its own"),
        ({"case": changed(CASE, '= (".",)', '= ("../..",)')}, "folders and files are tuples of relative paths"),
        ({"case": changed(CASE, "def describe", "def described")}, "lacks describe"),
        ({"case": changed(CASE, "import numpy as np", "import numpy as np\n1 / 0")}, "ZeroDivisionError"),
        ({"case": changed(CASE, "rows: int", "rows: int\n  x")}, "IndentationError"),
        ({"case": changed(CASE, "rows: int", "rows: int\n\n    def __post_init__(self): raise OSError('odd')")},
         "toy_case:ToyCase raised OSError: odd at toy_case.py:"),
        ({"case": changed(CASE, 'configs["."]["layers"]', 'configs["."]["depth"]')},
         "case 'one': ToyCase.graph raised KeyError: 'depth' at toy_case.py:"),
        ({"case": changed(CASE, '"up", hidden, level', '"up", "later", level')}, "parent 'later' is not listed"),
        ({"case": changed(CASE, "return graph.listed(level)", "return {'name': 'listed'}")}, "a listed graph has"),
        ({"case": changed(CASE, "return graph.listed(level)", "return 7")}, "ToyCase.graph describes no graph"),
        ({"case": changed(CASE, 'return {"ids": ids, "x": x}', "return {}")}, "ToyCase.inputs gave no arrays by name"),
        ({"case": changed(CASE, ".astype(DTYPES[dtype])", ".astype(np.float64)")},
         "input 'x' is float64, expected a numpy array of float32"),
        ({"case": changed(CASE, 'return {"ids": ids, "x": x}', "raise OSError('gone')")}, "raised OSError: gone at"),
        ({"case": changed(CASE, '{"batch": self.rows', '{"batch": object()')}, "describe gave no dictionary of JSON"),
        ({"theirs": changed(PORT, 'name = "toy-numpy"', "1 / 0")}, "'toy_theirs:Port': importing toy_theirs raised"),
        ({"mine": changed(PORT, 'name = "toy-numpy"', "def __init__(self):\n        [][0]")},
         "port 'toy_mine:Port': calling Port() raised IndexError"),
        ({"mine": changed(PORT, "class Port", "class Other")}, "module 'toy_mine' has no 'Port'"),
    ],
)  # fmt: skip
def test_an_authors_mistake_is_one_line(say, texts, said):
    code, lines = say(**texts)
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ")
    assert said in lines[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stored = load_file", "raise RuntimeError('no float64 here'); stored = load_file", "does not open"),
        (
            "act = np.tanh(up)",
            "act = np.tanh(up); 1 / 0",
            "stage layer.00: ZeroDivisionError: division by zero at toy_th",
        ),
        ('f"{stage}.act": act, ', "", "1 of the graph's 3 checkpoints are not given, the first is layer.00.act"),
        ("range(layers)))", "range(layers - 1)))", "has no stage layer.01, which the case's graph names"),
        ('after = {"hidden": out}', 'after = {"hidden": 3}', "hidden is int, expected a numpy array"),
        ('return ("default", "backwards")', "return 1 / 0", "precisions of float32: ZeroDivisionError"),
    ],
)
def test_a_reference_that_fails_ends_the_run_with_one_line(say, old, new, said):
    code, lines = say(theirs=changed(PORT, old, new))
    assert (code, len(lines)) == (4, 1), lines
    assert "reference toy-numpy" in lines[0]
    assert said in lines[0]


def test_a_candidate_that_fails_is_a_finding(say, tmp_path):
    code, _ = say(mine=changed(PORT, "act = np.tanh(up)", "raise RuntimeError('no tanh')"))
    assert code == 5
    assert read_run(tmp_path / "run")["counts"]["skipped"] == 2 * 6


def test_a_suite_without_weights_wants_them_from_the_command_line(say):
    code, lines = say(weights=None)
    assert (code, lines) == (2, ["error: suite 'toy' names no weights: give --weights DIR"])


def files(folder, **contents):
    folder.mkdir()
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({}, r"lacks \*.safetensors, config.json; found nothing"),
        ({"config__json": b"{}"}, r"lacks \*.safetensors; found config.json"),
        ({"config__json": b"{}", "pytorch_model__bin": b"x"}, "pickled weights are not read"),
        ({"config__json": b"{}", "model__safetensors": b""}, "empty file"),
        ({"config__json": b"{}", "model__safetensors": b"\xff" * 64}, "truncated or no safetensors file"),
        (
            {"config__json": b"{}", "a__safetensors": b"x", "b__safetensors": b"x"},
            "neither an index nor model.safetensors",
        ),
        ({"model__safetensors": b"x" * 9}, "lacks config.json"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, contents, said):
    with pytest.raises(WeightsError, match=said):
        plain_weights.inspect(files(tmp_path / "m", **contents), ".")


def test_other_places_that_are_no_model(tmp_path):
    good = family_toy.write_weights(tmp_path / "good")
    assert plain_weights.inspect(good, ".").checkpoint.parameters == 656
    with pytest.raises(WeightsError, match="is a file; name the folder"):
        plain_weights.inspect(good / "model.safetensors", ".")
    with pytest.raises(WeightsError, match="no such folder"):
        plain_weights.inspect(tmp_path / "gone", ".")
    with pytest.raises(WeightsError, match="no such folder"):
        plain_weights.inspect(good, "encoder")
    (good / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="no object"):
        plain_weights.inspect(good, ".")
    (good / "config.json").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (good / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(WeightsError, match="outside the model's folder"):
        plain_weights.inspect(good, ".")


def test_weights_that_are_not_finite_are_refused(say, tmp_path, monkeypatch):
    import numpy as np
    from safetensors.numpy import save_file

    def broken(folder, seed=0):
        folder.mkdir(exist_ok=True)
        save_file({"embed": np.full((2, 2), np.nan, np.float32)}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"layers": 2}')

    monkeypatch.setattr(family_toy, "write_weights", broken)
    code, lines = say()
    assert (code, len(lines)) == (4, 1)
    assert "embed: 4 NaN of 4 values" in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("package:no_such_package_at_all/model", "'no_such_package_at_all' that has them is not installed"),
        ("package:json/model", "has no folder 'model'"),
        ("package:json/../x", "expected package:NAME/FOLDER"),
        ("package:", "expected package:NAME/FOLDER"),
        ("package:a.b/x", "expected package:NAME/FOLDER"),
    ],
)
def test_weights_in_packages_that_are_not_there(say, text, said):
    code, lines = say("--weights", text, weights=None)
    assert code in (2, 4)
    assert len(lines) == 1
    assert said in lines[0]


GOOD = {"name": "listed", "checkpoints": [["a", "s", []], ["b", "t", ["a"]]], "expected": ["a", "b"], "exact": ["a"]}


def test_what_is_written_out_is_read_back():
    for graph in (build(GOOD), qwen_image_transformer(2, "block")):
        again = build(json.loads(json.dumps(listed(graph))))
        assert (again.parents, again.stage, again.expected, again.exact, again.pictures) == (
            graph.parents, graph.stage, graph.expected, graph.exact, graph.pictures,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoints": [["a", "s", ["b"]], ["b", "s", ["a"]]]}, "not made before it"),
        ({"checkpoints": [["a", "s", ["a"]]], "expected": ["a"]}, "not made before it"),
        ({"checkpoints": [["a", "s", ["x"]], ["b", "s", []]]}, "not made before it"),
        ({"checkpoints": [["a", "s", []], ["a", "s", []]]}, "listed twice"),
        ({"checkpoints": [["a", "s", []], ["b", "t", []], ["c", "s", []]]}, "stage s was over before it"),
        ({"checkpoints": []}, "no list of 1 to"),
        ({"checkpoints": [["a", "s", []]] * (MOST_CHECKPOINTS + 1)}, "no list of 1 to"),
        ({"checkpoints": [["a", "s", ["b"] * 257]]}, "is no .name, stage, .parents"),
        ({"checkpoints": {"a": []}}, "no list of 1 to"),
        ({"checkpoints": [["a", "s"]]}, "is no .name, stage"),
        ({"checkpoints": [["a" * 201, "s", []]]}, "is no .name, stage"),
        ({"checkpoints": [["../a", "s", []]]}, "is no .name, stage"),
        ({"checkpoints": [["a\x1b[2J", "s", []]]}, "is no .name, stage"),
        ({"checkpoints": [["nan", "s", []]]}, "is no .name, stage"),
        ({"checkpoints": [[1, "s", []]]}, "is no .name, stage"),
        ({"expected": ["a", "c"]}, "expected has 'c', which is no checkpoint"),
        ({"expected": ["b", "a"]}, "stand in the order"),
        ({"expected": ["a", "a"]}, "stand in the order"),
        ({"expected": []}, "nothing is expected"),
        ({"exact": ["z"]}, "exact has 'z'"),
        ({"exact": 3}, "exact is no list"),
        ({"pictures": [["a"]]}, "pictures has"),
        ({"more": 1}, "has the keys"),
    ],
)
def test_a_hostile_graph_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        build(GOOD | change)


def test_a_listing_says_what_is_wrong_with_it():
    graph = Listing()
    with pytest.raises(ValueError, match="no stage makes it"):
        graph.add("a")
    graph.stage("s")
    graph.add("a")
    with pytest.raises(ValueError, match="listed twice"):
        graph.add("a")
    with pytest.raises(ValueError, match="level 'all' is none of"):
        graph.add("b", level="all")
    with pytest.raises(ValueError, match="level 'all' is none of"):
        graph.listed("all")
    with graph.scope("layer.00"):
        assert graph.add("a", "a") == "layer.00.a"  # the outer one: its own is not made yet
        assert graph.add("b", "a") == "layer.00.b"
    described = graph.listed()
    assert described["checkpoints"][1:] == [
        ["layer.00.a", "layer.00", ["a"]],
        ["layer.00.b", "layer.00", ["layer.00.a"]],
    ]


@pytest.fixture
def finished(say, tmp_path):
    assert say()[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run["cases"][0]["graph"]["checkpoints"][1].__setitem__(2, ["layer.00.out"]), "not made before it"),
        (lambda run: run["cases"][0]["graph"].__setitem__("name", "os"), "cannot be judged: no component 'os'"),
        (lambda run: run["cases"][0]["graph"]["expected"].pop(), "do not cover"),
        (lambda run: run.__setitem__("ranges", {"row": 3}), "range table of the run: "),
        (lambda run: run.__setitem__("ranges", 3), "no table"),
    ],
)
def test_a_run_folder_that_lies_is_refused_in_one_line(finished, capsys, change, said):
    run = json.loads((finished / "parity.json").read_text())
    change(run)
    (finished / "parity.json").write_text(json.dumps(run))
    code = call(["report", str(finished)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in lines[0]
    assert "Traceback" not in "".join(lines)


def test_one_folder_of_two_kinds(tmp_path, monkeypatch):
    from parity import suite

    monkeypatch.setattr(sys, "path", list(sys.path))
    family_toy.forget()
    case = changed(CASE, '= (".",)', '= ("scheduler",)')
    both = changed(SUITE, 'title = "toy"', 'title = "toy"\ninclude = ["scheduler"]')
    found = suite.load(str(family_toy.write(tmp_path / "author", case=case, suite=both)))
    family_toy.forget()
    with pytest.raises(UsageError, match="folder 'scheduler' is a plain one"):
        _ = found.plain
