"""The compose file: valid, one volume, one GPU, every part watched and none open to the network without a key."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"
SERVICES = ("redis", "api", "worker-gpu", "worker-cpu", "notify")


@pytest.fixture(scope="module")
def compose():
    return YAML(typ="safe").load(FILE)


def test_file_is_valid_by_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_part_is_there_and_has_a_health_check(compose):
    assert set(compose["services"]) == set(SERVICES)
    for name in SERVICES:
        assert compose["services"][name]["healthcheck"]["test"], name


def test_parts_share_one_volume(compose):
    assert list(compose["volumes"]) == ["data"]
    for name in set(SERVICES) - {"redis"}:
        assert compose["services"][name]["volumes"] == ["data:/data"], name


def test_one_gpu_is_reserved_by_the_gpu_worker_alone(compose):
    device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert compose["services"]["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"] == [device]
    assert [name for name in SERVICES if "deploy" in compose["services"][name]] == ["worker-gpu"]


def test_only_the_api_is_published_and_only_on_loopback_and_with_a_key(compose):
    assert [name for name in SERVICES if "ports" in compose["services"][name]] == ["api"]
    assert compose["services"]["api"]["ports"] == ["${TUNESMITH_PUBLISH:-127.0.0.1:8000}:8000"]
    for name in set(SERVICES) - {"redis"}:
        assert compose["services"][name]["environment"]["TUNESMITH_BOOTSTRAP_KEY"].startswith("${TUNESMITH_BOOTSTRAP_KEY:?"), (
            name
        )


def test_image_copies_what_the_build_context_lets_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "app", "client", "migrations", "worker"}
    assert all((ROOT / name).exists() for name in allowed)
    targets = {line.split(" AS ")[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM ")}
    assert {"core", "worker"} <= targets
