"""Models named by a hub id: from a cache made by hand, and from a hub that is made up."""

import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from mini import write_checkpoint, write_suite

from parity import hub
from parity.cli import call
from parity.errors import ResourceError, UsageError, WeightsError
from parity.hub import HubId

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = HubId("org/name")


def to_cache(cache: Path, folder: Path, commit=COMMIT, repository="org/name") -> Path:
    """A folder as huggingface_hub keeps it: links of a snapshot to blobs named after their contents."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    write_checkpoint(root / "transformer")
    (root / "model_index.json").write_text('{"_class_name": "QwenImagePipeline"}')
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def online(cache, monkeypatch):
    """Replaces the hub: `files` with sizes, or an error."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def install(files=(), error=None, download=None):
        def model_info(self, repository, **options):
            asked.append((repository, options))
            if error is not None:
                raise error
            siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in dict(files).items()]
            return SimpleNamespace(sha=COMMIT, siblings=siblings)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        if download is not None:
            monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return install


def of_hub(kind, status):
    request = httpx2.Request("GET", "https://huggingface.co/api/models/org/name")
    return kind("an answer\nof several lines", response=httpx2.Response(status, request=request))


def refusal(kind=WeightsError, hub_id=ID, folders=("transformer",)):
    with pytest.raises(kind) as raised:
        hub.snapshot(hub_id, folders, print)
    assert "\n" not in raised.value.message
    assert raised.value.exit_code == 4
    return raised.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name", "main")),
        ("Qwen/Qwen-Image@refs/pr/3", HubId("Qwen/Qwen-Image", "refs/pr/3")),
        (f"o.r-g/n_a.m-e@{COMMIT}", HubId("o.r-g/n_a.m-e", COMMIT)),
        *((text, None) for text in ("name", "./org/name", "/org/name", "a/b/c", "a/b.safetensors")),
        *((text, None) for text in ("../name", "a/..", "a/b@../c")),
    ],
)  # fmt: skip
def test_what_is_a_hub_id(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.parse(text) == expected


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.parse("org/name") is None
    assert hub.parse("org/name@v1") == HubId("org/name", "v1")


def test_only_what_is_needed_is_fetched_and_nothing_that_may_hold_a_pickle():
    files = (
        "README.md", "model_index.json", "pytorch_model.bin", "transformer/config.json", "transformer/a.safetensors",
        "transformer/a.safetensors.index.json", "transformer/a.fp16.safetensors", "transformer/a.bin",
        "vae/x.safetensors", "transformer/old/a.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "tokenizer/run.py",
        "x.safetensors",
    )  # fmt: skip
    assert hub.needed(files, ("transformer", "tokenizer")) == (
        "model_index.json", "transformer/config.json", "transformer/a.safetensors",
        "transformer/a.safetensors.index.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
    )  # fmt: skip
    assert hub.needed(("config.json", "x.safetensors"), ("transformer",)) == ("config.json", "x.safetensors")
    assert hub.needed(("a.gguf",), ("transformer",)) == ()
    with pytest.raises(UsageError, match=r"several single files: a\.safetensors, b.safetensors"):
        hub.needed(("a.safetensors", "b.safetensors"), ("transformer",))


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_offline_a_model_comes_from_the_cache(cache, model, revision):
    snapshot = to_cache(cache, model)
    found = hub.snapshot(HubId("org/name", revision), ("transformer",), print)
    assert found.path == snapshot
    assert found.describe() == {
        "path": f"org/name@{revision}", "repository": "org/name", "revision": revision, "commit": COMMIT,
    }  # fmt: skip


def test_a_run_on_the_cache_records_the_commit(cache, model, tmp_path, capsys):
    to_cache(cache, model)
    argv = ["run", str(write_suite(tmp_path)), "--weights", "org/name", "--out", str(tmp_path / "run"), "--jobs", "1"]
    assert call(argv) == 0, capsys.readouterr().err
    weights = json.loads((tmp_path / "run" / "parity.json").read_text())["weights"]
    assert [weights[key] for key in ("path", "repository", "revision", "commit")] == [
        "org/name@main", "org/name", "main", COMMIT,
    ]  # fmt: skip


def test_weights_check_takes_a_hub_id(cache, model, capsys):
    to_cache(cache, model)
    assert call(["weights", "check", "org/name"]) == 0, capsys.readouterr().err


def test_weights_check_asks_for_the_component_that_is_named(online, model, monkeypatch, capsys):
    wanted = []
    monkeypatch.setattr(
        hub, "snapshot", lambda hub_id, folders, say: wanted.append(folders) or hub.Snapshot(model, ID, COMMIT)
    )
    assert call(["weights", "check", str(ID), "--component", "transformer", "--no-values"]) == 0
    assert call(["weights", "check", str(ID), "--no-values"]) == 0
    assert wanted == [("transformer",), None]


def test_offline_with_nothing_in_the_cache(cache, model):
    assert "HF_HUB_OFFLINE is set: unset it" in refusal()
    to_cache(cache, model)
    assert "neither a folder here nor in the cache" in refusal(hub_id=HubId("org/name", "v2"))
    assert "lacks its vae at commit 0123456789ab" in refusal(folders=("transformer", "vae"))


def test_without_a_network_the_cache_has_to_do(online, cache, model):
    online(error=httpx2.ConnectError("Name or service not known"))
    message = refusal()
    assert "the hub cannot be reached (ConnectError: Name or service not known)" in message
    assert "check the network" in message
    to_cache(cache, model)
    said = []
    assert hub.snapshot(ID, ("transformer",), said.append).commit == COMMIT
    assert "taking commit 0123456789ab from the cache" in said[0]


def test_a_hub_that_is_down_counts_as_none(online, cache):
    online(error=of_hub(errors.HfHubHTTPError, 503))
    assert "the hub answers with 503" in refusal()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (of_hub(errors.GatedRepoError, 403), "gated: accept its terms on its page, then log in with `hf auth login`"),
        (of_hub(errors.RepositoryNotFoundError, 404), "neither a folder here nor a model on the hub"),
        (of_hub(errors.RevisionNotFoundError, 404), "has no revision main; expected a branch, a tag or a commit"),
        (of_hub(errors.HfHubHTTPError, 401), "the hub refuses (401): log in with `hf auth login`"),
        (errors.HFValidationError("Repo id\nmust be"), "is no name of a model: Repo id must be"),
    ],
)
def test_what_the_hub_refuses(online, error, said):
    online(error=error)
    assert said in refusal()


