"""What the loopback Hub of the tests knows: contents, repositories, faults, and when a card is refused."""

import hashlib
import json
import re
from dataclasses import dataclass, field

import yaml


KNOWN_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "other", "unknown"}


@dataclass(frozen=True)
class Blob:
    """A file's content: git object id, size, and SHA-256 where it is in LFS."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """What identifies the content in a download."""
        return self.sha256 or self.oid


@dataclass
class Repository:
    """Commits, oldest first, as (id, title, files by path), and names of commits."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, Blob]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # LFS objects of all commits

    def resolve(self, revision: str) -> str | None:
        """Commit id of a branch, a tag, or (the beginning of) a commit id."""
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or next((oid for oid, _, _ in self.commits if oid.startswith(revision)), None)

    def files(self, commit: str) -> dict[str, Blob]:
        """Files of a commit."""
        return next(files for oid, _, files in self.commits if oid == commit)

    def add_commit(self, title: str, files: dict[str, Blob], branch: str) -> str:
        """Append a commit and move the branch to it."""
        text = json.dumps([len(self.commits), title, sorted((path, blob.oid) for path, blob in files.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((oid, title, files))
        self.branches[branch] = oid
        return oid


@dataclass
class Fault:
    """What goes wrong, how often, and with which requests.

    Args:
        method: HTTP method; "LOST" carries a commit out and loses the answer.
        pattern: regular expression that the path has to contain.
        status: error status to answer; None cuts the connection.
        after: bytes of the body that pass before the cut.
        times: requests that it happens to.
    """

    method: str
    pattern: str
    status: int | None = None
    after: int = 0
    times: int = 1


def card_problems(content: str) -> list[str]:
    """What the Hub would refuse in a card: no metadata, an unknown licence, or results that lack a part."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not match:
        return ["the card has no metadata block"]
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"the metadata are not YAML: {error}"]
    problems = []
    if metadata.get("license", "unknown") not in KNOWN_LICENSES:
        problems.append(f'"license" must be one of {sorted(KNOWN_LICENSES)}, got {metadata.get("license")!r}')
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        problems.append('"license: other" needs "license_name"')
    for entry in metadata.get("model-index") or []:
        for result in entry["results"]:
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not result.get(path[0], {}).get(path[1]):
                    problems.append(f"a result lacks {'.'.join(path)}")
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("value"), (int, float)) or not metric.get("type"):
                    problems.append(f"a metric lacks its type or a plain number: {metric}")
    return problems


class HubError(Exception):
    """An answer of the Hub that says what is wrong."""

    def __init__(self, status: int, code: str | None, message: str, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class CutConnection(Exception):
    """Close the connection without a word."""
