"""docs/api.md is what the service answers: `WRITE_PAGES=1 pytest tests/app/test_api_page.py` writes it anew."""

import json
import os
import re
import shlex
from contextlib import contextmanager
from pathlib import Path

import pytest
from api_examples import CONVERSATION, ERRORS, NOT_SHOWN, REQUESTS, STATE_OF
from pydantic import SecretStr

from app.jobs.states import JobStatus
from app.keys.keyring import Keyring
from app.rate_limits import Limiter

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
KEY = "tsk_of_the_operator"
FIRST = 4
"""How many fields of an object inside an answer are shown."""
INTRODUCTION = """# API

Every call with a request and its answer, as the tests made them; then every error code with a request that brings it about.
Objects within an answer are shortened, ids and times replaced. `GET /openapi.json` has every field, `/docs` tries them out.
Fields of a job are in the [guide](guide.md), codes with what to do in [errors](errors.md).

`$URL` is the server, `$KEY` a key of yours. Lists take `limit` and `after`, the last id seen. `POST`s that create jobs and
files take an `Idempotency-Key`. `GET /v1/jobs/{job_id}/events?stream=true` streams events and takes `Last-Event-ID`.

An OpenAI client works with `base_url="$URL/v1"`. What it has no method for, it gets by path, with the same key:

```python
job = client.fine_tuning.jobs.retrieve(job_id)
[gguf] = [file for file in client.get(f"/jobs/{job.id}", cast_to=dict)["artifacts"] if file["kind"] == "gguf"]
client.get(gguf["url"], cast_to=openai.HttpxBinaryResponseContent).write_to_file("model.gguf")
```
"""


@pytest.fixture
def known(client, engine, submit, upload, inspected, take_up, end_job, make_artifact):
    """The values of path parameters, and what else the examples name."""
    client.app.state.keyring = Keyring(engine, SecretStr(KEY))
    client.headers["authorization"] = f"Bearer {KEY}"

    def make(status):
        job_id = submit(name="first", labels={"team": "nlp"})["id"]
        if status == "paused":
            client.post(f"/v1/jobs/{job_id}/pause")
        elif status != "queued":
            take_up(job_id)
        if status == "succeeded":
            make_artifact(job_id, "gguf/first-q8_0.gguf", b"GGUF")
        if status in ("succeeded", "failed"):
            end_job(job_id, JobStatus(status))
        return job_id

    refused, broken = upload(b'{"messages": []}\n')["id"], upload(b"{")["id"]
    refusal = {"line": 1, "code": "no_answer", "reason": "There is no answer."}
    report = {"rows": 1, "rows_refused": 1, "refusals": [refusal], "format": "messages", "duplicates": 0}
    inspected(refused, report=report)
    inspected(broken, problem="Line 1 is not JSON.")
    client.put("/v1/secrets/hf", json={"value": "x"})
    endpoint = client.post("/v1/webhook_endpoints", json={"url": "https://localhost:1024/"}).json()["id"]
    disabled = client.post("/v1/webhook_endpoints", json={"url": "https://localhost:1024/", "name": "old"}).json()["id"]
    values = {status: make(status) for status in ("queued", "running", "paused", "failed", "succeeded")}
    client.post(f"/v1/webhook_endpoints/{disabled}", json={"enabled": False})
    link = client.post(f"/v1/jobs/{values['succeeded']}/artifacts/gguf/first-q8_0.gguf/link").json()
    read = upload(CONVERSATION.encode())["id"]
    inspected(read, report=report | {"rows_refused": 0, "refusals": []})
    return values | {
        "make": make,
        "job_id": values["succeeded"],
        "file_id": read,
        "refused": refused,
        "broken": broken,
        "endpoint_id": endpoint,
        "delivery_id": client.get(f"/v1/webhook_deliveries?endpoint={endpoint}").json()["data"][0]["id"],
        "undelivered": client.get(f"/v1/webhook_deliveries?endpoint={disabled}").json()["data"][0]["id"],
        "token": link["url"].partition("/v1/links/")[2].partition("/")[0],
        "key_id": client.post("/v1/keys", json={"name": "ci"}).json()["id"],
        "model": client.get("/v1/models").json()["last_id"],
        "artifact": "gguf/first-q8_0.gguf",
        "secret": "hf",
    }


@contextmanager
def limited(state, limits):
    """The service under other limits."""
    before, state.settings = state.settings, state.settings.model_copy(update=limits)
    state.limiter = Limiter(state.settings)
    yield
    state.settings = before
    state.limiter = Limiter(before)


def fill(value, known):
    if isinstance(value, dict):
        return {name: fill(inner, known) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(fill(inner, known) for inner in value)
    return re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], found[0]), value) if isinstance(value, str) else value


def ask(client, method, path, options):
    headers = dict(options.get("headers", {}))
    if "key" in options:
        headers["authorization"] = f"Bearer {options['key']}"
    if "idempotency" in options:
        headers["idempotency-key"], body = options["idempotency"]
        client.post(path, json=body, headers=headers)
    body = {"json": options["json"]} if "json" in options else {"content": options["text"]} if "text" in options else {}
    if "text" in options:
        headers["content-type"] = "application/json"
    if "file" in options:
        body = {"files": {"file": options["file"]}, "data": {"purpose": "fine-tune"}}
    return client.request(method, path, params=options.get("query"), headers=headers, **body)


