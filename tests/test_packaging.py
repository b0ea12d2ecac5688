"""What an install brings, what an import loads, and what no committed file may say."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "pyarrow", "numpy", "numba")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = re.compile(r"[A-Za-z0-9_.-]+")
AT_THE_TOP = ("*.md", "*.toml", "*.txt", "*.ini", "*.yml", "Dockerfile", "LICENSE", "Makefile", ".gitignore", ".dockerignore")
"""Other files there are of the machine: a worktree's `.git`, reports of tests."""


def names_of(requirements: list[str]) -> set[str]:
    return {normal(NAME.match(line).group()) for line in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_rings_import_only_what_they_may():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["app.main", "app.up", "app.reaper", "client.cli", "worker.main"])
def test_import_outside_the_compute_ring_loads_no_ml_library(module):
    code = f"import sys, {module}; print(*sorted(sys.modules.keys() & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_core_install_brings_no_ml_library():
    assert not names_of(PROJECT["dependencies"]) & set(HEAVY)


def test_every_requirement_has_a_tested_version():
    constraints = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in constraints)
    extras = [line for extra in ("worker", "dev") for line in PROJECT["optional-dependencies"][extra]]
    assert names_of(PROJECT["dependencies"] + extras) <= names_of(constraints)


def test_commands_of_the_service_name_modules_that_exist():
    from client.cli import PARTS

    assert set(PARTS) == {"up", "api", "worker", "reaper"}
    for module, _ in PARTS.values():
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_files_name_no_registry_and_no_path_of_a_machine():
    forbidden = re.compile("pypi" + r"\.org|python" + "hosted|-index" + "-url|/home" + "/|/wo" + "rk/|/ro" + "ot/")
    folders = ("app", "worker", "client", "migrations", "tests", "docs", "examples", "bench", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    paths += [path for pattern in AT_THE_TOP for path in ROOT.glob(pattern)]
    files = [path for path in paths if path.is_file()]
    found = {}
    for path in files:
        if match := forbidden.search(path.read_text(encoding="utf-8", errors="replace")):
            found[str(path)] = match.group()
    assert found == {}
