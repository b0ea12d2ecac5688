"""The files of a trained adapter."""

import os
from pathlib import Path

from app.jobs.spec import JobSpec
from worker.stages import OutputFile

NAMES = ("adapter_model.safetensors", "adapter_config.json")


def list_files(spec: JobSpec, out: Path) -> list[OutputFile]:
    """Those of `out/adapter`, if the spec asks for them."""
    if not spec.exports_of("adapter"):
        return []
    return [OutputFile.of(out, out / "adapter" / name, name=f"adapter/{name}", kind="adapter") for name in NAMES]


def link(source: Path, out: Path) -> None:
    """Gives `out` the adapter that the folder `source` has, whatever becomes of that folder."""
    (out / "adapter").mkdir()
    for name in NAMES:
        os.link(source / name, out / "adapter" / name)