def show(method, path, options, answer):
    """The example as Markdown."""
    query = "&".join(f"{name}={value}" for name, value in options.get("query", {}).items())
    line = f'curl{"" if method == "GET" else " -X " + method} "$URL{path}{"?" + query if query else ""}"'
    line += f' -H "Authorization: Bearer {options.get("key", "$KEY")}"'
    for name, value in options.get("headers", {}).items():
        line += f' -H "{name.capitalize()}: {value}"'
    if "idempotency" in options:
        line += f' -H "Idempotency-Key: {options["idempotency"][0]}"'
    if "json" in options:
        line += f" --json {shlex.quote(json.dumps(options['json'], ensure_ascii=False))}"
    elif "text" in options:
        line += f" --json {shlex.quote(shorten_text(options['text']))}"
    elif "file" in options:
        line += f" -F purpose=fine-tune -F file=@{options['file'][0]}"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        body = lay_out(shorten(answer.json(), top=True))
    else:
        body = shorten_text(answer.text) if kind.startswith("text/") else f"({kind}, {len(answer.content)} bytes)"
    language = "json" if kind == "application/json" else "text"
    return hide(f"```sh\n{line}\n```\n\n{answer.status_code}\n\n```{language}\n{body}\n```\n")


def lay_out(value):
    """One line a field; an error's are deeper."""
    inner = value.get("error") if len(value) == 1 else None
    lines = [f'  "{name}": {json.dumps(field, ensure_ascii=False)}' for name, field in (inner or value).items()]
    text = "{\n" + ",\n".join(lines) + "\n}"
    return f'{{"error": {text}}}' if inner else text


def shorten(value, top=False):
    if isinstance(value, list):
        return [shorten(value[0], top)] if value else []
    if not isinstance(value, dict):
        return value
    shown = list(value.items()) if top else list(value.items())[:FIRST]
    inner = {name: shorten(inner, top and name in ("data", "error", "details")) for name, inner in shown}
    return inner | ({"…": "…"} if len(shown) < len(value) else {})


def shorten_text(text):
    return text if len(text) < 300 else text[:80].rstrip() + " …"


def hide(text):
    """Without what is another on each run or machine."""
    text = re.sub(r"\b(job_|file-|evt_|art_|ckpt_|wh_|dlv_|key_|run_|wrk_|req_)[0-9a-z]{26}", r"\1…", text)
    text = re.sub(r"\bwhsec_[^\"]*", "whsec_…", text)
    text = re.sub(r"/v1/links/[^/]+/", "/v1/links/…/", text)
    text = re.sub(r"\btsk_[\w-]{43}", "tsk_…", text)
    text = re.sub(r'("(?:hint|reason)": )"[^"]*"', r'\1"…"', text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)", "2026-11-22T12:00:00Z", text)
    text = re.sub(r"\b1[789]\d{8}\b", "1795348800", text)
    text = re.sub(r"localhost leads to [\d.:]+,", "localhost leads to 127.0.0.1,", text)
    text = re.sub(r"Go on in \d+ seconds", "Go on in 60 seconds", text)
    return re.sub(r'("(?:free_bytes|\w*_seconds|oldest\w*)": )[\d.e-]+', r"\g<1>0", text)


def path_of(template, known):
    word = template.rpartition("/")[2]
    job_id = known["make"](STATE_OF[word]) if word in STATE_OF else known["job_id"]
    name = known["secret" if "/secrets/" in template else "artifact"]
    return fill(template, known | {"job_id": job_id, "name": name})


def write_operations(client, known):
    """In the schema's order; what deletes is sent last."""
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in client.app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    sections = {}
    spare = {"job_id": known["failed"], "file_id": known["broken"]}
    for name, operation in sorted(operations, key=lambda pair: pair[0].startswith("DELETE")):
        method, template = name.split(" ")
        options = fill(REQUESTS.get(name, {}), known)
        path = path_of(template, known | spare if method == "DELETE" else known)
        answer = ask(client, method, path, options)
        wanted = options.get("status", 503 if template == "/readyz" else None)
        assert answer.status_code == wanted if wanted else answer.is_success, f"{name} needs an example: {answer.text}"
        sections[name] = (operation["tags"][0], operation.get("description", ""), show(method, path, options, answer))
    return [(name, *sections[name]) for name, _ in operations]


def write_errors(client, known):
    sections = []
    for code, (method, path, options) in ERRORS.items():
        options, path = fill(options, known), fill(path, known)
        if "before" in options:
            place, body = ERRORS[code][2]["before"]
            made = client.post(place, json=fill(body, known)).json()["id"]
        with limited(client.app.state, options.get("settings", {})):
            answer = [ask(client, method, path, options) for _ in range(2 if "settings" in options else 1)][-1]
        if "before" in options:
            client.post(f"{place}/{made}/cancel")
        assert answer.json()["error"]["code"] == code
        sections.append(f"### {code}\n\n{show(method, path, options, answer)}")
    return sections


def test_the_page_shows_every_operation_and_every_code_as_they_are(client, known):
    errors = write_errors(client, known)
    page, tag = [INTRODUCTION], None
    for name, group, description, example in write_operations(client, known):
        if group != tag:
            tag = group
            page.append(f"## {tag.capitalize()}\n")
        page.append(f"### {name}\n\n{description}\n\n{example}" if description else f"### {name}\n\n{example}")
    text = "\n".join([*page, "## Error codes\n", *errors])
    if os.environ.get("WRITE_PAGES"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "WRITE_PAGES=1 pytest tests/app/test_api_page.py writes it anew"


def test_every_code_of_a_refused_request_has_an_example():
    table = (ROOT / "docs" / "errors.md").read_text().partition("## A row that is refused")[0]
    codes = {code for cells in re.findall(r"^\| (`[^|]+)\|", table, re.M) for code in re.findall(r"`(\w+)`", cells)}
    assert codes == ERRORS.keys() | NOT_SHOWN
