"""A small Hugging Face Hub on loopback: the requests that the real client makes for models, and ways to fail them."""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub import constants

_API = re.compile(r"/api/models/([^/?]+/[^/?]+)(?:/revision/([^/?]+))?(?:\?.*)?")
_UPLOAD = re.compile(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?/(preupload/main|info/lfs/objects/batch|commit/main)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")
_LARGE = 10_000  # bytes from which a file counts as stored by LFS: known by sha256, and served from another address


@dataclass
class Hub:
    """Repositories by name, each a folder at one commit; and what is to go wrong."""

    endpoint: str = ""
    repositories: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    cut: dict[str, int] = field(default_factory=dict)  # file name -> how often its transfer ends in the middle
    corrupt: dict[str, int] = field(default_factory=dict)  # file name -> how often a byte of it is wrong
    gate: threading.Event | None = None  # large files wait for it
    ranges: bool = True  # whether parts of files can be requested
    sent: Counter[str] = field(default_factory=Counter)  # bytes by file name
    token: str | None = None  # that uploads must have
    uploads: dict[str, bytes] = field(default_factory=dict)  # content of large files by sha256
    ignored: set[str] = field(default_factory=set)  # files that .gitignore of every repository names
    commits: list[str] = field(default_factory=list)  # messages
    stated_commit: str = ""  # instead of the commit of an upload

    def add(self, name: str, folder: Path, **changes: bytes) -> str:
        """Offer a folder as ``name``; returns its commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.put(name, files | changes)

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Offer files as ``name``; returns their commit."""
        digest = hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items())))  # noqa: S324
        self.repositories[name] = (digest.hexdigest(), files)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_PUT(self) -> None:
        content = self._read_body()
        self.hub.uploads[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def do_POST(self) -> None:
        body = self._read_body()
        if self.hub.token is None or self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send(401, b'{"error": "Invalid username or password."}')
        elif self.path == "/api/repos/create":
            document = json.loads(body)
            name = f"{document['organization']}/{document['name']}"
            if name in self.hub.repositories:
                self._send_json(
                    {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409
                )
            else:
                self.hub.requests["private" if document.get("private") else "public"] += 1
                self.hub.put(name, {})
                self._send_json({"url": f"{self.hub.endpoint}/{name}"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._send_json({"warnings": [], "errors": []})
        elif (match := _UPLOAD.fullmatch(self.path)) and match[1] in self.hub.repositories:
            self._send_json(self._upload(match[1], match[2].partition("/")[0], body))
        else:
            self._send(404, b"{}")

    def _upload(self, name: str, step: str, body: bytes) -> dict[str, Any]:
        """Answer one of the three steps of an upload: which files are large, where these go, and the commit."""
        if step == "commit":
            files = dict(self.hub.repositories[name][1])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.hub.commits.append(value["summary"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                else:
                    files[value["path"]] = base64.b64decode(value["content"])
            commit = self.hub.put(name, files)
            # The client parses this address by the endpoint of the time when it was imported.
            commit = self.hub.stated_commit or commit
            return {"success": True, "commitOid": commit, "commitUrl": f"{constants.ENDPOINT}/{name}/commit/{commit}"}
        document = json.loads(body)
        if step == "preupload":
            modes = [("lfs" if file["size"] >= _LARGE else "regular", file["path"]) for file in document["files"]]
            answers = [(mode, path, path in self.hub.ignored) for mode, path in modes]
            return {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": ignored} for mode, path, ignored in answers
                ]
            }
        objects = []
        for wanted in document["objects"]:
            there = wanted["oid"] in self.hub.uploads
            action = {"upload": {"href": f"{self.hub.endpoint}/upload/{wanted['oid']}", "header": {}}}
            objects.append(wanted if there else wanted | {"actions": action})
        return {"transfer": "basic", "objects": objects}

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send_json(self, document: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _answer(self, *, with_body: bool) -> None:
        cdn = self.path.startswith("/cdn/")
        path = self.path.removeprefix("/cdn")
        if match := _API.fullmatch(path):
            self._tell_repository(match[1], match[2])
        elif match := _FILE.match(path):
            self._serve_file(*match.groups(), with_body=with_body, cdn=cdn)
        else:
            self._send(404, b"")

    def _find(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        if name not in self.hub.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit, files = self.hub.repositories[name]
        if revision not in (None, "main", "v1", commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return None
        return commit, files

    def _tell_repository(self, name: str, revision: str | None) -> None:
        self.hub.requests["api"] += 1
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        siblings = [_describe(file, content) for file, content in files.items()]
        document = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _serve_file(self, name: str, revision: str, file: str, *, with_body: bool, cdn: bool) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        content = files.get(file)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        facts = _describe(file, content)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{facts["blobId"]}"'}
        if "lfs" in facts and not cdn:
            headers |= {"X-Linked-Etag": f'"{facts["lfs"]["sha256"]}"', "X-Linked-Size": str(len(content)),
                        "Location": f"{self.hub.endpoint}/cdn{self.path}"}  # fmt: skip
            self._send(302, b"", headers)
        elif not with_body:
            self._send(200, content, headers, with_body=False)
        else:
            self._send_file(file, content, headers)

    def _send_file(self, file: str, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests[file] += 1
        if self.hub.gate is not None and len(content) >= _LARGE:
            self.hub.gate.wait(30)
        start = 0
        status = 200
        end = len(content)
        if self.hub.ranges and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, status = int(asked[1]), 206
            end = min(end, int(asked[2]) + 1) if asked[2] else end
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        body = content[start:end]
        self.hub.sent[file] += len(body)
        if self.hub.corrupt.get(file, 0) > 0:
            self.hub.corrupt[file] -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.hub.cut.get(file, 0) > 0:
            self.hub.cut[file] -= 1
            self._send(status, body, headers, cut=True)
        else:
            self._send(status, body, headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, with_body: bool = True,
        cut: bool = False,
    ) -> None:  # fmt: skip
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()


def _describe(file: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()  # noqa: S324
    facts: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": git}
    if len(content) >= _LARGE:
        facts["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return facts


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
