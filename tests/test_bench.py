"""Measuring the toolkit itself: cases cover what they say, alarms ring, errors are found where planted."""

import json
import math

import numpy as np
import pytest
from mini import CONFIG, write_checkpoint

from mlx_impl.port import MlxPort
from parity import bench, stopwatch
from parity.cli import call
from parity.components.transformer import TransformerCase
from parity.errors import ParityError
from parity.names import qwen_image_transformer
from parity.ports import open_port

DTYPES = ("float32", "bfloat16")
GRAPH = qwen_image_transformer(CONFIG["num_layers"], "full")
CASE = TransformerCase(name="small", seed=0, images=((64, 48),), text_tokens=(5, 3), timestep=0.9)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


class Spoilt(MlxPort):
    """The port with one checkpoint changed in what it reports."""

    def __init__(self, name, change):
        self._spoilt, self._change = name, change

    def open(self, *args, **options):
        session = super().open(*args, **options)
        run = session.run

        def spoil(stage, state, want, **more):
            after, values = run(stage, state, want, **more)
            if self._spoilt in values:
                values[self._spoilt] = self._change(values[self._spoilt])
            return after, values

        session.run = spoil
        return session


class Failing(MlxPort):
    """A port that opens and then computes nothing."""

    def open(self, *args, **options):
        session = super().open(*args, **options)
        session.run = lambda *args, **options: 1 / 0
        return session


def clean_run(weights, candidate=None, dtype="float32"):
    ports = open_port("reference"), candidate or open_port("mlx_impl")
    return bench.clean_run(CASE, dtype, GRAPH, ports, weights, {"transformer": CONFIG})


def test_fifty_clean_runs_meet_every_size_prompt_and_timestep_in_every_dtype():
    cases = bench.clean_cases(50, DTYPES)
    assert len(cases) == 50
    assert len({case.seed for case, _ in cases}) == len({case.name for case, _ in cases}) == 50
    for key, values in (("images", bench.SIZES), ("text_tokens", bench.PROMPTS), ("timestep", bench.TIMESTEPS)):
        met = {(getattr(case, key), dtype) for case, dtype in cases}
        assert met == {(value, dtype) for value in values for dtype in DTYPES}, key


def test_a_dozen_clean_runs_meet_every_size_in_every_dtype():
    met = {(case.images, dtype) for case, dtype in bench.clean_cases(12, DTYPES)}
    assert met == {(size, dtype) for size in bench.SIZES for dtype in DTYPES}


def test_clean_cases_are_the_same_each_time_and_more_of_them_begin_with_the_fewer():
    assert bench.clean_cases(50, DTYPES) == bench.clean_cases(50, DTYPES)
    assert bench.clean_cases(50, DTYPES)[:7] == bench.clean_cases(7, DTYPES)
    assert bench.clean_cases(0, DTYPES) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clean_run_rings_no_alarm(weights, dtype):
    found = clean_run(weights, dtype=dtype)
    assert found.alarms == ()
    assert found.checkpoints == 2 * len(GRAPH.expected)
    assert 0 < found.median <= found.worst <= 3
    assert found.worst_peak <= 12
    assert set(found.floors) == {"isolated", "accumulated"}
    assert (found.quiet > 0.9) == (dtype == "float32")


def test_an_error_rings_an_alarm_that_names_it(weights):
    found = clean_run(weights, Spoilt("block.01.img.mid", lambda x: x * np.float32(1.001)))
    assert found.alarms == ("block.01.img.mid (isolated): diverged", "block.01.img.mid (accumulated): diverged")
    assert found.worst_at.startswith("block.01.img.mid")
    assert found.worst > 10
    assert found.worst_peak_at.startswith("block.01.img.mid")


def test_what_was_not_compared_rings_an_alarm(weights):
    found = clean_run(weights, Spoilt("final", lambda x: x[:, :-1]))
    assert len(found.alarms) == 2
    found = clean_run(weights, Failing())
    assert len(found.alarms) == found.checkpoints
    assert found.alarms[0] == "img_in (isolated): skipped"
    assert math.isnan(found.worst)
    assert found.worst_at.startswith("nothing compared")


def planted(weights, **options):
    ports = open_port("reference"), open_port("mlx_impl")
    return list(bench.sensitivity(CASE, "float32", GRAPH, ports, weights, {"transformer": CONFIG}, **options))


