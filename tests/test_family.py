"""A model that is not Qwen-Image: component, graph, weights, reference and ranges from outside, in every command."""

import json
import sys

import family_toy
import pytest

from parity import run as engine
from parity.cli import call
from parity.runfolder import read_run

BROKEN = family_toy.PORT.replace("np.tanh(up)", "np.tanh(up * 1.001)")


@pytest.fixture
def go(tmp_path, capsys, monkeypatch):
    """Runs a command line; what it imports is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*argv):
        family_toy.forget()
        code = call([str(one) for one in argv])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    yield command
    family_toy.forget()


@pytest.fixture
def run(go, tmp_path):
    def command(suite, *more, out="run", options=family_toy.OPTIONS, jobs=1):
        argv = ["run", suite, *options, "--weights", tmp_path / "author" / "weights", "--jobs", jobs]
        return *go(*argv, "--out", tmp_path / out, *more), tmp_path / out

    return command


@pytest.fixture
def author(tmp_path, monkeypatch):
    """Writes the author's folder and gives the suite's path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    family_toy.forget()
    yield lambda **texts: family_toy.write(tmp_path / "author", **texts)
    family_toy.forget()


def test_another_family_is_parity_and_written_out_whole(run, author):
    code, out, err, folder = run(author())
    assert code == 0, err
    result = read_run(folder)
    assert (result["verdict"], result["counts"]["compared"]) == ("parity", 2 * 8)
    assert result["ports"]["reference"] == "toy_theirs:Port"
    weights = result["weights"]
    assert (weights["layout"], weights["tensors"], weights["parameters"]) == ("plain", 3, 9 * 16 + 2 * 16 * 16)
    assert weights["configs"] == {".": {"layers": 2}}
    case = result["cases"][0]
    assert (case["component"], case["graph"]["name"]) == ("toy", "listed")
    assert ["layer.01.out", "layer.01", ["layer.01.act", "layer.00.out"]] in case["graph"]["checkpoints"]
    assert case["graph"]["exact"] == ["ids"]
    assert sorted(path.name for path in folder.iterdir()) == ["parity.json", "plots", "report.html", "trace"]
    assert "toy" in (folder / "report.html").read_text()
    assert out.splitlines()[-1] == str(folder / "report.html")


def test_a_fault_is_named_where_it_is_made(run, author):
    code, out, _, folder = run(author(mine=BROKEN))
    assert code == 1
    by_mode = {case["mode"]: case["sources"] for case in read_run(folder)["cases"]}
    assert by_mode == {"isolated": ["layer.00.act", "layer.01.act"], "accumulated": ["layer.00.act"]}
    assert "layer.00.act" in out


@pytest.mark.parametrize("format", ["json", "md"])
def test_what_stdout_carries(run, author, format):
    code, out, _, folder = run(author(), "--format", format)
    assert code == 0
    if format == "json":
        assert json.loads(out) == json.loads((folder / "parity.json").read_text())
    else:
        assert "| one | float32 | isolated | 8/8 |" in out


def test_a_level_leaves_names_out_and_looks_through_them(run, author):
    code, _, _, folder = run(author(mine=BROKEN), "--detail", "kinds")
    result = read_run(folder)
    assert [row["name"] for row in result["cases"][0]["checkpoints"]] == ["embedded"]
    assert code == 0
    code, _, _, folder = run(author(mine=BROKEN), "--detail", "block", out="block")
    assert code == 1
    assert read_run(folder)["cases"][1]["sources"] == ["layer.00.act"]


def test_a_run_is_judged_again_without_the_authors_files(go, run, author, tmp_path):
    _, _, _, folder = run(author(mine=BROKEN, suite=with_table(tmp_path)))
    before = read_run(folder)
    page = (folder / "report.html").read_bytes()
    for file in (tmp_path / "author").glob("*.*"):
        file.unlink()
    code, _, err = go("report", folder)
    assert code == 1, err
    assert read_run(folder) == before
    assert (folder / "report.html").read_bytes() == page
    assert not [name for name in sys.modules if name.startswith("toy_")]
    assert go("plot", folder, "--out", tmp_path / "plots")[0] == 0


def with_table(tmp_path, high=1000.0):
    """A suite with a table of two rows, one of them of a checkpoint that comes far from its size."""
    (tmp_path / "author").mkdir(exist_ok=True)
    rows = "".join(
        f'[[row]]\nname = "{name}"\ncheckpoint = "{name}"\nlow = -{end}\nhigh = {end}\nsource = "a test"\n'
        for name, end in (("layer.00.act", 1.0), ("embedded", high))
    )
    (tmp_path / "author" / "mine.toml").write_text('schema = 1\nname = "mine"\n' + rows)
    return family_toy.SUITE.replace('title = "toy"', 'title = "toy"\nranges = "mine.toml"')


def test_a_suites_own_range_table_is_checked_and_kept(go, run, author, tmp_path):
    _, _, _, folder = run(author(suite=with_table(tmp_path)))
    rows = {row["name"]: row["range"] for row in read_run(folder)["cases"][0]["checkpoints"]}
    assert (rows["layer.00.act"]["verdict"], rows["embedded"]["verdict"]) == ("inside", "absent")
    assert rows["layer.00.up"] is None
    (tmp_path / "author" / "mine.toml").unlink()
    code, out, _ = go("ranges", "check", folder)
    assert code == 1
    assert "2 of 2 rows checked: 1 inside, 1 absent, 0 outside" in out


