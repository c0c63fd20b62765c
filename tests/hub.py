"""A Hugging Face Hub on this machine: as much of its protocol as `huggingface_hub` and `datasets` speak to fetch.

Read off huggingface_hub 2.4 and the answers of huggingface.co: a revision is resolved to a commit, the commit's tree
is listed, and each file is asked for by `HEAD`, then by `GET`. The files of a dataset are also looked up by
`POST .../paths-info`, and streamed in ranges. Large files are answered with a redirect and the
`X-Linked-*` headers, errors with `X-Error-Code`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

_NAME = r"(?P<name>(?:models|datasets)/[^/]+/[^/]+)"
_REVISION = re.compile(rf"/api/{_NAME}(?:/revision/(?P<revision>.+))?")
_TREE = re.compile(rf"/api/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
_PATHS = re.compile(rf"/api/{_NAME}/paths-info/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<name>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_BLOB = re.compile(r"/blobs/(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of a response."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[str], Answer | None]
"""Gets `METHOD /path` and may answer in the Hub's place."""


def refusal(status: int, code: str, message: str) -> Answer:
    """An error as the Hub spells it."""
    body = json.dumps({"error": message}).encode()
    headers = {"X-Error-Message": message, "Content-Type": "application/json"}
    return Answer(status, {**headers, "X-Error-Code": code} if code else headers, body)


class Hub:
    """The models and datasets that it serves, and a log of what was asked of it.

    Models are named `OWNER/NAME`, datasets `datasets/OWNER/NAME`.
    """

    def __init__(self) -> None:
        self.address = ""
        self.store = ""
        """The same server under another name: clients follow redirects to other hosts without their credentials."""
        self.requests: list[str] = []
        """`METHOD /path` of each request, in order."""
        self.headers: list[dict[str, str]] = []
        """Of each request, names in lower case."""
        self.fault: Fault = lambda request: None
        self.gated: set[str] = set()
        self._trees: dict[str, dict[str, dict[str, bytes]]] = {}
        self._refs: dict[str, dict[str, str]] = {}

    def push(self, name: str, files: Mapping[str, bytes] | Path, *refs: str) -> str:
        """Commit files to a repository; `main` and the `refs` point to the commit, whose id is returned."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        content = {path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())}
        commit = hashlib.sha1(f"{name} {content}".encode()).hexdigest()
        self._trees.setdefault(name, {})[commit] = dict(files)
        self._refs.setdefault(name, {}).update(dict.fromkeys(("main", *refs), commit))
        return commit

    def answer(self, method: str, path: str, query: str = "", body: bytes = b"") -> Answer:
        """What the Hub says."""
        if fault := self.fault(f"{method} {path}"):
            return fault
        for pattern, give in (
            (_REVISION, self._revision),
            (_TREE, self._tree),
            (_FILE, self._file),
            (_BLOB, self._blob),
        ):
            if found := pattern.fullmatch(path):
                asked: dict[str, Any] = found.groupdict()
                if "name" in asked:
                    asked["name"] = asked["name"].removeprefix("models/")
                if give == self._tree:
                    asked["recursive"] = "recursive=true" in query.lower()
                return give(**asked)
        if found := _PATHS.fullmatch(path):
            return self._paths(found["name"].removeprefix("models/"), found["revision"], body)
        return refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _revision(self, name: str, revision: str | None) -> Answer:
        commit = self._commit(name, revision or "main")
        if isinstance(commit, Answer):
            return commit
        siblings = [{"rfilename": path} for path in self._trees[name][commit]]
        gated = "manual" if name in self.gated else False
        return _json(
            {
                "id": name.removeprefix("datasets/"),
                "sha": commit,
                "private": False,
                "gated": gated,
                "siblings": siblings,
            }
        )

    def _tree(self, name: str, revision: str, folder: str | None, recursive: bool) -> Answer:
        commit = self._commit(name, revision)
        if isinstance(commit, Answer):
            return commit
        tree, top = self._trees[name][commit], f"{folder}/" if folder else ""
        inside = {path: _entry(path, data) for path, data in tree.items() if path.startswith(top)}
        if not recursive:
            names = {path: path.removeprefix(top).partition("/") for path in inside}
            folders = dict.fromkeys(top + first for first, slash, _ in names.values() if slash)
            inside = {path: inside[path] for path, (_, slash, _) in names.items() if not slash}
            inside |= {path: _folder(path) for path in folders}
        listed = list(inside.values())
        return _json(listed) if listed else refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")

    def _paths(self, name: str, revision: str, body: bytes) -> Answer:
        commit = self._commit(name, revision)
        if isinstance(commit, Answer):
            return commit
        asked = json.loads(body)["paths"]
        tree = self._trees[name][commit]
        folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents} - {"."}
        found = [_entry(path, tree[path]) for path in asked if path in tree]
        return _json(
            found + [{"type": "directory", "path": path, "oid": "0" * 40} for path in asked if path in folders]
        )

    def _file(self, name: str, revision: str, file: str) -> Answer:
        commit = self._commit(name, revision)
        if isinstance(commit, Answer):
            return commit
        if name in self.gated:
            return refusal(401, "GatedRepo", f"Access to {name} is restricted and you are not in the authorized list.")
        data = self._trees[name][commit].get(file)
        if data is None:
            return refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_id(data)}"'}
        if not _is_large(file):
            return Answer(200, headers, data)
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
        return Answer(302, {**headers, **linked, "Location": f"{self.store}/blobs/{digest}"})

    def _blob(self, digest: str) -> Answer:
        every = (data for trees in self._trees.values() for tree in trees.values() for data in tree.values())
        data = next(data for data in every if hashlib.sha256(data).hexdigest() == digest)
        return Answer(200, {"ETag": f'"{digest}"'}, data)

    def _commit(self, name: str, revision: str) -> str | Answer:
        if name not in self._trees:  # the Hub answers so to all who are logged in, and clients accept it over HTTP
            return refusal(404, "RepoNotFound", "Repository not found")
        commit = self._refs[name].get(revision, revision)
        return (
            commit if commit in self._trees[name] else refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        )


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer at `hub.address` until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Log the request and answer it; `HEAD` gets the same answer without the body."""
            asked = urlsplit(self.path)
            path = unquote(asked.path)
            hub.requests.append(f"{self.command} {path}")
            hub.headers.append({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send(_part(hub.answer(self.command, path, asked.query, body), self.headers.get("Range")))

        do_POST = do_GET  # noqa: N815  # the standard library's names
        do_HEAD = do_GET  # noqa: N815  # the standard library's name

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            # A body shorter than it was said to be is a connection that broke.
            self.close_connection = "Content-Length" in answer.headers

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        hub.store = f"http://localhost:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git_id(data)}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _folder(path: str) -> dict[str, object]:
    return {"type": "directory", "path": path, "size": 0, "oid": _git_id(path.encode())}


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(path: str) -> bool:
    """Whether the Hub keeps such a file outside of git."""
    return path.endswith((".safetensors", ".bin", ".parquet"))


def _part(answer: Answer, asked: str | None) -> Answer:
    """The part of the body that a `Range` header asks for."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
    if not found or answer.status != 200:
        return answer
    start, size = int(found[1]), len(answer.body)
    end = min(int(found[2] or size - 1) + 1, size)
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Answer(206, headers, answer.body[start:end])
