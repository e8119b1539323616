"""Runs of large models: the same figures, weights looked at on the way, taken up where they were cut off."""

import json

import numpy as np
import pytest
from mini import write_checkpoint
from test_prefetch import planted, spoil

from parity import run as runs
from parity.cli import call
from parity.commands import run as command

SUITE = """\
title = "streamed"
weights = "synthetic:tiny"
detail = "block"
draws = 1

[[case]]
name = "small"
images = [[64, 48]]
text_tokens = [5]
timestep = 0.9
seed = 0
dtypes = ["bfloat16"]
modes = ["isolated", "accumulated"]
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "streamed.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def large(monkeypatch):
    """Everything counts as a large model."""
    monkeypatch.setattr(runs, "LARGE_BYTES", 0)
    monkeypatch.setattr(command, "LARGE_BYTES", 0)


def figures(folder):
    return json.loads((folder / "parity.json").read_text())["cases"]


def go(suite, weights, out, *more):
    return call(["run", str(suite), "--weights", str(weights), "--out", str(out), "--jobs", "1", *more])


def test_streaming_changes_no_figure(tmp_path, suite, monkeypatch, capsys):
    weights = write_checkpoint(tmp_path / "weights")
    assert go(suite, weights, tmp_path / "plain") == 0
    capsys.readouterr()
    monkeypatch.setattr(runs, "LARGE_BYTES", 0)
    monkeypatch.setattr(command, "LARGE_BYTES", 0)
    given_back = []
    monkeypatch.setattr(runs.memory, "give_back", lambda: given_back.append(1))
    assert go(suite, weights, tmp_path / "streamed") == 0
    stages = {row["stage"] for row in figures(tmp_path / "streamed")[0]["checkpoints"]}
    assert len(given_back) == len(stages) > 3
    assert figures(tmp_path / "plain") == figures(tmp_path / "streamed")
    said = capsys.readouterr().err
    assert "small.bfloat16: about 1 min" in said
    assert "passes: truth 2, reference 5, candidate 2" in " ".join(said.split())


@pytest.mark.usefixtures("large")
def test_weights_that_are_not_finite_stop_the_run_at_their_stage(tmp_path, suite, capsys):
    weights = write_checkpoint(tmp_path / "weights")
    spoil(weights, "transformer_blocks.1.img_mlp.net.2.weight", planted(np.nan, 3))
    assert go(suite, weights, tmp_path / "out") == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "weights of block.01 cannot be used: non-finite: transformer_blocks.1.img_mlp.net.2.weight: 1 NaN" in said
    journal = (tmp_path / "out" / "work" / "small.bfloat16.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in journal] == ["embed", "block.00"]


@pytest.mark.usefixtures("large")
def test_a_streamed_run_is_taken_up_where_it_was_cut_off(tmp_path, suite, monkeypatch):
    weights, out = write_checkpoint(tmp_path / "weights"), tmp_path / "out"
    real, calls = runs.Lockstep.run, []

    def cut(self, stage, chains):
        calls.append(stage)
        if stage == "block.01" and calls.count(stage) == 1:
            raise KeyboardInterrupt
        return real(self, stage, chains)

    monkeypatch.setattr(runs.Lockstep, "run", cut)
    assert go(suite, weights, out) == 130
    assert go(suite, weights, out) == 0
    assert calls.count("block.00") == 1
    assert calls.count("block.01") == 2
    assert go(suite, weights, tmp_path / "whole") == 0
    assert figures(out) == figures(tmp_path / "whole")


def test_a_model_of_many_gigabytes_gets_the_suite_that_suits_it(tmp_path, monkeypatch, capsys):
    weights = write_checkpoint(tmp_path / "weights")
    monkeypatch.setattr(command, "FULL_BYTES", 0)
    assert call(["run", "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["suite"] == "full"
    assert "suite full" in capsys.readouterr().err
    assert call(["run", "default", "--weights", str(weights), "--case", "batch", "--out", str(tmp_path / "two")]) == 0
    assert json.loads((tmp_path / "two" / "parity.json").read_text())["suite"] == "default"
