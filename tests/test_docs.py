"""The documentation is true: links lead somewhere, lists are complete, and the README's lines run as they stand."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
from held_port import held_port

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from app.settings import Settings
from app.webhooks.sender import send
from app.webhooks.signing import make_secret, sign
from client.api import Client, Unreachable

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_RECEIVER = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)[0]
README_LINES = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_make_targets_in_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", page.read_text(), re.M)}
    assert named
    assert named <= targets


def test_every_setting_is_in_the_operations_page_and_no_other():
    table = re.findall(r"^\| `TUNESMITH_([A-Z_]+)`", (ROOT / "docs/operations.md").read_text(), re.M)
    assert sorted(table) == sorted(name.upper() for name in Settings.model_fields)


def test_every_field_of_a_job_is_in_the_guide():
    guide = (ROOT / "docs/guide.md").read_text()
    assert [name for name in fields_of(JobSpec.model_json_schema()) if f"`{name}`" not in guide] == []


def test_every_failure_code_is_documented():
    page = (ROOT / "docs/errors.md").read_text()
    assert [code for code in FailureCode if f"`{code}`" not in page] == []


def fields_of(schema):
    """The path of every field, `training.max_steps` and the like."""

    def walk(node, prefix):
        for name, field in node.get("properties", {}).items():
            yield prefix + name
            options = [field, *field.get("anyOf", []), *field.get("allOf", [])]
            for reference in filter(None, (option.get("$ref") for option in options)):
                yield from walk(schema["$defs"][reference.rpartition("/")[2]], f"{prefix}{name}.")

    return list(walk(schema, ""))


@pytest.fixture
def live_service(tmp_path):
    """The URL of a whole service on this machine, with a data folder of its own."""
    with held_port() as port, (tmp_path / "service.log").open("wb") as log:
        command = [sys.executable, "-m", "app.up", "--data-dir", tmp_path / "service", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(timeout=120) == 0, (tmp_path / "service.log").read_text()


def wait_until_ready(url, process):
    with Client(url) as client:
        for _ in range(3000):
            assert process.poll() is None
            try:
                if client.workers():
                    return
            except Unreachable:
                pass
            time.sleep(0.1)
    raise AssertionError("the service was not ready within minutes")


def test_the_readme_s_receiver_takes_what_is_signed_and_nothing_else(tmp_path):
    key = make_secret()
    body = json.dumps(
        {"type": "fine_tuning.job.succeeded", "data": {"artifacts": [{"url": "https://tunes.example/a"}]}}
    ).encode()
    with held_port() as port, (tmp_path / "receiver.log").open("wb") as log:
        code = README_RECEIVER.replace("9000", str(port))
        receiver = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"SECRET": key}, stdout=log, stderr=log)
        try:
            for secret, status in ((key, 204), (make_secret(), None)):
                for _ in range(1000):
                    headers = sign("evt_1", datetime.now(UTC), body, [secret])
                    attempt = send(f"http://127.0.0.1:{port}/", body, headers, [ip_network("127.0.0.0/8")], 100.0)
                    if attempt.error != "Connection refused.":
                        break
                    time.sleep(0.1)
                assert attempt.status_code == status
        finally:
            receiver.kill()
            receiver.wait()
    assert "fine_tuning.job.succeeded ['https://tunes.example/a']\n" in (tmp_path / "receiver.log").read_text()
    assert len([line for line in README_RECEIVER.splitlines() if line]) == 10


@pytest.mark.ml
@pytest.mark.timeout(900)
def test_readme_lines_run_as_they_stand(live_service, tmp_path):
    """The one line that is run twice is the download, the second time after half of the file was lost. OpenAI's client looks at
    the job before it is deleted."""
    download = next(number for number, block in enumerate(README_LINES) if "-C -" in block)
    lose_half = "truncate --size=$(($(stat --format=%s model.gguf) / 2)) model.gguf\n"
    blocks = [*README_LINES[: download + 1], lose_half, *README_LINES[download:]]
    deletion = next(number for number, block in enumerate(blocks) if "-X DELETE" in block)
    blocks.insert(deletion, f'{sys.executable} {ROOT}/tests/through_openai.py "$TUNESMITH_URL" "$JOB" model.gguf\n')
    environment = os.environ | {"TUNESMITH_URL": live_service}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded\n" in done.stdout
    assert "model.gguf: OK" in done.stdout
    for heading in ("Purpose", "Setup", "Performance observations", "Outcomes"):
        assert heading in done.stdout
    check_gguf(tmp_path / "model.gguf")


def check_gguf(path):
    """gguf reads it and llama.cpp answers with it."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    assert reader.get_field("general.name").contents() == "first steps"
    answer = subprocess.run(
        [sys.executable, ROOT / "examples" / "ask.py", path, "What follows 7?"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip()
