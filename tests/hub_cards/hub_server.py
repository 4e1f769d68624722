"""A Hub on loopback for tests: enough of the Hugging Face Hub's HTTP interface for the real clients.

Repositories with commits, branches and tags, Git LFS uploads in one or several parts, downloads with ranges and ETags,
private repositories with tokens, and faults on request (a cut connection, an error status). Standard library only.
"""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_cards.hub_state import Blob, CutConnection, Fault, HubError, Repository, card_problems
from tests.hub_cards.hub_uploads import Uploads


CHUNK = 1 << 20
TYPES = {"models": "model", "datasets": "dataset"}


class HubServer(ThreadingHTTPServer):
    """The server's state, shared by its threads."""

    daemon_threads = True

    def __init__(self, folder: Path, tokens: dict[str, str], part_size: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.tokens = tokens
        self.part_size = part_size
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        """Address for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def path_of(self, identifier: str) -> Path:
        """Where a content is stored."""
        return self.folder / identifier

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault that hits this request, if any; it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def content(self, kind: str, name: str, path: str, revision: str = "main") -> bytes:
        """A file in a repository, to look at in a test."""
        repository = self.repositories[kind, name]
        return self.path_of(repository.files(repository.resolve(revision))[path].etag).read_bytes()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, on purpose here, is no news."""


@contextmanager
def running_hub(folder: Path, tokens: dict[str, str], part_size: int | None = None) -> Iterator[HubServer]:
    """A server in a thread of this process, for the duration of a `with`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = HubServer(folder, tokens, part_size)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(Uploads, BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    fault: Fault | None

    # Method and path -> name of the method that answers. REPO stands for kind and name.
    ROUTES: ClassVar[list[tuple[str, str, str]]] = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/REPO/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/REPO/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/REPO/tag/(?P<revision>[^/]+)", "tag"),
        ("POST", r"/api/REPO/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", r"/api/REPO/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", r"/api/REPO/refs", "refs"),
        ("GET", r"/api/REPO/commits/(?P<revision>[^/]+)", "history"),
        ("GET", r"/api/REPO/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
        ("GET", r"/api/REPO/revision/(?P<revision>[^/]+)", "info"),
        ("GET", r"/api/REPO", "info"),
        ("POST", r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", "lfs_put"),
        ("POST", r"/_lfs/(?P<oid>[0-9a-f]{64})/(?P<step>complete|verify)", "lfs_finish"),
        (
            "HEAD",
            r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
            "resolve",
        ),
        ("GET", r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def log_message(self, *arguments: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.server.requests.append((self.command, url.path, self.headers.get("Range")))
        self.fault = self.server.next_fault(self.command, url.path)
        try:
            if self.fault is not None and self.fault.status is not None:
                self._read_body()
                raise HubError(self.fault.status, None, "fault on request")
            for method, pattern, name in self.ROUTES:
                full = pattern.replace("REPO", r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)")
                match = re.fullmatch(full, url.path)
                if method == self.command and match:
                    parts = {key: value and unquote(value) for key, value in match.groupdict().items()}
                    getattr(self, f"_{name}")(**parts)
                    return
            self._read_body()
            raise HubError(404, None, f"no such route: {self.command} {url.path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            if error.commit:
                headers["X-Repo-Commit"] = error.commit
            self._json({"error": error.message}, error.status, headers)
        except (CutConnection, ConnectionError):
            self.close_connection = True

    # Reading and writing

    def _chunks(self) -> Iterator[bytes]:
        """The request's body; a cut fault ends it early, and the connection with it."""
        left = self.fault.after if self.fault is not None and self.fault.status is None else None
        for chunk in self._raw_chunks():
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise CutConnection
            yield chunk

    def _raw_chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                raise CutConnection
            left -= len(chunk)
            yield chunk

    def _read_body(self) -> bytes:
        body = b"".join(self._chunks())
        if self.fault is not None and self.fault.status is None and self.command == "POST":
            raise CutConnection
        return body

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what

    def _user(self, needed: bool = False) -> str | None:
        header = self.headers.get("Authorization")
        if header is None:
            if needed:
                raise HubError(401, None, "Authentication is needed")
            return None
        user = self.server.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return user

    def _repository(self, kind: str | None, name: str, write: bool = False) -> Repository:
        user = self._user()
        repository = self.server.repositories.get((TYPES[kind or "models"], name))
        if repository is None or (repository.private and user is None):
            raise HubError(404 if user else 401, "RepoNotFound", "Repository not found")
        if write:
            self._user(needed=True)
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # Routes

    def _whoami(self) -> None:
        self._json({"name": self._user(needed=True), "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def _validate_card(self) -> None:
        errors = [{"message": problem} for problem in card_problems(json.loads(self._read_body())["content"])]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self) -> None:
        wanted = json.loads(self._read_body())
        user = self._user(needed=True)
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        with self.server.lock:
            if (kind, name) in self.server.repositories:
                self._json({"error": "You already created this repo", "url": f"{self.server.url}/{name}"}, 409)
                return
            private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
            repository = Repository(private=private)
            attributes = self._store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            repository.add_commit("initial commit", {".gitattributes": attributes}, "main")
            self.server.repositories[kind, name] = repository
        prefix = "datasets/" if kind == "dataset" else ""
        self._json({"url": f"{self.server.url}/{prefix}{name}", "name": name, "id": name})

    def _tag(self, kind: str, name: str, revision: str) -> None:
        tag = json.loads(self._read_body())["tag"]
        repository = self._repository(kind, name, write=True)
        if tag in repository.tags:
            raise HubError(409, None, f"Tag {tag} exists already")
        repository.tags[tag] = self._commit_of(repository, revision)
        self._json({})

    def _branch(self, kind: str, name: str, branch: str) -> None:
        wanted = json.loads(self._read_body() or b"{}")
        repository = self._repository(kind, name, write=True)
        if branch in repository.branches:
            raise HubError(409, None, f"Branch {branch} exists already")
        repository.branches[branch] = self._commit_of(repository, wanted.get("startingPoint", "main"))
        self._json({})

    def _refs(self, kind: str, name: str) -> None:
        repository = self._repository(kind, name)
        answer = {"converts": []}
        for key, names, prefix in (
            ("branches", repository.branches, "refs/heads/"),
            ("tags", repository.tags, "refs/tags/"),
        ):
            answer[key] = [{"name": n, "ref": prefix + n, "targetCommit": oid} for n, oid in names.items()]
        self._json(answer)

    def _history(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        self._commit_of(repository, revision)
        date = "2026-01-01T00:00:00.000Z"
        commits = [
            {"id": oid, "title": title, "message": "", "date": date, "authors": [], "parents": []}
            for oid, title, _ in reversed(repository.commits)
        ]
        self._json(commits)

    def _info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._repository(kind, name)
        commit = self._commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.files(commit))]
        date = "2026-01-01T00:00:00.000Z"
        answer = {"_id": name, "id": name, "sha": commit, "private": repository.private, "siblings": siblings}
        answer |= {"tags": [], "downloads": 0, "likes": 0, "lastModified": date, "createdAt": date, "gated": False}
        self._json(answer | ({"modelId": name} if kind == "models" else {}), headers={"X-Repo-Commit": commit})

    def _entry(self, path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
        if blob.sha256:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
        return entry

    def _tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
        repository = self._repository(kind, name)
        commit = self._commit_of(repository, revision)
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in repository.files(commit).items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist on {revision}", commit)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = []
        folders = set()
        for path, blob in sorted(inside.items()):
            first, nested, _ = path.removeprefix(prefix).partition("/")
            if not nested or recursive:
                entries.append(self._entry(path, blob))
            if nested:
                folders.add(prefix + first)
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        self._json(entries, headers={"X-Repo-Commit": commit})

    def _paths_info(self, kind: str, name: str, revision: str) -> None:
        body = self._read_body().decode()
        is_json = "json" in (self.headers.get("Content-Type") or "")
        wanted = json.loads(body)["paths"] if is_json else parse_qs(body).get("paths", [])
        repository = self._repository(kind, name)
        files = repository.files(self._commit_of(repository, revision))
        found = [self._entry(path, files[path]) for path in wanted if path in files]
        for path in wanted:
            if path not in files and any(other.startswith(f"{path}/") for other in files):
                found.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        self._json(found)

    def _resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind, name)
        commit = self._commit_of(repository, revision)
        blob = repository.files(commit).get(path)
        if blob is None:
            raise HubError(404, "EntryNotFound", "Entry not found", commit)
        first, last, status = 0, blob.size - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            first, status = int(asked[1]), 206
            last = min(last, int(asked[2])) if asked[2] else last
        self.send_response(status)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.sha256:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        headers["Content-Length"] = str(last - first + 1)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._send_file(self.server.path_of(blob.etag), first, last - first + 1)

    def _send_file(self, path: Path, first: int, size: int) -> None:
        with path.open("rb") as file:
            file.seek(first)
            if self.fault is not None:
                self.wfile.write(file.read(min(self.fault.after, size)))
                self.wfile.flush()
                raise CutConnection
            if first == 0 and size == path.stat().st_size:
                shutil.copyfileobj(file, self.wfile, CHUNK)
            else:
                self.wfile.write(file.read(size))
