"""Worker processes: all results arrive, what they raise arrives whole, none is waited for in vain."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest
import worker_tasks
from mini import SUITE, write_checkpoint, write_suite

from parity import workers
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
    told, began = [], time.monotonic()
    with pytest.raises(WeightsError):
        workers.run([partial(worker_tasks.linger, 90), worker_tasks.fail], 2, told.append)
    assert time.monotonic() - began < 60
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


# Runs of the real engine in workers, each `parity run` in a process of its own: torch's float32
# matrix products round differently in a process that has loaded MLX's BLAS before torch, as this one has.

SECOND = """
[[case]]
name = "two"
images = [[32, 48], [16, 16]]
text_tokens = [4]
timestep = 0.4
seed = 1
dtypes = ["bfloat16"]
modes = ["isolated", "accumulated"]
"""
STAGES = 2 * 4

# A candidate that takes its time where it is asked to, so that a kill meets it at work.
SLOW = """
import os, time
from mlx_impl.port import MlxPort

class Slow(MlxPort):
    def open(self, *args, **options):
        session = super().open(*args, **options)
        run = session.run
        def late(*args, **options):
            time.sleep(float(os.environ.get("SLOW_SECONDS", 0)))
            return run(*args, **options)
        session.run = late
        return session
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start `parity run` on two units; gives the process and its run folder."""
    folder = tmp_path_factory.mktemp("runs")
    weights, suite = write_checkpoint(folder / "weights"), write_suite(folder, SUITE + SECOND)
    (folder / "slow_port.py").write_text(SLOW)

    def go(out, jobs, seconds=0.0):
        command = [
            sys.executable, "-c", "from parity.cli import main; main()", "run", str(suite), "--weights", str(weights),
            "--candidate", "slow_port:Slow", "--jobs", str(jobs), "--out", str(folder / out),
        ]  # fmt: skip
        # A sum of another number of threads is rounded in another order.
        environment = os.environ | dict.fromkeys(workers.THREADS, "1")
        environment |= {"PYTHONPATH": str(folder), "SLOW_SECONDS": str(seconds)}
        with (folder / f"{out}.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        return process, folder / out

    return go


def finished(start, out, jobs):
    process, folder = start(out, jobs)
    assert process.wait(timeout=120) == 0, folder.with_name(f"{out}.log").read_text()
    return read_run(folder)


@pytest.fixture(scope="module")
def whole(start):
    return finished(start, "whole", 2)


@pytest.mark.slow
def test_units_in_workers_give_the_figures_of_units_in_turn(start, whole):
    in_turn = finished(start, "in-turn", 1)
    assert [(case["name"], case["mode"]) for case in whole["cases"]] == [
        ("one", "isolated"), ("one", "accumulated"), ("two", "isolated"), ("two", "accumulated"),
    ]  # fmt: skip
    assert in_turn["cases"] == whole["cases"]
    hosts = [run["environment"]["host"] for run in (in_turn, whole)]
    assert [host.pop("units_at_once") for host in hosts] == [1, 2]
    assert hosts[0] == hosts[1]


def journal(folder):
    return sum(len(path.read_text().splitlines()) for path in (folder / "work").glob("*.jsonl"))


@pytest.mark.slow
def test_a_killed_run_is_taken_up_by_the_same_command(start, whole):
    parent, folder = start("killed", 2, seconds=0.7)
    children = []
    try:
        end = time.monotonic() + 60
        while journal(folder) < 3:
            assert parent.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        at_kill = journal(folder)
        assert sum("spawn_main" in " ".join(child.cmdline()) for child in children) == 2
        left = psutil.wait_procs(children, timeout=30)[1]
        assert left == []
    finally:
        for process in (parent, *children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert not (folder / "parity.json").exists()
    assert at_kill <= journal(folder) <= at_kill + 2, "each worker ends after the stage in hand"
    assert journal(folder) < STAGES, "the kill came too late to be one"
    assert finished(start, "killed", 2)["cases"] == whole["cases"]
    assert not (folder / "work").exists()
