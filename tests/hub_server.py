"""A hub of the test's own: the model hub's HTTP interface, for the real clients.

    with HubServer() as hub:
        commit = hub.add("models", "org/name", {"config.json": b"…"})
        hub.befall("model.safetensors", status=503, times=2)
        subprocess.run(…, env=os.environ | hub.environment)

The clients read their settings when they are imported, so a test runs them in a process of its own.

A request goes through `Handler.handle_request`: faults, token, then the first of `Handler.routes` that matches its path.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_uploads import LARGE, Account, Uploads


@dataclass
class Repository:
    """`commits` holds the files of each commit, `branches` the commit of each branch or tag. Who may read a private or gated
    repository: the holders of `readers`; None is every token that the hub knows."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    readers: set[str] | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by SHA-256, committed or not."""


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" holds the pattern.

    They wait for `seconds`, then are answered with `status`; or as usual, but the connection breaks after `cut` bytes of the
    body, or its last byte is wrong. Or the connection breaks without an answer: `before` anything was done, or `after`.
    """

    pattern: str
    times: int = 1
    seconds: float = 0.0
    status: int | None = None
    cut: int | None = None
    corrupt: bool = False
    breaks: str | None = None
    retry_after: int | None = None
    meanwhile: Callable[[], object] | None = None
    """Called while the client waits, for as long as it takes."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Of those that find no place in the queue the kernel drops the first packet, and they wait a second or more."""