def test_planted_noise_is_found_at_its_checkpoint_and_nowhere_else(weights):
    told = []
    found = planted(weights, told=lambda *message: told.append(message))
    assert [one.name for one in found if not one.exact] == []
    assert all(one.floor <= 1e-6 for one in found)
    assert len(found) > 0.9 * len(GRAPH.expected)
    assert told[-1] == ("head", len(GRAPH.expected), len(GRAPH.expected))


def test_noise_below_the_floor_is_not_found(weights):
    found = planted(weights, size=1e-9, stages=("block.00",))
    assert len(found) > 20
    assert {one.found for one in found} == {()}
    assert not any(one.exact for one in found)


def test_only_the_stages_and_floors_that_are_asked_for_are_planted(weights):
    found = planted(weights, stages=("head",))
    assert {one.name for one in found} <= set(GRAPH.names_of("head"))
    assert found
    assert planted(weights, floor=0.0, stages=("head",)) == []


def test_the_ratio_is_taken_round_by_round():
    # The machine becomes ten times slower on the way; b is always twice as fast.
    assert stopwatch.ratio([2, 2, 20, 20, 20], [1, 1, 10, 10, 10]) == 2
    assert stopwatch.ratio([3, 9, 2], [1, 1, 1]) == 3
    assert stopwatch.fastest([3, 1, 2]) == 1
    with pytest.raises(ValueError, match="shorter"):
        stopwatch.ratio([1, 2], [1])


def test_a_timing_that_fails_says_why(tmp_path, monkeypatch):
    with pytest.raises(ParityError, match="timing cobol failed: KeyError: 'cobol'"):
        stopwatch.measure("cobol", tmp_path, ["plain"], repeats=1)
    monkeypatch.setattr(stopwatch.sys, "executable", "false")  # ends without a word, as what is killed does
    with pytest.raises(ParityError, match="timing torch failed: exit code 1"):
        stopwatch.measure("torch", tmp_path, ["plain"], repeats=1)


@pytest.mark.parametrize("command", ["forward", "capture", "clean", "sensitivity"])
@pytest.mark.parametrize(
    ("out", "message"),
    [("there.json", "is there already; --force overwrites it"), (".", "is a folder"), ("no/where.json", "no folder")],
)
def test_a_file_that_cannot_be_written_is_refused_before_measuring(
    tmp_path, monkeypatch, capsys, command, out, message
):
    def measured(*_, **__):
        raise ParityError("measured first")

    monkeypatch.setattr(stopwatch, "measure", measured)
    monkeypatch.setattr("parity.commands.bench.open_model", measured)
    (tmp_path / "there.json").write_text("mine")
    assert call(["bench", command, "--out", str(tmp_path / out)]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert message in streams.err
    assert (tmp_path / "there.json").read_text() == "mine"
    if out == "there.json":
        assert call(["bench", command, "--force", "--out", str(tmp_path / out)]) == 3
        assert "measured first" in capsys.readouterr().err


def test_clean_ends_with_the_number_of_alarms(weights, tmp_path, monkeypatch, capsys):
    command = ["bench", "clean", "--runs", "1", "--weights", str(weights), "--out", str(tmp_path / "clean.json")]
    monkeypatch.setattr(bench, "clean_cases", lambda runs, dtypes: [(CASE, "float32")] * runs)
    assert call(command) == 0
    written = json.loads((tmp_path / "clean.json").read_text())
    assert written["summary"]["alarms"] == 0
    assert written["runs"][0]["checkpoints"] == 2 * len(GRAPH.expected)
    wrong = Spoilt("img_in", lambda x: x + np.float32(1))
    monkeypatch.setattr("parity.commands.bench.open_port", lambda spec: wrong if spec == "wrong" else open_port(spec))
    assert call([*command, "--force", "--candidate", "wrong"]) == 1
    assert json.loads((tmp_path / "clean.json").read_text())["summary"]["alarms"] == 2
    assert "img_in (isolated): diverged" in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_of_capture_is_measured_on_both_sides(tmp_path, capsys):
    assert call(["bench", "capture", "--repeats", "1", "--out", str(tmp_path / "capture.json")]) == 0
    figures = json.loads((tmp_path / "capture.json").read_text())["capture"]
    assert set(figures) == {"torch", "mlx"}
    for side in figures.values():
        assert side["milliseconds"] > 0
        assert 0.1 < side["taps"] < 10
        assert 0.1 < side["statistics"] < 30
    assert "taps, no recorder" in capsys.readouterr().out
