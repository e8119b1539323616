"""Worker processes: all results arrive, what they raise arrives whole, none is waited for in vain."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import worker_tasks
from mini import SUITE, write_checkpoint, write_suite

from parity import workers
from parity.cli import call
from parity.errors import ParityError, WeightsError
from parity.runfolder import read_run

pytestmark = pytest.mark.timeout(120)


def run(*tasks, jobs=2):
    told = []
    workers.run(list(tasks), jobs, told.append)
    return told


def test_everything_that_is_told_arrives_in_each_tasks_own_order():
    told = run(*(partial(worker_tasks.count, start, start + 50) for start in (0, 100, 200, 300)))
    assert sorted(told) == [start + i for start in (0, 100, 200, 300) for i in range(50)]
    for start in (0, 100, 200, 300):
        of_task = [n for n in told if start <= n < start + 50]
        assert of_task == sorted(of_task)


def test_more_workers_than_tasks_and_no_task_at_all():
    assert run(partial(worker_tasks.count, 0, 3), jobs=3) == [0, 1, 2]
    assert run() == []


def test_tasks_of_more_than_a_pipe_holds():
    tasks = [partial(worker_tasks.heavy, bytes(8192), number) for number in range(40)]
    assert sorted(run(*tasks)) == [(number, 8192) for number in range(40)]


def test_an_error_of_the_toolkit_arrives_whole():
    with pytest.raises(WeightsError, match="the shard is cut off") as raised:
        run(worker_tasks.fail)
    assert raised.value.details == ("missing: a", "extra: b")
    assert raised.value.exit_code == 4


def test_any_other_error_arrives_with_its_traceback():
    with pytest.raises(ParityError, match="a worker failed") as raised:
        run(worker_tasks.stumble)
    assert raised.value.exit_code == 3
    assert any("in stumble" in line for line in raised.value.details)
    assert raised.value.details[-1] == "KeyError: 'no such key'"


def test_a_value_that_cannot_be_sent_is_an_error():
    with pytest.raises(ParityError, match="a worker failed") as raised:
        run(worker_tasks.unspeakable)
    assert "pickle" in raised.value.details[-1].lower()


def test_a_task_that_leaves_the_process_is_an_error():
    with pytest.raises(ParityError, match="a worker failed") as raised:
        run(worker_tasks.leave, jobs=1)
    assert raised.value.details[-1] == "SystemExit: 0"


@pytest.mark.parametrize("beside", [(), (partial(worker_tasks.chatter, 90),)], ids=["alone", "beside a busy one"])
def test_a_worker_that_is_killed_is_reported_within_seconds(beside):
    began = time.monotonic()
    with pytest.raises(ParityError, match=r"a worker process died \(exit code -9; .* resumes the run"):
        run(worker_tasks.die, *beside)
    assert time.monotonic() - began < 20


def test_workers_that_all_ended_without_a_word_are_not_waited_for():
    with pytest.raises(ParityError, match=r"a worker process died \(exit code 0;"):
        run(worker_tasks.vanish, jobs=1)


def test_after_an_error_no_worker_is_left():
    told = []
    with pytest.raises(WeightsError):
        workers.run([partial(worker_tasks.linger, 90), worker_tasks.fail], 2, told.append)
    # The one that lingers may have been ended before it had begun.
    assert not [pid for pid in told if isinstance(pid, int) and psutil.pid_exists(pid)]
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_the_cores_are_shared_among_the_workers_and_our_own_environment_is_as_before(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    for name in workers.THREADS:
        monkeypatch.delenv(name, raising=False)
    told = run(partial(worker_tasks.environment, *workers.THREADS))
    assert [found for _, found in told] == [dict.fromkeys(workers.THREADS, "3")]
    assert told[0][0] != os.getpid()
    assert not set(workers.THREADS) & set(os.environ)


def test_a_number_of_threads_that_the_user_gave_stays(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    [(_, found)] = run(partial(worker_tasks.environment, "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    assert found == {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "3"}
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_every_worker_has_at_least_one_thread(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    [(_, found)] = run(partial(worker_tasks.environment, "OMP_NUM_THREADS"))
    assert found == {"OMP_NUM_THREADS": "1"}


# Runs of the real engine in workers.

SECOND = """
[[case]]
name = "two"
images = [[32, 48], [16, 16]]
text_tokens = [4]
timestep = 0.4
seed = 1
dtypes = ["float32", "bfloat16"]
modes = ["isolated", "accumulated"]
"""

# A candidate that takes its time, so that a kill meets it at work.
SLOW = """
import os, time
from mlx_impl.port import MlxPort

class Slow(MlxPort):
    def open(self, *args, **options):
        session = super().open(*args, **options)
        run = session.run
        def late(*args, **options):
            time.sleep(float(os.environ["SLOW_SECONDS"]))
            return run(*args, **options)
        session.run = late
        return session
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.mark.slow
def test_units_in_workers_give_the_figures_of_units_in_turn(tmp_path, weights, capsys):
    suite = write_suite(tmp_path, SUITE + SECOND)
    for jobs in ("1", "2"):
        out = str(tmp_path / jobs)
        assert call(["run", str(suite), "--weights", str(weights), "--out", out, "--jobs", jobs]) == 0
    one, two = read_run(tmp_path / "1"), read_run(tmp_path / "2")
    assert len(one["cases"]) == 6
    assert one["cases"] == two["cases"]
    assert one["environment"]["host"].pop("units_at_once") == 1
    assert two["environment"]["host"].pop("units_at_once") == 2
    assert one["environment"]["host"] == two["environment"]["host"]
    capsys.readouterr()


def journal(folder):
    return sum(len(path.read_text().splitlines()) for path in (folder / "work").glob("*.jsonl"))


@pytest.mark.slow
def test_a_killed_run_is_taken_up_by_the_same_command(tmp_path, weights):
    suite = write_suite(tmp_path, SUITE + SECOND)
    (tmp_path / "slow_port.py").write_text(SLOW)

    def command(out):
        return [
            sys.executable, "-c", "from parity.cli import main; main()", "run", str(suite), "--weights", str(weights),
            "--candidate", "slow_port:Slow", "--jobs", "2", "--out", str(tmp_path / out),
        ]  # fmt: skip

    def environment(seconds):
        return os.environ | {"PYTHONPATH": str(tmp_path), "SLOW_SECONDS": seconds}

    def whole(out):
        done = subprocess.run(command(out), env=environment("0"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return read_run(tmp_path / out)["cases"]

    parent = subprocess.Popen(
        command("killed"), env=environment("0.7"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    workers_of = []
    try:
        end = time.monotonic() + 60
        while journal(tmp_path / "killed") < 3:
            assert parent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        workers_of = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        at_kill = journal(tmp_path / "killed")
        assert sum("spawn_main" in " ".join(w.cmdline()) for w in workers_of if w.is_running()) == 2
        _, left = psutil.wait_procs(workers_of, timeout=30)
        assert left == []
    finally:
        for process in [parent, *workers_of]:
            if process.poll() is None if process is parent else process.is_running():
                process.kill()
    assert not (tmp_path / "killed" / "parity.json").exists()
    at_end = journal(tmp_path / "killed")
    assert at_kill <= at_end <= at_kill + 2, "each worker ends after the stage in hand"
    assert at_end < 3 * 4, "the kill came too late to be one"
    lines = [json.loads(line) for path in (tmp_path / "killed" / "work").glob("*.jsonl") for line in path.open()]
    assert len(lines) == at_end
    assert whole("killed") == whole("whole")
    assert not (tmp_path / "killed" / "work").exists()
