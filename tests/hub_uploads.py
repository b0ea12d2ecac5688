"""What the hub of the tests answers to those who write: who they are, repositories, large files, commits.

It checks what the real one does: permission, the SHA-256 and size of large files, that a commit's large files have arrived, and
that its parent is the head of the branch. Large files are content of one repository and uploaded by the basic transfer.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field

LARGE = (".safetensors", ".parquet", ".bin", ".gguf")
"""Files that the hub keeps apart: their SHA-256 is the ETag, and their content is on another host."""

INITIAL = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
"""What a repository begins with."""


@dataclass
class Account:
    """Whom a token belongs to and what it allows: `role` is read, write or fineGrained, where `writable` names the users,
    organisations and repositories that it may write to. `orgs` holds the account's role in each of its organisations."""

    name: str = "tester"
    role: str = "read"
    orgs: dict[str, str] = field(default_factory=dict)
    writable: set[str] = field(default_factory=set)

    def may_write(self, repo: str) -> bool:
        namespace = repo.partition("/")[0]
        if self.role == "fineGrained":
            return bool(self.writable & {namespace, repo})
        return self.role == "write" and (namespace == self.name or self.orgs.get(namespace) in ("admin", "write"))

    def describe(self) -> dict:
        """As whoami-v2 does."""
        token = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [
                {"entity": {"type": "model" if "/" in name else "user", "name": name}, "permissions": ["repo.write"]}
                for name in sorted(self.writable)
            ]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": self.name, "fullname": self.name.title(), "orgs": orgs, "auth": auth}


class Uploads:
    """The handlers of a request that writes; mixed into the server's Handler."""

    def account(self) -> Account:
        return self.hub.accounts.get(self.token(), Account())

    def send_who(self) -> None:
        if not self.token():
            return self.answer(401, {"error": "no token"})
        return self.answer(200, self.account().describe())

    def create_repository(self) -> None:
        fields = json.loads(self.body)
        kind = f"{fields.get('type', 'model')}s"
        name = f"{fields.get('organization') or self.account().name}/{fields['name']}"
        address = {"url": f"{self.hub.url}/{name}", "name": name}
        if not self.token():
            return self.answer(401, {"error": "no token"})
        if not self.account().may_write(name):
            return self.forbid(f"You don't have the rights to create a model under the namespace {name.partition('/')[0]!r}.")
        if (kind, name) in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", **address})
        private = fields.get("visibility") == "private"
        self.hub.add(kind, name, INITIAL, private=private, readers=self.hub.tokens_of(name) if private else None)
        return self.answer(200, address)

    def forbid(self, message: str) -> None:
        self.answer(403, {"error": message}, **{"X-Error-Message": message})

    def find_writable(self, kind: str, name: str, revision: str) -> object:
        """The place, or None when the request has been refused instead."""
        place = self.find(kind, name, revision)
        if place is not None and not self.account().may_write(name):
            return self.forbid("you must use a token with write access to this repository")
        return place

    def send_upload_modes(self, kind: str, name: str, revision: str) -> None:
        place = self.find_writable(kind, name, revision)
        if place is None:
            return None
        files = []
        for asked in json.loads(self.body)["files"]:
            path, here = asked["path"], place.files.get(asked["path"])
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = None if here is None else oid_of(path, here)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": files})

    def send_upload_actions(self, kind: str, name: str) -> None:
        asked = json.loads(self.body)
        place = self.find_writable(f"{kind}" or "models", name, asked.get("ref", {}).get("name", "main"))
        if place is None:
            return None
        objects = []
        for each in asked["objects"]:
            if each["oid"] not in place.repository.objects:
                address = f"{self.hub.content_url}/upload/{name}/{each['oid']}/{each['size']}"
                each |= {"actions": {"upload": {"href": address}, "verify": {"href": f"{self.hub.url}/verify/{name}"}}}
            objects.append(each)
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def store_object(self, name: str, sha256: str, size: str) -> None:
        if self.token():
            return self.answer(400, {"error": "a signed address takes no token"})
        if (hashlib.sha256(self.body).hexdigest(), len(self.body)) != (sha256, int(size)):
            return self.answer(400, {"error": "the content is not what was announced"})
        self.hub.repositories["models", name].objects[sha256] = self.body
        return self.answer(200, {})

    def verify_object(self, name: str) -> None:
        asked = json.loads(self.body)
        stored = self.hub.repositories["models", name].objects.get(asked["oid"])
        good = stored is not None and len(stored) == asked["size"]
        return self.answer(200 if good else 422, {"error": None if good else "not what was uploaded"})

    def commit(self, kind: str, name: str, revision: str) -> None:
        place = self.find_writable(kind, name, revision)
        if place is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != place.commit:
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(place.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile" and len(place.repository.objects.get(value["oid"], b"")) == value["size"]:
                files[value["path"]] = place.repository.objects[value["oid"]]
            else:
                return self.answer(400, {"error": f"{line['key']} {value['path']}: not here"})
        repository = place.repository
        oid = self.hub.add(kind, name, files, branch=revision, private=repository.private, readers=repository.readers)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def validate_card(self) -> None:
        """Only that there is front matter with a base model: the real one checks many fields."""
        content = json.loads(self.body)["content"]
        if re.match(r"---\n.*?^base_model: \S.*?\n---\n", content, re.S | re.M) is None:
            return self.answer(400, {"errors": [{"message": "base_model is missing"}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    REPOSITORY = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(/[^/]+)?)"
    routes = (
        ("GET", r"/api/whoami-v2", send_who),
        ("POST", r"/api/repos/create", create_repository),
        ("POST", r"/api/validate-yaml", validate_card),
        ("POST", rf"{REPOSITORY}/preupload/(?P<revision>[^/]+)", send_upload_modes),
        ("POST", rf"{REPOSITORY}/commit/(?P<revision>[^/]+)", commit),
        ("POST", r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", send_upload_actions),
        ("PUT", r"/content/upload/(?P<name>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})/(?P<size>\d+)", store_object),
        ("POST", r"/verify/(?P<name>[^/]+/[^/]+)", verify_object),
    )


def oid_of(path: str, body: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
