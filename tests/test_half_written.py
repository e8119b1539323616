"""Run folders that are half there: each command answers in one line, or the page says what is missing."""

import json
import shutil

import numpy as np
import pytest
import sample_run
from PIL import Image
from test_diagnosispage import FOUND
from test_report_command import put

from parity import histograms, profiles, runschema, trace
from parity.cli import call
from parity.runfolder import from_json
from parity.stats import BINADES, describe

NAME = "block.00.img.attn"
UNIT = "trace/square.float32"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with all that a run writes: traces, profiles, histograms, pictures, a diagnosis."""
    folder = put(tmp_path_factory.mktemp("whole") / "run", "diverged")
    run = json.loads((folder / "parity.json").read_text())
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(1, 40, 100)).astype(np.float32)
    value = truth + np.float32(1)
    for case in run["cases"]:
        for row in case["checkpoints"]:
            if row["name"] == NAME:
                row["worst"] = [[[0, 7, 3], 4.5, -1.5]]
                # Beyond the floor whatever the limits are.
                row |= {"rel_rmse": 0.9, "excess": 9e5, "verdict": "diverged"}
    packed = [axis.packed() for axis in profiles.measure(value, truth)]
    profiles.write(folder / UNIT, [{mode: {NAME: packed} for mode in ("isolated", "accumulated")}])
    histograms.write(folder / UNIT, [{"isolated": {NAME: [4000] + [0] * (BINADES - 1)}}])
    for side, array in (("reference", truth), ("candidate", value)):
        about = {"side": side, "case": {"name": "square"}, "dtype": "float32", "mode": "accumulated",
                 "component": "transformer", "configs": {}, "environment": {}}  # fmt: skip
        trace.write(folder / UNIT / side, {NAME: vars(describe(array))}, about)
    (folder / "pictures").mkdir()
    for side in ("reference", "candidate"):
        Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / "pictures" / f"{side}.png")
    picture = {"checkpoint": "image", "index": 0, "size": [32, 24], "metrics": {"rmse": 3.0}}
    picture |= {side: f"pictures/{side}.png" for side in ("reference", "candidate")}
    run["cases"][1]["pictures"] = [picture]
    (folder / "parity.json").write_text(json.dumps(run))
    (folder / "diagnosis.json").write_text(json.dumps(FOUND))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


@pytest.fixture
def go(capsys, monkeypatch):
    """Code, stdout and stderr of a command; what is on stderr is one line, however it is wrapped."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*argv):
        code = call([str(one) for one in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        assert code != 3, err
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_the_whole_folder_says_nothing_of_the_kind(folder, go):
    assert go("report", folder)[0] == 1
    page = (folder / "report.html").read_text()
    for said in ("profiles could not be read", "not there", "no diagnosis", "holds the pictures"):
        assert said not in page, said
    assert FOUND["sentence"] in page
    assert page.count("data:image/png") >= 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9999])
def test_a_parity_json_cut_off_is_one_line(folder, go, share):
    shutil.copytree(folder, folder.parent / "fine")
    cut(folder / "parity.json", share)
    before = (folder / "parity.json").read_bytes()
    for argv in (["report", folder], ["plot", folder], ["plot", "--terminal", folder], ["report", folder, folder],
                 ["report", folder.parent / "fine", folder], ["plot", folder.parent / "fine", folder]):  # fmt: skip
        code, out, err = go(*argv)
        assert (code, out) == (2, ""), argv
        assert err.startswith("error:")
        assert "parity.json: not JSON" in err.replace("- ", "-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "diagnosis.json", "parity.json", "pictures", "trace",
    ]  # fmt: skip
    code, out, _ = go("report", "--index", folder.parent)
    assert code == 0
    assert "1 finished run" in out
    assert "not JSON" in (folder.parent / "index.html").read_text()
    assert (folder / "parity.json").read_bytes() == before


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": ' + "9" * 10_000 + "}", "\x00", '{"schema": 2}'])
def test_a_parity_json_of_something_else_is_one_line(folder, go, text):
    (folder / "parity.json").write_text(text)
    for argv in (["report", folder], ["plot", folder]):
        code, out, err = go(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("error:")
        assert len(err) < 1000


def row_of(run):
    return run["cases"][0]["checkpoints"][5]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: run.pop("cases"), "cases is missing, expected a list"),
        (lambda run: run["cases"].insert(0, None), "cases[0] is None, expected an object"),
        (lambda run: run["cases"][1].pop("graph"), "cases[1].graph is missing, expected an object"),
        (lambda run: run["cases"][1]["graph"].pop("name"), "cases[1].graph.name is missing, expected a text"),
        (lambda run: run["cases"][0]["inputs"].update(batch=None), "cases[0].inputs.batch is None, expected a number"),
        (lambda run: run["cases"][0].update(sources=[3]), "cases[0].sources are not all texts"),
        (lambda run: run["cases"][0]["checkpoints"].insert(6, 7), "checkpoints[6] is 7, expected an object"),
        (lambda run: row_of(run).pop("name"), "checkpoints[5].name is missing, expected a text"),
        (lambda run: row_of(run).update(floor="x"), "checkpoints[5].floor is x, expected a number"),
        (lambda run: row_of(run).update(verdict="?"), "checkpoints[5].verdict is ?, expected match"),
        (lambda run: row_of(run).update(status="?"), "checkpoints[5].status is ?, expected measured"),
        (lambda run: run.pop("weights"), "weights is missing, expected an object"),
        (lambda run: run["weights"].pop("preset"), "weights.preset is missing, expected a text"),
        (lambda run: run["environment"].pop("host"), "environment.host is missing, expected an object"),
        (lambda run: run["thresholds"].update(match=None), "thresholds.match is None, expected a number"),
    ],
)  # fmt: skip
def test_a_parity_json_that_lacks_something_says_what(folder, go, spoil, said):
    run = json.loads((folder / "parity.json").read_text())
    spoil(run)
    (folder / "parity.json").write_text(json.dumps(run))
    for argv in (["report", folder], ["plot", folder]):
        code, _, err = go(*argv)
        assert code == 2
        assert said in err
        assert "run it again, or restore the file" in err