def test_ranges_of_a_run_are_recorded_and_hold_it(go, run, author, tmp_path):
    _, _, _, folder = run(author())
    code, out, _ = go("ranges", "record", folder, "--out", tmp_path / "new.toml")
    assert (code, "7 ranges" in out) == (0, True)  # all but the ids, which are the case's own
    code, out, _ = go("ranges", "check", folder, "--table", tmp_path / "new.toml")
    assert (code, "7 of 7 rows checked: 7 inside" in out) == (0, True)
    code, out, _ = go(
        "ranges", "check", folder / "trace" / "one.float32" / "candidate", "--table", tmp_path / "new.toml"
    )
    assert (code, "7 of 7 rows checked: 7 inside" in out) == (0, True)
    assert go("ranges", "check", folder)[0] == 5  # nothing of Qwen-Image is in it


def test_a_run_that_was_cut_off_goes_on_unless_the_graph_is_another(run, author, monkeypatch):
    suite = author()
    whole = run(suite, out="whole")[3]
    stages = []
    iterate = engine.iterate

    def cut(lockstep, chains, done):
        for stage, after, found in iterate(lockstep, chains, done):
            if len(stages) == 2:
                raise KeyboardInterrupt
            stages.append(stage)
            yield stage, after, found

    monkeypatch.setattr(engine, "iterate", cut)
    assert run(suite)[0] == 130
    assert stages == ["embed", "layer.00"]
    monkeypatch.setattr(engine, "iterate", iterate)
    changed = family_toy.CASE.replace('graph.add("act", "up")', 'graph.add("act", "up", hidden)')
    code, _, err, _ = run(author(case=changed))
    assert (code, "an unfinished run of another plan" in err) == (2, True)
    code, _, err, _ = run(author(), options=("--candidate", "toy_mine:Port", "--reference", "toy_mine:Port"))
    assert (code, "an unfinished run of another plan" in err) == (2, True)
    code, _, _, folder = run(author())
    assert code == 0
    assert read_run(folder)["cases"] == read_run(whole)["cases"]


def test_units_in_processes_of_their_own(run, author):
    suite = author(mine=BROKEN, suite=family_toy.SUITE.replace('["float32"]', '["float32", "float16"]'))
    code, _, err, folder = run(suite, jobs=2)
    assert code == 1, err
    assert {case["dtype"] for case in read_run(folder)["cases"]} == {"float32", "float16"}


def test_a_diagnosis_says_what_it_can_and_cannot_do(go, run, author):
    _, _, _, folder = run(author(mine=BROKEN))
    code, out, err = go("diagnose", folder, "--format", "json")
    found = json.loads(out)
    assert (code, err) == (1, "")
    assert found["sentence"] == "Not explained: what is wrong at layer.00.act could not be looked into."
    assert [one["where"] for one in found["unexplained"]] == ["layer.00.act", "layer.01.act"]
    assert "no experiments are written for toy" in found["unexplained"][0]["reason"]
    (note,) = found["notes"]
    assert note.startswith("toy: a component from outside")
    assert not [name for name in sys.modules if name.startswith("toy_")]
    assert "could not be looked into" in (folder / "report.html").read_text()
    _, _, _, clean = run(author(), out="clean")
    assert go("diagnose", clean)[0] == 0


def test_other_weights_are_another_plan(author, tmp_path):
    from parity import model_folder

    author()
    root, plain = tmp_path / "author" / "weights", {".": ("config.json", "vocabulary.txt")}
    (root / "vocabulary.txt").write_text("a b")
    first = model_folder.inspect(root, (".",), plain).fingerprint()
    assert model_folder.inspect(root, (".",), plain).fingerprint() == first
    (root / "vocabulary.txt").write_text("a c")
    second = model_folder.inspect(root, (".",), plain).fingerprint()
    family_toy.write_weights(root, seed=1)
    third = model_folder.inspect(root, (".",), plain).fingerprint()
    (root / "config.json").write_text('{"layers": 3}')
    fourth = model_folder.inspect(root, (".",), plain).fingerprint()
    assert len({first, second, third, fourth}) == 4


def test_a_suites_weights_may_lie_in_an_installed_package(go, author, tmp_path):
    author(suite=family_toy.SUITE.replace('title = "toy"', 'title = "toy"\nweights = "package:toy_weights/model"'))
    package = tmp_path / "author" / "toy_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    family_toy.write_weights(package / "model")
    out = tmp_path / "run"
    code, _, err = go("run", tmp_path / "author" / "toy.toml", *family_toy.OPTIONS, "--jobs", 1, "--out", out)
    assert code == 0, err
    assert read_run(out)["weights"]["path"] == "package:toy_weights/model"


def test_a_suite_may_have_components_of_both_kinds(author):
    from parity import suite

    both = family_toy.SUITE.replace('title = "toy"', 'title = "toy"\ninclude = ["scheduler"]')
    found = suite.load(str(author(suite=both)))
    assert (found.folders, found.plain) == (("scheduler", "."), {".": ("config.json",)})


def test_of_a_hub_only_the_models_own_folder_is_fetched():
    from parity import hub

    files = ("config.json", "model.safetensors", "onnx/model.safetensors", "pytorch_model.bin", "tokenizer.json")
    assert hub.needed(files, (".",)) == ("config.json", "model.safetensors", "tokenizer.json")
