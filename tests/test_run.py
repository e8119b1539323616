"""``parity run`` from the command line to the run folder, on a two-block checkpoint."""

import json
import shutil
import sys

import pytest
from mini import write_checkpoint, write_suite

import mlx_impl
from parity import run as engine
from parity.cli import call
from parity.result import rejudge
from parity.runfolder import read_run
from parity.trace import read_stats


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def run(tmp_path, weights, capsys):
    suite = write_suite(tmp_path)

    def go(*more, out="run"):
        code = call(["run", str(suite), "--weights", str(weights), "--out", str(tmp_path / out), *more])
        streams = capsys.readouterr()
        return code, streams.out, streams.err, tmp_path / out

    return go


@pytest.fixture
def swapped(tmp_path, monkeypatch):
    """A copy of mlx_impl under another name, in which shift and scale are exchanged."""
    copy = tmp_path / "swapped_impl"
    shutil.copytree(mlx_impl.__path__[0], copy, ignore=shutil.ignore_patterns("__pycache__"))
    layers = copy / "layers.py"
    right = "    shift: mx.array\n    scale: mx.array\n"
    assert layers.read_text().count(right) == 1
    layers.write_text(layers.read_text().replace(right, "    scale: mx.array\n    shift: mx.array\n"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)  # as a user has it: beside the work, installed nowhere
    yield "swapped_impl"
    for name in [name for name in sys.modules if name.partition(".")[0] == "swapped_impl"]:
        del sys.modules[name]


def test_a_clean_run_is_parity_and_leaves_a_whole_folder(run):
    code, out, err, folder = run()
    assert code == 0, err
    assert out.splitlines()[-1] == str(folder / "report.html")
    result = read_run(folder)
    assert result["verdict"] == "parity"
    assert result["counts"]["compared"] == result["counts"]["expected"] == 2 * 60
    assert sorted(p.name for p in folder.iterdir()) == ["parity.json", "plots", "report.html", "trace"]
    for case in result["cases"]:
        assert all(row["excess"] <= 3 for row in case["checkpoints"])
    stats = read_stats(folder / "trace" / "one.float32" / "candidate")
    assert list(stats) == [row["name"] for row in result["cases"][0]["checkpoints"]]
    assert stats["block.01.img.out"]["rms"] == pytest.approx(
        read_stats(folder / "trace" / "one.float32" / "reference")["block.01.img.out"]["rms"], rel=1e-5
    )


def test_exchanged_shift_and_scale_are_found_where_they_happen(run, swapped):
    code, out, _, folder = run("--candidate", swapped)
    assert code == 1
    result = read_run(folder)
    assert result["verdict"] == "divergence"
    assert result["first_divergence"]["checkpoint"] == "block.00.img.modulated"
    by_mode = {case["mode"]: case["sources"] for case in result["cases"]}
    assert by_mode["accumulated"] == ["block.00.img.modulated", "block.00.txt.modulated"]
    assert set(by_mode["isolated"]) == {f"block.0{b}.{s}.modulated" for b in (0, 1) for s in ("img", "txt")}
    assert "block.00.img.modulated" in out


def test_a_run_that_was_cut_off_goes_on_where_it_was(run, monkeypatch):
    _, _, _, whole = run(out="whole")
    stages = []

    def cut(lockstep, chains, done):
        for stage, after, found in engine_iterate(lockstep, chains, done):
            if len(stages) == 2:
                raise KeyboardInterrupt
            stages.append(stage)
            yield stage, after, found

    engine_iterate = engine.iterate
    monkeypatch.setattr(engine, "iterate", cut)
    code, _, err, folder = run()
    assert (code, stages) == (130, ["embed", "block.00"])
    assert "goes on where it stopped" in err
    assert not (folder / "parity.json").exists()

    again = []

    def watch(lockstep, chains, done):
        for stage, after, found in engine_iterate(lockstep, chains, done):
            again.append(stage)
            yield stage, after, found

    monkeypatch.setattr(engine, "iterate", watch)
    code, _, _, folder = run()
    assert (code, again) == (0, ["block.01", "head"])
    assert read_run(folder)["cases"] == read_run(whole)["cases"]


def test_a_finished_run_is_not_overwritten(run):
    assert run()[0] == 0
    code, out, err, _ = run()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "holds a finished run; --force overwrites it" in err
    assert run("--force")[0] == 0


def test_judging_again_gives_the_same_and_follows_the_measures(run):
    _, _, _, folder = run()
    result = read_run(folder)
    assert rejudge(result)["cases"] == result["cases"]
    page = (folder / "report.html").read_bytes()
    assert call(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page
    result["cases"][0]["checkpoints"][30]["rel_rmse"] *= 1e3
    (folder / "parity.json").write_text(json.dumps(result))
    assert call(["report", str(folder)]) == 1
    assert (folder / "report.html").read_bytes() != page


def test_json_on_stdout_is_the_file(run):
    code, out, _, folder = run("--format", "json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "parity.json").read_text())


def test_markdown_on_stdout(run):
    code, out, _, _ = run("--format", "md")
    assert code == 0
    assert out.startswith("**Parity: all 120 checkpoints")
    assert "| one | float32 | isolated | 60/60 |" in out


def test_cases_dtypes_and_detail_can_be_chosen(run):
    code, _, _, folder = run("--dtype", "bfloat16", "--detail", "kinds")
    assert code == 0
    result = read_run(folder)
    assert {case["dtype"] for case in result["cases"]} == {"bfloat16"}
    assert result["counts"]["expected"] == 2 * 22


def test_plots_are_drawn_again_on_request(run, tmp_path):
    _, _, _, folder = run()
    assert call(["plot", str(folder), "--out", str(tmp_path / "dark"), "--dark"]) == 0
    drawn = sorted(p.name for p in (tmp_path / "dark").iterdir())
    assert {name.rsplit(".", 1)[1] for name in drawn} == {"png", "svg"}
    assert {name.partition(".")[0] for name in drawn} == {"ranges", "growth", "errors", "heatmap"}
