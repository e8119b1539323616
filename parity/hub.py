"""Models on a hub, named ``org/name`` or ``org/name@revision``: found in the cache, or downloaded into it.

huggingface_hub does the work and says where its cache is (``HF_HOME``, ``HF_HUB_CACHE``), whether it may use the
network (``HF_HUB_OFFLINE``) and who one is (``hf auth login``). Here: which files are needed, whether there is room
for them, and what a failure means in one line. Nothing that could hold a pickle is ever fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.disk import free_on, room_for
from parity.errors import ParityError, ResourceError, UsageError, WeightsError
from parity.safetensors_header import shown

# Folders of a pipeline; what a command does not name is not fetched.
FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "processor")
DEFAULT_REVISION = "main"
# Of a component's folder: configs, indices and tokenizers, and weights without code in them.
_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
_ROOT = ("model_index.json", "config.json")
# The same weights a second time, in another precision.
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)\.")
_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)(?:@(?P<revision>[A-Za-z0-9][\w.\-]*(?:/[\w.\-]+)*))?"
)
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


@dataclass(frozen=True)
class HubId:
    """A model on a hub."""

    repository: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Snapshot:
    """A model's files as they are at one commit.

    Attributes:
        path: what ports are given: the snapshot's folder, or the single file it consists of.
        hub_id: what was asked for.
        commit: what that meant.
    """

    path: Path
    hub_id: HubId
    commit: str

    def describe(self) -> dict[str, str]:
        """For the key ``weights`` of ``parity.json``."""
        about = {"repository": self.hub_id.repository, "revision": self.hub_id.revision, "commit": self.commit}
        return {"path": str(self.hub_id)} | about


def parse(text: str) -> HubId | None:
    """A hub id; None for what is a path, because it is there or because it can't be anything else."""
    match = _ID.fullmatch(text)
    if match is None or Path(text).exists() or text.endswith(".safetensors") or ".." in text:
        return None
    return HubId(match["repository"], match["revision"] or DEFAULT_REVISION)


def snapshot(hub_id: HubId, folders: Iterable[str] | None, say: Callable[[str], None]) -> Snapshot:
    """The needed files of a model, downloaded where they are not in the cache yet.

    Args:
        hub_id: which model.
        folders: the components that are needed; None for those that there are.
        say: told what is fetched, and when the cache has to do.

    Raises:
        WeightsError: not found, gated, no such revision, the hub can't be reached, nothing in the cache.
        ResourceError: no room for what has to be downloaded.
    """
    from huggingface_hub import constants

    asked = None if folders is None else tuple(folders)
    folders = FOLDERS if asked is None else asked
    if constants.HF_HUB_OFFLINE:
        return _from_cache(hub_id, asked, "HF_HUB_OFFLINE is set: unset it to download")
    try:
        info = _listing(hub_id)
    except WeightsError:
        raise
    except Exception as error:
        why = _unreachable(error)
        if why is None:
            raise
        found = _from_cache(
            hub_id, asked, f"{why}; check the network, HF_ENDPOINT and the proxy settings, or name a folder"
        )
        say(f"{hub_id}: {why}; taking commit {found.commit[:12]} from the cache")
        return found
    files = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    chosen = needed(tuple(files), folders)
    if not chosen:
        raise WeightsError(f"{hub_id} holds nothing of {', '.join(folders)}; found {_some(files)}")
    return _fetched(hub_id, info.sha, {name: files[name] for name in chosen}, say)


def needed(files: Sequence[str], folders: Iterable[str]) -> tuple[str, ...]:
    """Which of a repository's files are fetched for some components; the order is the repository's.

    Raises:
        UsageError: there are several single files and no folders, so that only the user can choose.
    """
    plain = {_VARIANT.sub(".", name) for name in files if not _VARIANT.search(name)}
    usable = [
        name
        for name in files
        if name.endswith(_SUFFIXES) and not (_VARIANT.search(name) and _VARIANT.sub(".", name) in plain)
    ]
    folders = tuple(folders)
    chosen = {name for name in usable if name.count("/") == 1 and name.partition("/")[0] in folders}
    if "." in folders:  # the model's own folder
        chosen |= {name for name in usable if "/" not in name}
    if "transformer" in folders and not any(name.startswith("transformer/") for name in chosen):
        at_root = [name for name in usable if "/" not in name]
        singles = [name for name in at_root if name.endswith(".safetensors")]
        if len(singles) > 1 and not any(name.endswith(".safetensors.index.json") for name in at_root):
            raise UsageError(f"it holds several single files: {_some(singles)}; download one and name its path")
        chosen |= set(singles) | {name for name in at_root if name.endswith(".index.json")}
    return tuple(name for name in files if name in chosen | set(_ROOT)) if chosen else ()


