"""A hub of the test's own: the download side of the model hub's HTTP interface, for the real clients.

    with HubServer() as hub:
        commit = hub.add("models", "org/name", {"config.json": b"…"})
        subprocess.run(…, env=os.environ | hub.environment)

The clients read their settings when they are imported, so a test runs them in a process of its own.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>.+?)(/(?P<call>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.*))?)?"
)
FILE = re.compile(r"/((?P<kind>datasets)/)?(?P<name>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
LARGE = (".safetensors", ".parquet", ".bin")
"""Files that the hub keeps apart, with their SHA-256 as ETag."""


@dataclass
class Repository:
    """`commits` holds the files of each commit, `branches` the commit of each branch."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


class HubServer:
    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[str] = []
        """Method and path of each, in order."""
        self.tokens: set[str] = {"hf_reader"}
        self.status: int | None = None
        """Set to answer everything with this status."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Points the clients here. Xet is a protocol of its own, which this does not speak."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "HF_TOKEN": ""}

    def add(
        self, kind: str, name: str, files: dict[str, bytes], *, branch: str = "main", gated: bool = False, private: bool = False
    ) -> str:
        """Commits the files, all that the repository then has, and returns the commit."""
        repository = self.repositories.setdefault((kind, name), Repository())
        commit = hashlib.sha1(repr(sorted(files.items())).encode() + str(len(repository.commits)).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        repository.gated, repository.private = gated, private
        return commit

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status:
            return self.answer(self.hub.status, {"error": "out of order"})
        api, file = API.fullmatch(path), FILE.fullmatch(path)
        match = api or file
        if match is None:
            return self.refuse(404, "EntryNotFound")
        kind, name = match["kind"] or "models", match["name"]
        repository = self.hub.repositories.get((kind, name))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.hub.tokens:
            return self.answer(
                401, {"error": "bad token"}, **{"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if repository is None or (repository.private and not token):
            return self.refuse(404 if token else 401, "RepoNotFound")
        commit = repository.branches.get(match["revision"] or "main", match["revision"])
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if file:
            if repository.gated and not token:
                return self.refuse(401, "GatedRepo")
            return self.send_file(files, match["path"], commit)
        if api["call"] == "tree":
            return self.send_tree(files, (api["path"] or "").strip("/"))
        if api["call"] == "paths-info":
            wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            return self.answer(200, [entry_of(path, files[path]) for path in wanted if path in files])
        return self.answer(200, info_of(name, commit, files, repository))

    do_HEAD = do_POST = do_GET

    def send_file(self, files: dict[str, bytes], path: str, commit: str) -> None:
        if path not in files:
            return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        body = files[path]
        etag = entry_of(path, body)["lfs"]["oid"] if path.endswith(LARGE) else entry_of(path, body)["oid"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(body))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            return self.send(206, body[first : last + 1], headers)
        return self.send(200, body, headers)

    def send_tree(self, files: dict[str, bytes], folder: str) -> None:
        inside = {path: body for path, body in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            return self.refuse(404, "EntryNotFound")
        if "recursive=true" not in self.path.lower():
            start = f"{folder}/" if folder else ""
            folders = {start + path.removeprefix(start).split("/")[0] for path in inside if "/" in path.removeprefix(start)}
            inside = {path: body for path, body in inside.items() if "/" not in path.removeprefix(start)}
        else:
            folders = set()
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return self.answer(200, entries + [entry_of(path, body) for path, body in inside.items()])

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer(status, {"error": code}, **{"X-Error-Code": code, **headers})

    def answer(self, status: int, content: object, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def entry_of(path: str, body: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry


def info_of(name: str, commit: str, files: dict[str, bytes], repository: Repository) -> dict:
    card = re.match(rb"---\n(.*?)\n---", files.get("README.md", b""), re.S)
    pairs = (line.split(": ", 1) for line in card[1].decode().splitlines()) if card else ()
    return {
        "id": name,
        "sha": commit,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "cardData": dict(pairs),
        "siblings": [sibling_of(path, body) for path, body in files.items()],
    }


def sibling_of(path: str, body: bytes) -> dict:
    entry = entry_of(path, body)
    sibling = {"rfilename": path, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134}
    return sibling
