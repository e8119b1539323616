"""``parity bench stream``: what it measures is what the run wrote, and a port that is off makes it fail."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from mini import write_checkpoint

from parity import bench_stream, model_folder
from parity.cli import call
from parity.errors import ParityError, PreconditionError, UsageError

BROKEN = """\
from mlx_impl.port import MlxPort


class Port(MlxPort):
    def open(self, *args, **options):
        session = super().open(*args, **options)
        run = session.run

        def off(stage, state, want, **more):
            after, values = run(stage, state, want, **more)
            return after, {name: value * 2 if name == "final" else value for name, value in values.items()}

        session.run = off
        return session
"""


@pytest.fixture
def weights(tmp_path):
    return str(write_checkpoint(tmp_path / "weights"))


def stream(weights, *more):
    return call(["bench", "stream", "--weights", weights, "--size", "64", "--draws", "1", *more])


def test_a_run_is_measured_in_a_process_of_its_own(tmp_path, weights, capsys):
    out = tmp_path / "figures.json"
    assert stream(weights, "--size", "32", "--out", str(out)) == 0
    table = capsys.readouterr().out
    assert "64 × 64" in table
    assert "32 × 32" in table
    assert "not quantized" in table
    large, small = json.loads(out.read_text())["runs"]
    assert [run["setting"]["size"] for run in (large, small)] == [64, 32]
    for run in (large, small):
        assert run["verdict"] == "parity"
        assert run["compared"] == run["expected"] > 50
        assert 0 < run["worst"] <= 3
        # Both frameworks are in it, and nothing of this process.
        assert 200 << 20 < run["peak_bytes"] < 2 << 30
        spent = run["spent"]
        assert 0 < sum(spent[f"{side}.run"] for side in ("truth", "reference", "candidate")) <= spent["stage"]
        assert spent["stage"] < run["seconds"] + 1
        # At rates measured anew for each run; that more work takes longer is tested at given ones.
        assert run["arithmetic"] > 0


def test_a_port_that_is_off_makes_it_fail(tmp_path, weights, monkeypatch, capsys):
    (tmp_path / "broken_stream_port.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert stream(weights, "--candidate", "broken_stream_port:Port") == 1
    assert "divergence" in capsys.readouterr().out


def test_mistakes_are_seen_before_anything_is_run(weights, monkeypatch, capsys):
    monkeypatch.setattr(bench_stream.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    assert call(["bench", "stream", "--weights", weights, "--size", "100"]) == 2
    assert "100 × 100 is not a multiple of 16" in capsys.readouterr().err
    assert call(["bench", "stream", "--weights", weights, "--draws", "0"]) == 2
    assert stream(weights, "--candidate", "no_such_port") == 2
    assert "no_such_port" in capsys.readouterr().err
    assert call(["bench", "stream", "--weights", weights, "--out", "nowhere/x.json"]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (3, ParityError), (4, PreconditionError)])
def test_a_run_that_fails_says_why(weights, monkeypatch, code, kind):
    commands = []

    def fail(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=code, stderr="note: x\nerror: no room\n")

    monkeypatch.setattr(bench_stream.subprocess, "run", fail)
    setting = bench_stream.Setting(64, "bfloat16", "float32", 1)
    with pytest.raises(kind, match="the streamed run failed: no room") as raised:
        bench_stream.run(setting, Path(weights), model_folder.inspect(Path(weights)), "mlx_impl")
    assert type(raised.value) is kind
    (command,) = commands
    asked = dict(pairwise(command))
    assert (asked["--truth"], asked["--weights"], asked["--candidate"]) == ("float32", weights, "mlx_impl")