@pytest.mark.parametrize("kind", ["clean", "diverged", "incomplete", "nonfinite", "hostile"])
@pytest.mark.parametrize("component", list(sample_run.INPUTS))
def test_runs_have_the_shape_of_runs(kind, component):
    run = getattr(sample_run, kind)(component=component, blocks=2, dtypes=("float32",))
    assert runschema.problem(from_json(run)) == ""


def diagnosed(run, **found):
    (run / "diagnosis.json").write_text(json.dumps(found))


MISSING = {
    "the traces": (lambda run: shutil.rmtree(run / "trace"), "trace/square.float32: not there"),
    "one side": (lambda run: shutil.rmtree(run / UNIT / "candidate"), "square.float32/candidate: cannot be read"),
    "a manifest": (lambda run: (run / UNIT / "reference/manifest.json").unlink(), "reference: cannot be read"),
    "half the statistics": (lambda run: cut(run / UNIT / "reference/stats.parquet"), "reference: "),
    "half the profiles": (lambda run: cut(run / UNIT / profiles.FILE), f"{UNIT}/profiles.safetensors"),
    "all of the profiles": (lambda run: cut(run / UNIT / profiles.FILE, 0), f"{UNIT}/profiles.safetensors"),
    "profiles": (lambda run: (run / UNIT / profiles.FILE).unlink(), f"{UNIT}/profiles.safetensors: not there"),
    "half the histograms": (lambda run: cut(run / UNIT / histograms.FILE), f"{UNIT}/histograms.safetensors"),
    "the pictures": (lambda run: shutil.rmtree(run / "pictures"), "pictures/candidate.png"),
    "half a picture": (lambda run: cut(run / "pictures/candidate.png"), "pictures/candidate.png"),
    "half a diagnosis": (lambda run: cut(run / "diagnosis.json"), "diagnosis.json: no diagnosis"),
    "its parts": (lambda run: diagnosed(run, schema=1), "diagnosis.json: no diagnosis"),
    "its cause": (lambda run: diagnosed(run, schema=1, sentence="x", causes=[3], unexplained=[], notes=[]),
                  "diagnosis.json: no diagnosis"),
    "its depth": (lambda run: (run / "diagnosis.json").write_text("[" * 200_000), "diagnosis.json: no diagnosis"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(MISSING))
def test_what_is_missing_is_said_on_the_page(folder, go, what):
    spoil, said = MISSING[what]
    spoil(folder)
    code, out, err = go("report", folder)
    assert (code, err) == (1, ""), "the verdict is the run's"
    page = (folder / "report.html").read_text()
    assert said in page
    assert str(folder) not in page
    assert go("report", folder)[0] == 1
    assert (folder / "report.html").read_text() == page
    code, out, err = go("plot", folder, "--kind", "errors", "--format", "png")
    assert (code, err) == (0, "")
    code, out, _ = go("report", "--index", folder.parent)
    assert code == 0
    assert "1 finished run" in out


def test_an_unfinished_run_says_what_to_do(folder, go):
    (folder / "parity.json").unlink()
    (folder / "work").mkdir()
    (folder / "work" / "plan.json").write_text("{}")
    for argv in (["report", folder], ["plot", folder]):
        code, _, err = go(*argv)
        assert code == 2
        assert "the run is not finished; the same `parity run` resumes it" in err
    code, _, _ = go("report", "--index", folder.parent)
    assert code == 0
    assert "resumes it" in (folder.parent / "index.html").read_text()


def test_a_run_may_be_named_by_its_file(folder, go):
    assert go("report", folder / "parity.json")[0] == 1
    assert (folder / "report.html").is_file()
    assert go("plot", folder / "parity.json", "--kind", "errors", "--format", "png")[0] == 0
    assert list((folder / "plots").glob("*.png"))
    assert go("plot", folder / "parity.json", "--terminal", "--kind", "errors")[0] == 0


def test_where_nothing_can_be_written_is_said_in_one_line(folder, go, tmp_path):
    (tmp_path / "file").touch()
    for argv in (["plot", folder, "--kind", "errors", "--out", tmp_path / "file"],
                 ["plot", folder, "--kind", "errors", "--out", tmp_path / "file" / "in"],
                 ["report", folder, "--out", tmp_path / "file" / "x.html"],
                 ["report", folder, "--out", tmp_path, "--force"],
                 ["report", folder, "--out", tmp_path / ("x" * 300 + ".html")]):  # fmt: skip
        code, _, err = go(*argv)
        assert code == 2, argv
        assert err.startswith("error: cannot write ") or "File name too long" in err
