"""To the Hub and back: one commit, a tag, and a download that is compared with what was meant."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from safetensors import safe_open

from training.storage.manifest import differences

from .bundle import Bundle


ATTEMPTS = 4
FIRST_PAUSE = 1.0  # seconds before the second attempt; doubled for every further one
HUB_FILES = (".gitattributes",)  # made by the Hub itself
# The base error of the Hub client's HTTP library, which is httpx or httpx2, according to the client's release.
HTTPError: type[Exception] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")

Result = TypeVar("Result")


def publish(bundle: Bundle, repo_id: str, private: bool = False, tag: str | None = None, update: bool = False) -> str:
    """Upload a bundle as one commit, tag it, download it again and compare everything.

    Args:
        bundle (`Bundle`): the content.
        repo_id (`str`): `ORG/NAME`; created if it does not exist.
        private (`bool`): make a new repository private; an existing one must be.
        tag (`str`, *optional*): tag for the commit.
        update (`bool`): let an existing repository get another content.

    Returns:
        Id of the commit.

    Raises:
        ValueError: no token or a wrong one, a repository with other content, a public one where a private was asked
            for, a tag that is taken, or a download that differs.
    """
    token = get_token()
    if token is None:
        raise ValueError("You are not logged in: run `hf auth login`, or set HF_TOKEN to a token with write access.")
    try:
        return _publish(HfApi(), bundle, repo_id, private, tag, update)
    except HTTPError as error:
        raise ValueError(_explain(error, repo_id).replace(token, "***")) from None


def _explain(error: Exception, repo_id: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = str(error).strip().split("\n")[0]
    if status in (401, 403):
        return (
            f"The Hub refuses the token for {repo_id} ({status}): log in again with `hf auth login`, with a token "
            "that may write there."
        )
    return f"The Hub could not be reached or did not accept {repo_id} after {ATTEMPTS} attempts: {reason}"


def _publish(api: HfApi, bundle: Bundle, repo_id: str, private: bool, tag: str | None, update: bool) -> str:
    repo_type = bundle.repo_type
    try:
        info = _retry(lambda: api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        # Not an error if it exists by now: an attempt whose answer got lost may have made it.
        _retry(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True))
        info = _retry(lambda: api.repo_info(repo_id, repo_type=repo_type))
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public; --private cannot hide it. Make it private on its page first."
        )
    hashes = {path: _hashes(content) for path, content in bundle.files.items()}
    others = _differences(api, repo_id, repo_type, "main", hashes)
    theirs = [path for path, change in others.items() if change != "new"]
    if theirs and not update:
        raise ValueError(
            f"{repo_id} exists already with other content ({', '.join(theirs[:5])}{', ...' if theirs[5:] else ''}). "
            "Choose another name, or replace its content with --update; earlier revisions stay."
        )
    tagged = tag is not None and _is_tagged(api, repo_id, repo_type, tag, hashes)
    commit = _commit(api, repo_id, bundle, hashes) if others else str(info.sha)
    if tag is not None and not tagged:
        _retry(lambda: _tag(api, repo_id, repo_type, tag, commit))
    compare_download(bundle, repo_id, tag or commit)
    return commit


def _is_tagged(api: HfApi, repo_id: str, repo_type: str, tag: str, hashes: dict[str, tuple[str, str]]) -> bool:
    """Whether the tag exists with this very content; before anything is uploaded."""
    tags = _retry(lambda: api.list_repo_refs(repo_id, repo_type=repo_type)).tags
    if tag not in [entry.name for entry in tags]:
        return False
    if _differences(api, repo_id, repo_type, tag, hashes):
        raise ValueError(
            f"The tag {tag} of {repo_id} exists with other content, and tags are never moved: choose another."
        )
    return True


def _tag(api: HfApi, repo_id: str, repo_type: str, tag: str, commit: str) -> None:
    # After a lost answer the tag exists, for the same commit: nobody else had it a moment ago.
    api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repo_type, exist_ok=True)


def _commit(api: HfApi, repo_id: str, bundle: Bundle, hashes: dict[str, tuple[str, str]]) -> str:
    """One commit that makes the repository's content the bundle's; safe to repeat."""

    def attempt() -> str:
        # Looked up anew in every attempt: a commit whose answer got lost must not be made twice.
        changes = _differences(api, repo_id, bundle.repo_type, "main", hashes)
        head = str(api.repo_info(repo_id, repo_type=bundle.repo_type).sha)
        if not changes:
            return head
        operations: list[Any] = [
            CommitOperationDelete(path) if change == "gone" else CommitOperationAdd(path, _content(bundle.files[path]))
            for path, change in changes.items()
        ]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=f"Publish {bundle.kind}",
            repo_type=bundle.repo_type,
            parent_commit=head,
        ).oid

    return _retry(attempt)


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _hashes(content: Path | bytes) -> tuple[str, str]:
    """SHA-256, and git's object id, of a content."""
    whole = hashlib.sha256()
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    git = hashlib.sha1(f"blob {size}\0".encode())
    if isinstance(content, bytes):
        whole.update(content)
        git.update(content)
    else:
        with content.open("rb") as file:
            while chunk := file.read(1 << 22):
                whole.update(chunk)
                git.update(chunk)
    return whole.hexdigest(), git.hexdigest()