def test_room_is_looked_for_before_anything_is_fetched(online, cache, monkeypatch):
    def download(*_, **__):
        raise AssertionError("fetched")

    online({"transformer/config.json": 1, "transformer/a.safetensors": 40 << 30}, download=download)
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 1 << 30))
    message = refusal(ResourceError)
    assert "40.0 GiB have to be downloaded, 1.0 GiB are free" in message


def test_exactly_the_chosen_files_are_fetched_of_the_revision(online, cache, model):
    calls = []

    def download(repository, **options):
        calls.append((repository, options))
        return str(to_cache(cache, model))

    asked = online(
        {"transformer/config.json": 1, "transformer/a[1].safetensors": 5, "vae/x.safetensors": 9}, download=download
    )
    said = []
    found = hub.snapshot(HubId("org/name", "v1"), ("transformer",), said.append)
    assert asked == [("org/name", {"revision": "v1", "files_metadata": True})]
    assert calls == [
        ("org/name", {
            "revision": "v1", "local_files_only": False,
            "allow_patterns": ["transformer/config.json", "transformer/a[[]1].safetensors"],
        })
    ]  # fmt: skip
    assert found.commit == COMMIT
    assert "fetching 2 files" in said[0]


def test_what_is_cached_is_not_fetched_again(online, cache, model):
    to_cache(cache, model)
    files = {path.relative_to(model).as_posix(): 1 for path in model.rglob("*") if path.is_file()}
    online(files)
    said = []
    assert hub.snapshot(ID, ("transformer",), said.append).commit == COMMIT
    assert said == []


def test_a_download_that_is_cut_off_says_that_it_can_go_on(online):
    def download(*_, **__):
        raise httpx2.ReadTimeout("too slow")

    online({"transformer/a.safetensors": 5}, download=download)
    assert "cut off (the hub cannot be reached (ReadTimeout: too slow)); the same command goes on" in refusal()


def test_a_repository_without_weights(online):
    online({"README.md": 3})
    assert "holds nothing of transformer; found README.md" in refusal()