def _listing(hub_id: HubId) -> Any:
    """What the hub says of a model: commit, files and sizes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi().model_info(hub_id.repository, revision=hub_id.revision, files_metadata=True)
    except HFValidationError as error:
        raise WeightsError(f"{hub_id} is no name of a model: {_one_line(error)}") from None
    except HfHubHTTPError as error:
        refused = _refused(hub_id, error)
        if refused is None:
            raise
        raise refused from None


def _refused(hub_id: HubId, error: Exception) -> WeightsError | None:
    """What an answer of the hub means; None for one that has to do with the hub's own state."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return WeightsError(
            f"{hub_id.repository} is gated: accept its terms on its page, then log in with `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return WeightsError(
            f"{hub_id.repository}: neither a folder here nor a model on the hub, or a private one: check the spelling, "
            "or log in with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(
            f"{hub_id.repository} has no revision {hub_id.revision}; expected a branch, a tag or a commit"
        )
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return WeightsError(f"{hub_id}: the hub refuses ({status}): log in with `hf auth login`")
    return None


def _unreachable(error: Exception) -> str | None:
    """Why the hub did not answer, in a few words; None for an error of another kind."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the hub answers with {status}"
    network = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0] in _NETWORK
    return f"the hub cannot be reached ({type(error).__name__}: {_one_line(error)})" if network else None


def _fetched(hub_id: HubId, commit: str, sizes: Mapping[str, int], say: Callable[[str], None]) -> Snapshot:
    """The snapshot with these files in it; what is cached already is not fetched again."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    lacking = {
        name: size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(hub_id.repository, name, revision=commit), str)
    }
    patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in sizes]
    total = sum(lacking.values())
    if lacking:
        _check_room(hub_id, Path(constants.HF_HUB_CACHE), total)
        say(f"{hub_id}: fetching {len(lacking)} files, {total / 2**30:,.2f} GiB, of commit {commit[:12]}")
    try:
        with room_for(Path(constants.HF_HUB_CACHE) / "hub"):
            root = snapshot_download(
                hub_id.repository,
                # By its name, so that the cache knows it by that as well.
                revision=hub_id.revision if lacking else commit,
                allow_patterns=patterns,
                local_files_only=not lacking,
            )
    except ParityError:
        raise
    except HfHubHTTPError as error:
        raise _refused(hub_id, error) or WeightsError(f"{hub_id}: {_unreachable(error)}; try again later") from None
    except Exception as error:
        why = _unreachable(error)
        if why is None and not isinstance(error, FileNotFoundError):
            raise
        what = why or _one_line(error)
        raise WeightsError(f"{hub_id}: the download was cut off ({what}); the same command goes on") from None
    return _snapshot(hub_id, Path(root), tuple(sizes))


def _from_cache(hub_id: HubId, asked: tuple[str, ...] | None, why: str) -> Snapshot:
    """What was downloaded before.

    Raises:
        WeightsError: nothing was, or not all of what is needed; `why` says what keeps us from downloading it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where, folders = f"the cache {constants.HF_HUB_CACHE}", FOLDERS if asked is None else asked
    try:
        root = Path(
            snapshot_download(
                hub_id.repository,
                revision=hub_id.revision,
                local_files_only=True,
                allow_patterns=[f"{folder}/*{suffix}".removeprefix("./") for folder in folders for suffix in _SUFFIXES],
            )
        )
    except LocalEntryNotFoundError:
        raise WeightsError(f"{hub_id}: neither a folder here nor in {where}, and {why}") from None
    there = tuple(path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    chosen = needed(there, folders)
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    # Of a model that is a single file, or one component's folder, what was chosen is the transformer.
    if not chosen or (asked is not None and set(missing) - {"transformer"}):
        raise WeightsError(f"{hub_id}: {where} lacks its {', '.join(missing)} at commit {root.name[:12]}, and {why}")
    return _snapshot(hub_id, root, chosen)


def _snapshot(hub_id: HubId, root: Path, files: Sequence[str]) -> Snapshot:
    weights = [name for name in files if name.endswith(".safetensors")]
    alone = len(weights) == 1 and "/" not in weights[0] and "config.json" not in files
    return Snapshot(root / weights[0] if alone else root, hub_id, root.name)


def _check_room(hub_id: HubId, cache: Path, need: int) -> None:
    free = free_on(cache)
    if free < need:
        raise ResourceError(
            f"{hub_id}: {need / 2**30:,.1f} GiB have to be downloaded, {free / 2**30:,.1f} GiB are free in {cache}; "
            "free some, or set HF_HUB_CACHE to a folder on another disk"
        )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(map(shown, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def _one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))