def _differences(
    api: HfApi, repo_id: str, repo_type: str, revision: str, hashes: dict[str, tuple[str, str]]
) -> dict[str, str]:
    """Path -> "new" (only here), "changed" or "gone" (only there)."""
    entries = _retry(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)))
    remote = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    found = {path: "new" for path in hashes if path not in remote}
    found |= {path: "changed" for path in hashes if path in remote and remote[path] not in hashes[path]}
    return found | {path: "gone" for path in remote if path not in hashes and path not in HUB_FILES}


def compare_download(bundle: Bundle, repo_id: str, revision: str) -> None:
    """Download a revision anew and compare every file, and every tensor in it.

    Raises:
        ValueError: something differs or is missing.
    """
    with TemporaryDirectory() as folder:
        _retry(
            lambda: snapshot_download(
                repo_id, repo_type=bundle.repo_type, revision=revision, local_dir=folder, max_workers=2
            )
        )
        changed = differences(Path(folder), again=True)
        if changed:
            raise ValueError(f"{repo_id} at {revision}: {changed[0]} after the download.")
        for path, content in bundle.files.items():
            downloaded = Path(folder) / path
            if not downloaded.is_file() or _hashes(downloaded) != _hashes(content):
                raise ValueError(f"{repo_id} at {revision}: {path} is missing or differs from what was uploaded.")
            if isinstance(content, Path) and path.endswith(".safetensors"):
                _compare_tensors(content, downloaded)


def _compare_tensors(ours: Path, theirs: Path) -> None:
    """Raise `ValueError` at the first tensor that differs; one pair is in memory at a time."""
    with safe_open(ours, framework="pt") as mine, safe_open(theirs, framework="pt") as other:
        if set(mine.keys()) != set(other.keys()):
            raise ValueError(f"{ours.name}: the downloaded file has other tensors.")
        for name in mine.keys():  # noqa: SIM118 (not a dictionary)
            first, second = mine.get_tensor(name), other.get_tensor(name)
            # Bit by bit, since NaN differs from itself.
            if first.dtype != second.dtype or not torch.equal(
                first.contiguous().reshape(-1).view(torch.uint8), second.contiguous().reshape(-1).view(torch.uint8)
            ):
                raise ValueError(f"{ours.name}: the tensor {name} differs after the download.")


def _retry(action: Callable[[], Result]) -> Result:
    """Run an action, again after a cut connection or a server's error; what the Hub refuses is not repeated."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except (OSError, HTTPError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            refused = status is not None and 400 <= status < 500 and status not in (408, 412, 429)
            if refused or attempt == ATTEMPTS - 1:
                raise
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")