class HubServer:
    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        """Method and path of each, in order."""
        self.ranges: list[str] = []
        """The Range headers, in order."""
        self.tokens: set[str] = {"hf_reader"}
        """Those that the hub knows; one that is taken out has been revoked."""
        self.accounts: dict[str, Account] = {}
        """By token; of a token without one, somebody who may only read."""
        self.status: int | None = None
        """Set to answer everything with this status."""
        self.faults: list[Fault] = []
        self.page_size = 1000
        """Entries of a tree page."""
        self.on_request: Callable[[], None] = lambda: None
        """Called while a client waits for its answer."""
        self._choosing = threading.Lock()
        self._server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.content_url = f"http://localhost:{self._server.server_port}/content"
        """Where large files are: another host for the client, so no token may come along."""

    @property
    def environment(self) -> dict[str, str]:
        """Points the clients here. Xet is a protocol of its own, which this does not speak.

        They wait for an answer as long as a test does: one that gives up asks again, which the test would count.
        """
        patience = {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
        proxies = {"NO_PROXY": "*", "no_proxy": "*"}
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""} | patience | proxies

    def add(
        self,
        kind: str,
        name: str,
        files: dict[str, bytes],
        *,
        branch: str = "main",
        gated: bool = False,
        private: bool = False,
        readers: set[str] | None = None,
    ) -> str:
        """Commits the files, all that the repository then has, and returns the commit."""
        if (kind, name) not in self.repositories:
            self.tokens |= readers or set()
        repository = self.repositories.setdefault((kind, name), Repository())
        commit = hashlib.sha1(repr(sorted(files.items())).encode() + str(len(repository.commits)).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        repository.gated, repository.private, repository.readers = gated, private, readers
        return commit

    def enrol(self, token: str, **account: object) -> Account:
        """Makes the token one of an Account of these properties."""
        self.tokens.add(token)
        self.accounts[token] = Account(**account)
        return self.accounts[token]

    def tokens_of(self, repo: str) -> set[str]:
        """Who may see a private repository: who may write to it."""
        return {token for token in self.tokens & self.accounts.keys() if self.accounts[token].may_write(repo)}

    def head(self, name: str) -> dict[str, bytes]:
        """The files of a model repository's main branch."""
        repository = self.repositories["models", name]
        return repository.commits[repository.branches["main"]]

    def befall(self, pattern: str, **fault: Any) -> None:
        """Adds a Fault; the oldest that matches a request is the one that happens."""
        self.faults.append(Fault(pattern, **fault))

    def next_fault(self, request: str) -> Fault | None:
        with self._choosing:  # clients ask for several files at once
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def find_content(self, sha256: str) -> bytes | None:
        contents = (
            body
            for repository in self.repositories.values()
            for files in repository.commits.values()
            for body in files.values()
        )
        return next((body for body in contents if hashlib.sha256(body).hexdigest() == sha256), None)

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Place:
    """What a path points at: the files of one commit."""

    name: str
    repository: Repository
    commit: str
    files: dict[str, bytes]


class Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer
    fault: Fault | None
    body: bytes

    def handle_request(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        request = f"{self.command} {unquote(address.path)}"
        self.hub.requests.append(request)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.fault = self.hub.next_fault(request)
        if "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
        self.hub.on_request()
        if self.fault:
            time.sleep(self.fault.seconds)
            if self.fault.meanwhile:
                self.fault.meanwhile()
        status = self.hub.status or (self.fault.status if self.fault else None)
        if status:
            pause = {"Retry-After": str(self.fault.retry_after)} if self.fault and self.fault.retry_after is not None else {}
            return self.send(status, b"<html>out of order</html>", {"Content-Type": "text/html"} | pause)
        if self.fault and self.fault.breaks:
            self.close_connection = True
            if self.fault.breaks == "before":
                return None
        token = self.token()
        if token and token not in self.hub.tokens:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            return self.answer(401, {"error": "bad token"}, **message)
        for methods, pattern, respond in Uploads.routes + self.routes:
            match = re.fullmatch(pattern, address.path)
            if match and self.command in methods:
                return respond(self, **{key: unquote(value) for key, value in match.groupdict(default="").items()})
        return self.refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()

    def find(self, kind: str, name: str, revision: str) -> Place | None:
        """None when the request has been refused instead."""
        repository = self.hub.repositories.get((kind or "models", name))
        if repository is None or (repository.private and not self.may_read(repository)):
            return self.refuse(404 if self.token() else 401, "RepoNotFound")
        commit = repository.branches.get(revision or "main", revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        return Place(name, repository, commit, repository.commits[commit])

    def may_read(self, repository: Repository) -> bool:
        readers = self.hub.tokens if repository.readers is None else repository.readers
        return self.token() in readers

    def send_info(self, kind: str, name: str, revision: str = "") -> None:
        if place := self.find(kind, name, revision):
            self.answer(200, info_of(place))

    def send_refs(self, kind: str, name: str) -> None:
        if place := self.find(kind, name, ""):
            branches = place.repository.branches.items()
            refs = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit} for branch, commit in branches]
            self.answer(200, {"branches": refs, "converts": [], "tags": []})

    def send_tree(self, kind: str, name: str, revision: str, path: str) -> None:
        """In pages, the next one in the Link header."""
        place = self.find(kind, name, revision)
        if place is None:
            return None
        folder = path.strip("/")
        entries = list_tree(place.files, folder, recursive=self.query.get("recursive", [""])[0].lower() == "true")
        if folder and not entries:
            return self.refuse(404, "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        headers = {}
        if end < len(entries):
            rest = {key: values[0] for key, values in self.query.items()} | {"cursor": str(end)}
            query = "&".join(f"{key}={quote(value)}" for key, value in rest.items())
            headers["Link"] = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        return self.answer(200, entries[start:end], **headers)

    def send_paths_info(self, kind: str, name: str, revision: str) -> None:
        if place := self.find(kind, name, revision):
            wanted = self.read_fields()["paths"]
            self.answer(200, [entry_of(path, place.files[path]) for path in wanted if path in place.files])

    def read_fields(self) -> dict:
        """The body, JSON or a form."""
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)
        return parse_qs(self.body.decode())

    def send_file(self, kind: str, name: str, revision: str, path: str) -> None:
        place = self.find(kind, name, revision)
        if place is None:
            return None
        if place.repository.gated and not self.may_read(place.repository):
            return self.refuse(403 if self.token() else 401, "GatedRepo")
        if path not in place.files:
            return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": place.commit})
        body = place.files[path]
        entry = entry_of(path, body)
        if "lfs" not in entry:
            return self.send_content(body, {"X-Repo-Commit": place.commit, "ETag": f'"{entry["oid"]}"'})
        sha256 = entry["lfs"]["oid"]
        linked = {"X-Repo-Commit": place.commit, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(body))}
        return self.send(302, b"", linked | {"Location": f"{self.hub.content_url}/{sha256}"})

    def send_large_file(self, sha256: str) -> None:
        body = self.hub.find_content(sha256)
        if self.token() or body is None:
            return self.answer(400, {"error": "a signed address takes no token"})
        return self.send_content(body, {"ETag": f'"{sha256}"'})

    def send_content(self, body: bytes, headers: dict[str, str]) -> None:
        headers |= {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(200, body, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
        if first >= len(body):
            return self.send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return self.send(206, body[first : last + 1], headers)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer(status, {"error": code}, **{"X-Error-Code": code, **headers})

    def answer(self, status: int, content: object, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.fault and self.fault.breaks:
            return
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.fault and self.fault.cut is not None:
            body = body[: self.fault.cut]
            self.close_connection = True
        with suppress(ConnectionError):  # a client that was killed
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    REPOSITORY = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(/[^/]+)?)"
    routes = (
        ("GET", rf"{REPOSITORY}/revision/(?P<revision>[^/]+)", send_info),
        ("GET", rf"{REPOSITORY}/refs", send_refs),
        ("GET", rf"{REPOSITORY}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", send_tree),
        ("POST", rf"{REPOSITORY}/paths-info/(?P<revision>[^/]+)", send_paths_info),
        ("GET", REPOSITORY, send_info),
        ("GET HEAD", r"/content/(?P<sha256>[0-9a-f]{64})", send_large_file),
        ("GET HEAD", r"/((?P<kind>datasets)/)?(?P<name>[^/]+(/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", send_file),
    )
    """Methods, path, and what answers; the first that matches does."""


def list_tree(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict]:
    start = f"{folder}/" if folder else ""
    inside = {path: body for path, body in files.items() if path.startswith(start)}
    if recursive:
        folders = {path.rpartition("/")[0] for path in inside if "/" in path.removeprefix(start)}
    else:
        folders = {start + path.removeprefix(start).split("/")[0] for path in inside if "/" in path.removeprefix(start)}
        inside = {path: body for path, body in inside.items() if "/" not in path.removeprefix(start)}
    entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    return entries + [entry_of(path, body) for path, body in inside.items()]


def entry_of(path: str, body: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry


def info_of(place: Place) -> dict:
    card = re.match(rb"---\n(.*?)\n---", place.files.get("README.md", b""), re.S)
    pairs = (line.split(": ", 1) for line in card[1].decode().splitlines() if ": " in line) if card else ()
    return {
        "id": place.name,
        "sha": place.commit,
        "private": place.repository.private,
        "gated": "manual" if place.repository.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "cardData": dict(pairs),
        "siblings": [sibling_of(path, body) for path, body in place.files.items()],
    }


def sibling_of(path: str, body: bytes) -> dict:
    entry = entry_of(path, body)
    sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
    return sibling
