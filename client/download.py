"""Artifacts to disk: resumed where an earlier try stopped, checked, and named only when right."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from client.api import Client, ClientError, Unreachable

TRIES = 5
"""Connections in a row that may break without one byte more."""
PAUSE = 0.5
"""Seconds before the first new connection; doubles up to 8."""

Advance = Callable[[int], None]
"""Called with how many of the file's bytes are on disk."""


def download(client: Client, job_id: str, artifact: dict[str, Any], folder: Path, advance: Advance = lambda size: None) -> Path:
    """Fetches one artifact of the job's list to `folder/name` and returns that path.

    What is whole on disk already is not fetched again. Bytes gather in `NAME.DIGEST.part`, where a later call goes on; the
    file gets its name when its SHA-256 is the artifact's. Raises ClientError when it is not (the part is removed), ApiError
    when the service refuses, Unreachable when connections keep breaking.
    """
    target = confined(folder, artifact["name"])
    if target.is_file() and target.stat().st_size == artifact["bytes"] and sha256_of(target) == artifact["sha256"]:
        advance(artifact["bytes"])
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{artifact['sha256'][:12]}.part")
    fetch(client, job_id, artifact, part, advance)
    found = sha256_of(part)
    if found != artifact["sha256"]:
        part.unlink()
        raise ClientError(
            f"{artifact['name']} arrived with SHA-256 {found}, not {artifact['sha256']}. It was removed: download it again."
        )
    return part.replace(target)


def fetch(client: Client, job_id: str, artifact: dict[str, Any], part: Path, advance: Advance) -> None:
    """Fills `part` to the artifact's size, connecting again after a break."""
    part.touch()
    tries = 0
    while (size := part.stat().st_size) < artifact["bytes"]:
        broken = None
        try:
            append(client, job_id, artifact, part, advance)
        except Unreachable as error:
            broken = error
        tries = 0 if part.stat().st_size > size else tries + 1
        if tries == TRIES:
            raise broken or ClientError(
                f"The service sends only {size} of the {artifact['bytes']} bytes of {artifact['name']}."
            )
        if broken:
            time.sleep(min(PAUSE * 2**tries, 8))


def append(client: Client, job_id: str, artifact: dict[str, Any], part: Path, advance: Advance) -> None:
    start = part.stat().st_size
    with client.artifact(job_id, artifact["name"], start=start) as response:
        size = start if response.status_code == 206 else 0
        with part.open("ab" if size else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                size += len(chunk)
                advance(size)


def confined(folder: Path, name: str) -> Path:
    """The path of `name` under `folder`; a name that leads out of it is refused."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ClientError(f"The service names an artifact {name!r}, which would be written outside {folder}.")
    return target


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose(artifacts: list[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    """The artifact of that name, or those in the folder of that name, or all."""
    chosen = [item for item in artifacts if name in (None, item["name"]) or item["name"].startswith(f"{name}/")]
    if not chosen:
        names = ", ".join(item["name"] for item in artifacts) or "none"
        raise ClientError(f"The job has no artifact {name}. It has: {names}." if name else "The job has no artifacts yet.")
    return chosen


def transfer_bar() -> Progress:
    """Shown on a terminal only, so that a pipe gets the files' lines alone."""
    console = Console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
