"""A result is there whole or not at all, whatever happens while it is made."""

import fcntl
import os
import shutil

import pytest

from parity.errors import OutputExistsError, ResourceError, UsageError
from parity.staging import check_room, staged


def write(final, force=False, file="config.json", content="new", said=None, error=None):
    with staged(final, force, (said if said is not None else []).append) as folder:
        (folder / file).write_text(content)
        if error is not None:
            raise error


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_takes_its_name_at_the_end(tmp_path):
    with staged(tmp_path / "out", False, print) as folder:
        (folder / "a.safetensors").write_text("x")
        assert names(tmp_path) == [".out.parity-partial"]
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a.safetensors"]


def test_a_single_file_takes_its_name_at_the_end(tmp_path):
    write(tmp_path / "one.safetensors", file="one.safetensors")
    assert names(tmp_path) == ["one.safetensors"]
    assert (tmp_path / "one.safetensors").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    with pytest.raises(error):
        write(tmp_path / "out", error=error())
    assert names(tmp_path) == []


def test_what_is_there_is_replaced_only_by_force(tmp_path):
    write(tmp_path / "out", content="old")
    with pytest.raises(OutputExistsError, match="--force replaces it"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    write(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_force_replaces_nothing_but_weights(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex', which no conversion wrote"):
        write(tmp_path / "out", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="is a link"):
        write(tmp_path / "link", force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_what_a_killed_process_left_is_removed_and_said(tmp_path):
    (tmp_path / ".out.parity-partial" / "vae").mkdir(parents=True)
    (tmp_path / ".out.parity-partial" / "0.safetensors").write_text("half")
    said = []
    write(tmp_path / "out", said=said)
    assert len(said) == 1
    assert "which a conversion that was cut off has left" in said[0]
    assert names(tmp_path / "out") == ["config.json"]


def test_what_a_kill_between_the_renames_moved_away_is_put_back(tmp_path):
    write(tmp_path / "out", content="old")
    os.rename(tmp_path / "out", tmp_path / ".out.parity-old")
    said = []
    with pytest.raises(OutputExistsError):
        write(tmp_path / "out", said=said)
    assert "putting back" in said[0]
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    shutil.copytree(tmp_path / "out", tmp_path / ".out.parity-old")
    write(tmp_path / "out", force=True)
    assert names(tmp_path) == ["out"]


def test_two_processes_do_not_write_the_same(tmp_path):
    (tmp_path / ".out.parity-partial").mkdir()
    other = os.open(tmp_path / ".out.parity-partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another process is writing"):
        write(tmp_path / "out")
    os.close(other)
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_there_must_be_a_folder_and_room(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no folder"):
        write(tmp_path / "no" / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 10**9))
    check_room(tmp_path, 10**9)
    with pytest.raises(ResourceError, match=r"1\.1 GB are needed, 1\.0 GB are free"):
        check_room(tmp_path, 1_100_000_000)
