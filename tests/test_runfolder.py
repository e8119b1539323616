"""Run folders: nothing is overwritten, a cut-off run is taken up, JSON keeps non-finite figures."""

import errno
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parity import runfolder
from parity.errors import OutputExistsError, ResourceError, UsageError
from parity.runfolder import RunFolder, from_json, read_run, to_json

PLAN = {"suite": "default", "draws": 3, "floor": math.inf}
CHAINS = {"truth": {"img": np.ones((1, 2)), "prompt_mask": np.array([True])},
          "candidate": {"img": np.ones((1, 2), ml_dtypes.bfloat16)}}  # fmt: skip


def test_non_finite_figures_survive_json():
    value = {"excess": math.inf, "rows": [{"floor": -math.inf, "reason": "nan", "name": "inf"}], "n": 3, "x": 0.1}
    written = json.loads(json.dumps(to_json(value), allow_nan=False))
    assert written["excess"] == "inf"
    assert from_json(written) == value
    assert math.isnan(from_json(to_json(math.nan)))


def test_a_new_folder_remembers_its_plan(tmp_path):
    folder = RunFolder.open(tmp_path / "run", PLAN)
    assert folder.holds(PLAN)
    assert not folder.holds(PLAN | {"draws": 4})


def test_a_cut_off_run_of_the_same_plan_goes_on_after_the_last_stage_on_disk(tmp_path):
    folder = RunFolder.open(tmp_path, PLAN)
    folder.stage_done("square.float32", {"stage": "embed", "x": math.nan}, CHAINS, 1)
    folder.stage_done("square.float32", {"stage": "block.00"}, CHAINS, 2)
    with (tmp_path / "work" / "square.float32.jsonl").open("a") as journal:
        journal.write('{"stage": "block.01", "rows')  # killed here
    lines, chains = RunFolder.open(tmp_path, PLAN).resume("square.float32")
    assert [line["stage"] for line in lines] == ["embed", "block.00"]
    assert math.isnan(lines[0]["x"])
    assert chains["candidate"]["img"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(chains["truth"]["img"], CHAINS["truth"]["img"])
    assert RunFolder.open(tmp_path, PLAN).resume("square.bfloat16") == ([], None)


def test_a_unit_that_is_done_keeps_its_journal_and_drops_its_chains(tmp_path):
    folder = RunFolder.open(tmp_path, PLAN)
    folder.stage_done("u", {"stage": "embed"}, CHAINS, 1)
    assert not folder.is_done("u")
    folder.unit_done("u")
    assert folder.is_done("u")
    assert folder.resume("u") == ([{"stage": "embed"}], None)
    assert not list((tmp_path / "work").glob("*.safetensors"))


def finished(tmp_path):
    RunFolder.open(tmp_path, PLAN).finish({"schema": 2, "verdict": "parity"})


def test_a_finished_run_is_not_overwritten_without_force(tmp_path):
    finished(tmp_path)
    with pytest.raises(OutputExistsError, match="holds a finished run; --force overwrites it"):
        RunFolder.open(tmp_path, PLAN)
    assert read_run(tmp_path)["verdict"] == "parity"
    RunFolder.open(tmp_path, PLAN, force=True)
    assert not (tmp_path / "parity.json").exists()


def test_an_unfinished_run_of_another_plan_is_not_overwritten_without_force(tmp_path):
    RunFolder.open(tmp_path, PLAN).stage_done("u", {"stage": "embed"}, CHAINS, 1)
    with pytest.raises(OutputExistsError, match="an unfinished run of another plan"):
        RunFolder.open(tmp_path, PLAN | {"draws": 4})
    assert RunFolder.open(tmp_path, PLAN).resume("u")[0]
    RunFolder.open(tmp_path, PLAN | {"draws": 4}, force=True)
    assert RunFolder(tmp_path).resume("u") == ([], None)


@pytest.mark.parametrize("force", [False, True])
def test_what_no_run_wrote_is_never_touched(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"holds thesis.tex, which no run wrote"):
        RunFolder.open(tmp_path, PLAN, force=force)
    with pytest.raises(OutputExistsError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", PLAN, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_finishing_leaves_nothing_of_the_work(tmp_path):
    finished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["parity.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"schema": 1}', "schema 1, this version reads 2"),
        ("[]", "schema None"),
        (None, "expected a run folder"),
    ],
)
def test_reading_something_else(tmp_path, content, message):
    if content is not None:
        (tmp_path / "parity.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_run(tmp_path)


def test_reading_an_unfinished_run_says_so(tmp_path):
    RunFolder.open(tmp_path, PLAN)
    with pytest.raises(UsageError, match="not finished; the same `parity run` resumes it"):
        read_run(tmp_path)


def test_a_full_disk_is_one_clear_line_and_loses_no_finished_stage(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path, PLAN)
    folder.stage_done("u", {"stage": "embed"}, CHAINS, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runfolder, "save_file", full)
    with pytest.raises(ResourceError, match="no room on the disk"):
        folder.stage_done("u", {"stage": "block.00"}, CHAINS, 2)
    monkeypatch.undo()
    assert [line["stage"] for line in RunFolder.open(tmp_path, PLAN).resume("u")[0]] == ["embed"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(UsageError, match=r"cannot write .*: Permission denied; choose another --out"):
        RunFolder.open(tmp_path / "run", PLAN)
