"""The part of the loopback Hub that takes files: plain ones, Git LFS in one or several parts, commits."""

import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.hub_cards.hub_state import Blob, CutConnection, HubError


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".npz")
LFS_SIZE = 1_000_000  # larger files go through LFS whatever they are called


class Uploads:
    """Answers of the request handler, whose state and helpers it uses."""

    server: Any
    path: str

    def _store(self, content: bytes) -> Blob:
        oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        self.server.path_of(oid).write_bytes(content)
        return Blob(oid, len(content))

    def _preupload(self, kind: str, name: str, revision: str) -> None:
        files = json.loads(self._read_body())["files"]
        repository = self._repository(kind, name, write=True)
        existing = repository.files(self._commit_of(repository, revision))
        modes = [
            {
                "path": file["path"],
                "uploadMode": ("lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_SIZE else "regular"),
                "shouldIgnore": False,
                "oid": existing[file["path"]].etag if file["path"] in existing else None,
            }
            for file in files
        ]
        self._json({"files": modes})

    def _lfs_batch(self, kind: str | None, name: str) -> None:
        wanted = json.loads(self._read_body())
        repository = self._repository(kind, name, write=True)
        objects = []
        for entry in wanted["objects"]:
            oid, size = entry["oid"], entry["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repository.objects:
                href = f"{self.server.url}/_lfs/{oid}"
                header: dict[str, str] = {}
                if self.server.part_size is not None and size > self.server.part_size:
                    parts = -(-size // self.server.part_size)
                    header = {str(part): f"{href}/{part}" for part in range(1, parts + 1)}
                    header["chunk_size"] = str(self.server.part_size)
                    href += "/complete"
                verify = f"{self.server.url}/_lfs/{oid}/verify"
                answer["actions"] = {"upload": {"href": href, "header": header}, "verify": {"href": verify}}
            objects.append(answer)
        self._json({"transfer": "multipart", "objects": objects})

    def _lfs_put(self, oid: str, part: str | None) -> None:
        target = self.server.path_of(f"{oid}.{part or 'upload'}.{threading.get_ident()}")
        digest = hashlib.sha256()
        with target.open("wb") as file:
            for chunk in self._chunks():
                digest.update(chunk)
                file.write(chunk)
        if part is None:
            self._keep(target, oid, digest.hexdigest())
        else:
            target.replace(self.server.path_of(f"{oid}.part{part}"))
        self._json({}, headers={"ETag": f'"{digest.hexdigest()}"'})

    def _keep(self, path: Path, oid: str, found: str) -> None:
        if found != oid:
            path.unlink()
            raise HubError(400, None, "The content does not have the announced SHA-256")
        path.replace(self.server.path_of(oid))

    def _lfs_finish(self, oid: str, step: str) -> None:
        body = json.loads(self._read_body())
        if step == "complete":
            whole = self.server.path_of(f"{oid}.whole")
            digest = hashlib.sha256()
            with whole.open("wb") as file:
                for part in body["parts"]:
                    path = self.server.path_of(f"{oid}.part{part['partNumber']}")
                    content = path.read_bytes()
                    digest.update(content)
                    file.write(content)
                    path.unlink()
            self._keep(whole, oid, digest.hexdigest())
        elif not self.server.path_of(oid).exists():
            raise HubError(404, None, "The object was not uploaded")
        self._json({})

    def _commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._read_body().splitlines() if line]
        repository = self._repository(kind, name, write=True)
        title = ""
        with self.server.lock:
            parent = self._commit_of(repository, revision)
            files = dict(repository.files(parent))
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    title = value["summary"]
                    if value.get("parentCommit") not in (None, parent):
                        raise HubError(412, None, "The branch has moved: its last commit is another one")
                elif key == "file":
                    files[value["path"]] = self._store(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    if not self.server.path_of(value["oid"]).exists():
                        raise HubError(400, None, f"{value['path']} was not uploaded")
                    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\n".encode()
                    size = self.server.path_of(value["oid"]).stat().st_size
                    files[value["path"]] = Blob(hashlib.sha1(pointer).hexdigest(), size, value["oid"])
                    repository.objects.add(value["oid"])
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    raise HubError(400, None, f"unknown operation {key}")
            commit = repository.add_commit(title, files, revision)
        if self.server.next_fault("LOST", urlsplit(self.path).path):
            raise CutConnection  # done, but the client does not get to know
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
